"""What the code of libraries does with tensors around its arithmetic goes through a trace as it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from tracing.agreement import Net, agree, equal_runs, mlp, randn

import revgraph as rg


def couplings(net: Any, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
    y1 = x1 + net.f(x2)
    return y1, x2 + net.g(y1)


def both(**more: nn.Module) -> dict[str, nn.Module]:
    return {"f": mlp(), "g": mlp(seed=3), **more}


@pytest.mark.slow
@pytest.mark.parametrize("asked", [{}, {"dtype": None}, {"dtype": torch.double}, {"dtype": torch.float}])
def test_conversion_of_a_tensor_is_that_tensor_or_a_cast(asked: dict[str, Any]) -> None:
    def body(net: Any, x1: Tensor, x2: Tensor) -> Any:
        y1, y2 = couplings(net, torch.as_tensor(x1, dtype=None), torch.as_tensor(x2))
        return torch.as_tensor(y1, **asked), y2

    agree(Net(body, **both()), randn(3, 4), randn(3, 4, seed=2), couplings=2)


def test_conversion_of_sizes_follows_them() -> None:
    def body(net: Any, x1: Tensor, x2: Tensor) -> Any:
        y1, y2 = couplings(net, x1, x2)
        return y1 * torch.as_tensor([x1.shape[0], 1, 2, 3]), y2 * torch.as_tensor(x1.shape[0])

    model = Net(body, **both())
    net = agree(model, randn(3, 4), randn(3, 4, seed=2), couplings=2)
    equal_runs(net, model, randn(5, 4), randn(5, 4, seed=2))


@pytest.mark.slow
def test_module_that_passes_none_on_gives_none() -> None:
    class Conditional(nn.Module):
        """A condition goes through a module that may be no more than a placeholder."""

        def __init__(self) -> None:
            super().__init__()
            self.embed, self.f, self.g = nn.Identity(), mlp(), mlp(seed=3)

        def forward(self, x1: Tensor, x2: Tensor, condition: Tensor | None = None) -> Any:
            condition = self.embed(condition)
            y1, y2 = couplings(self, x1, x2)
            return (y1, y2) if condition is None else (y1 * condition, y2)

    model = Conditional()
    net = agree(model, randn(3, 4), randn(3, 4, seed=2), couplings=2)
    equal_runs(net, model, randn(3, 4), randn(3, 4, seed=2), randn(3, 4, seed=5))


def test_number_of_numpys_is_a_number_to_the_code() -> None:
    def body(net: Any, x1: Tensor, x2: Tensor) -> Any:
        volume = x1[0].numel() * np.log(2.0)
        assert isinstance(volume, (float, int)) and isinstance(volume, float)
        assert not isinstance(volume, (int, Tensor))
        y1, y2 = couplings(net, x1, x2)
        return y1, y2, torch.zeros(len(x1)) + volume

    agree(Net(body, **both()), randn(3, 4), randn(3, 4, seed=2), couplings=2)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["empty_like", "new_empty", "empty"])
def test_memory_that_code_fills_in_parts_is_the_same_each_time(form: str) -> None:
    """Left as it lies, a rerun begins with other numbers, which looks like a function that is wrong."""

    def body(net: Any, x: Tensor) -> Tensor:
        x = net.f(x)
        if form == "empty_like":
            y = torch.empty_like(x)
        else:
            y = x.new_empty(x.shape) if form == "new_empty" else torch.empty(x.shape, dtype=x.dtype)
        y[:, ::2] = x[:, ::2].exp()
        y[:, 1::2] = x[:, 1::2]
        return net.g(y)

    model = Net(body, **both())
    net = agree(model, randn(3, 4))
    assert "empty" not in net.code
    net.plan = rg.plan(net.graph, budget="least")
    equal_runs(net, model, randn(3, 4, seed=5))


class Asking(nn.Module):
    """A block as libraries write it, whose checkpointing asks for the gradient mode."""

    def __init__(self, seed: int, checkpointing: bool = False) -> None:
        super().__init__()
        self.f, self.g, self.checkpointing = mlp(seed=seed), mlp(seed=seed + 5), checkpointing

    def forward(self, x1: Tensor, x2: Tensor) -> Any:
        if torch.is_grad_enabled() and self.checkpointing:
            return checkpoint(lambda *given: couplings(self, *given), x1, x2, use_reentrant=False)
        return couplings(self, x1, x2)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("place", ["root", "submodule"])
@pytest.mark.filterwarnings("ignore::revgraph.TraceWarning")
def test_code_that_asks_for_the_gradient_mode_stays_open(place: str, checkpointing: bool) -> None:
    blocks = nn.ModuleDict({name: Asking(seed, checkpointing) for seed, name in enumerate("ab")})

    def body(net: Any, x1: Tensor, x2: Tensor) -> Any:
        return net.blocks.b(*net.blocks.a(x1, x2))

    if place == "root":
        agree(Asking(0, checkpointing), randn(3, 4), randn(3, 4, seed=2), couplings=2)
    else:
        agree(Net(body, blocks=blocks), randn(3, 4), randn(3, 4, seed=2), couplings=4)


def in_mode(net: Any, x1: Tensor, x2: Tensor) -> Any:
    y1, y2 = couplings(net, x1, x2)
    return (y1 * 2, y2) if torch.is_grad_enabled() else (y1 * 3, y2 * y1)


def in_mode_with_constant(net: Any, x1: Tensor, x2: Tensor) -> Any:
    y1, y2 = in_mode(net, x1, x2)
    with torch.no_grad():
        scale = 2.0 if torch.is_grad_enabled() else 3.0
    return y1 * scale, y2


@pytest.mark.slow
@pytest.mark.parametrize("body", [in_mode, in_mode_with_constant])
@pytest.mark.parametrize("first", ["with gradients", "without"])
def test_each_gradient_mode_is_traced_when_it_first_comes(body: Any, first: str) -> None:
    model = Net(body, **both())
    with torch.set_grad_enabled(first == "with gradients"):
        net = agree(model, randn(3, 4), randn(3, 4, seed=2), couplings=2)
    for _ in range(2):
        equal_runs(net, model, randn(3, 4, seed=4), randn(3, 4, seed=3))
    assert len(net._forms) == 2


@pytest.mark.slow
def test_gradients_that_are_switched_on_again_where_none_are_is_no_graph() -> None:
    def body(net: Any, x1: Tensor, x2: Tensor) -> Any:
        if torch.is_grad_enabled():
            return couplings(net, x1, x2)
        with torch.enable_grad():
            return couplings(net, x1, x2)

    model = Net(body, **both())
    net = rg.trace(model, randn(3, 4), randn(3, 4, seed=2))
    with torch.no_grad(), pytest.raises(rg.TraceError, match="gradient mode"):
        net(randn(3, 4), randn(3, 4, seed=2))
    outer = nn.ModuleDict({"inner": model})
    inside = Net(lambda net, x1, x2: net.outer.inner(x1, x2), outer=outer)
    agree(inside, randn(3, 4), randn(3, 4, seed=2))


class Freed(torch.autograd.Function):
    """Holds a function's output alone, and rebuilds its first input from that."""

    @staticmethod
    def forward(ctx: Any, fn: Any, fn_inverse: Any, _times: int, count: int, *args: Any) -> Any:
        ctx.fn, ctx.fn_inverse, ctx.weights = fn, fn_inverse, args[count:]
        with torch.no_grad():
            x = [each.detach() if isinstance(each, Tensor) else each for each in args[:count]]
            outputs = fn(*x)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        ctx.outputs = tuple(each.detach_() for each in outputs)
        args[0].untyped_storage().resize_(0)
        ctx.others = args[1:count]
        return ctx.outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        with torch.no_grad():
            x = ctx.fn_inverse(*ctx.outputs, *ctx.others)
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            y = ctx.fn(x, *ctx.others)
            found = torch.autograd.grad(y, (x, *ctx.weights), gradients)
        return None, None, None, None, found[0], *(None for _ in ctx.others), *found[1:]


class Grouped(nn.Module):
    """Additive half-steps on the halves of one tensor, in a Function that frees what it is given."""

    def __init__(self, names: tuple[str, str], seed: int) -> None:
        super().__init__()
        self.names, self.disable = names, False
        self.f, self.g = mlp(seed=seed), mlp(seed=seed + 5)

    def forward(self, *args: Any) -> Tensor:
        fn, fn_inverse = (getattr(self, name) for name in self.names)
        if self.disable:
            return fn(*args)
        weights = [each for each in self.parameters() if each.requires_grad]
        results = Freed.apply(fn, fn_inverse, 1, len(args), *args, *weights)
        return results[0] if isinstance(results, tuple) and len(results) == 1 else results

    def _forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x1, x2 = x.chunk(2, -1)
        y1 = x1 + self.f(x2) * mask
        return torch.cat([y1, x2 + self.g(y1) * mask], -1)

    def _inverse(self, y: Tensor, mask: Tensor) -> Tensor:
        y1, y2 = y.chunk(2, -1)
        x2 = y2 - self.g(y1) * mask
        return torch.cat([y1 - self.f(x2) * mask, x2], -1)


class Deep(nn.Module):
    def __init__(self, names: tuple[str, str]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Grouped(names, seed) for seed in range(3))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x * 1.0
        for block in self.blocks:
            x = block(x, mask)
        return x.sin()


@pytest.mark.slow
def test_functions_that_undo_themselves_give_way_to_the_plan_and_that_is_said() -> None:
    model, plain = Deep(("_forward", "_inverse")), Deep(("_forward", "_inverse"))
    for block in plain.blocks:
        block.disable = True  # pyright: ignore
    x, mask = randn(3, 8), (randn(3, 4, seed=2) > 0).double()
    with pytest.warns(rg.TraceWarning, match=r"test_library_idioms\.py:\d+.*the net's plan"):
        net = rg.trace(model, x, mask)
    assert [node.kind for node in net.graph.nodes].count("coupling") == 6
    for plan in (net.plan, rg.decide(net.graph, {}), rg.keep_all(net.graph)):
        net.plan = plan
        equal_runs(net, plain, x, mask)


def test_functions_that_undo_themselves_called_backwards_are_run_as_they_are() -> None:
    """Given the inverse first, it is no forward of the module whose methods they are."""
    model, plain = Deep(("_inverse", "_forward")), Deep(("_inverse", "_forward"))
    for block in plain.blocks:
        block.disable = True  # pyright: ignore
    x, mask = randn(3, 8), (randn(3, 4, seed=2) > 0).double()
    net = rg.trace(model, x, mask)
    assert not any(node.kind == "coupling" for node in net.graph.nodes)
    torch.testing.assert_close(net(x, mask), plain(x, mask), rtol=0, atol=0)
    for each in (model, net):  # which free each other's outputs, as nothing fills them again
        with pytest.raises(RuntimeError, match="storage of size 0"):
            each(x.clone().requires_grad_(), mask).sum().backward()


def test_numbers_of_numpy_among_the_arguments_of_a_call_are_plain_ones() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = mlp()

        def forward(self, x: Tensor) -> Tensor:
            size = np.prod((2, 2))
            return self.inner(x.reshape(-1, size)) * np.float64(0.5)

    net = agree(Scaled(), randn(3, 4))
    assert any(node.module.startswith("inner") for node in net.graph.nodes)
