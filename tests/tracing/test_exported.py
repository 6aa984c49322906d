"""Code that torch.fx cannot trace is read by torch.export, does the same, and goes stale in no way."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from tracing.agreement import agree, equal_runs, linear, mlp, randn

import revgraph as rg


class Teacher(nn.Module):
    """Own code in another gradient mode, around layers that draw and count."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = linear(), linear(seed=9)
        self.norm, self.dropout = nn.BatchNorm1d(4).double(), nn.Dropout(0.4)
        self.blocks = nn.ModuleList([mlp(seed=seed) for seed in (1, 3, 5)])
        self.register_buffer("shift", randn(4, seed=21))
        self.scale, self.rate = 3.0, 0.3

    def forward(self, x: Tensor) -> dict[str, Any]:
        cache: dict[str, Tensor] = {"x": self.stem(x)}
        with torch.no_grad():
            target = (cache["x"] * self.stem.weight.sum()).tanh()
        y = cache["x"] * self.scale + self.shift
        y = self.dropout(self.norm(y))
        for block in self.blocks:
            y = y + block(y)
        y = torch.dropout(y, self.rate, self.training) + torch.randn(4, dtype=y.dtype)
        return {"loss": (y - target).square().mean(), "logits": self.head(y), "layers": 3}


class Body(nn.Module):
    def __init__(self, body: Any, **modules: nn.Module) -> None:
        super().__init__()
        self.body = body
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():  # which torch.fx does not record
            noise = args[0] * 0
        return self.body(self, *args, **kwargs) + noise


def is_exported(net: rg.ReversibleModule) -> bool:
    return any(line.startswith("read by torch.export") for line in net.graph.findings)


def nodes(net: rg.ReversibleModule) -> list[str]:
    return [node.name for node in net.graph.nodes]


@pytest.mark.slow
def test_layers_of_code_that_changes_the_gradient_mode_become_nodes() -> None:
    net = agree(Teacher(), randn(3, 4))
    assert is_exported(net)
    assert {"stem", "norm", "dropout", "head", "blocks.0.0", "blocks.2.2"} <= set(nodes(net))


@pytest.mark.slow
def test_every_plan_gives_the_gradients_masks_and_statistics_of_the_plain_model() -> None:
    model = Teacher()
    reference = copy.deepcopy(model)
    net = rg.trace(model, randn(3, 4))
    for plan in (rg.keep_all(net.graph), rg.plan(net.graph, "least"), rg.plan(net.graph)):
        net.plan = plan
        equal_runs(net, reference, randn(3, 4, seed=3))


@pytest.mark.slow
def test_evaluation_mode_and_other_sizes_are_traced_when_they_come() -> None:
    model = Teacher()
    reference = copy.deepcopy(model)
    net = rg.trace(model, randn(3, 4))
    for size in (3, 5, 2, 3):
        equal_runs(net, reference, randn(size, 4, seed=size))
    net.eval()
    reference.eval()
    equal_runs(net, reference, randn(5, 4))


@pytest.mark.slow
def test_what_the_code_read_is_not_frozen() -> None:
    model = Teacher()
    reference = copy.deepcopy(model)
    net = rg.trace(model, randn(3, 4))
    for each in (model, reference):
        each.scale, each.rate = 0.5, 0.9
    equal_runs(net, reference, randn(3, 4))
    for each in (model, reference):
        each.blocks[1] = nn.Linear(4, 4).double()
        with torch.no_grad():
            each.blocks[1].weight.copy_(randn(4, 4, seed=77))
            each.blocks[1].bias.zero_()
    equal_runs(net, reference, randn(3, 4))


@pytest.mark.slow
def test_parameters_of_another_dtype_or_frozen_ones_are_traced_anew() -> None:
    model = Body(lambda net, x: net.f(x) * torch.ones(4, dtype=net.f[0].weight.dtype), f=mlp())
    reference = copy.deepcopy(model)
    net = rg.trace(model, randn(3, 4))
    assert is_exported(net)
    for each in (model, reference):
        each.float()
    equal_runs(net, reference, randn(3, 4).float())
    for each in (model, reference):
        each.double()
        each.f[0].weight.requires_grad_(False)
    equal_runs(net, reference, randn(3, 4))


@pytest.mark.slow
def test_no_casts_are_frozen_under_autocast() -> None:
    model = Body(lambda net, x: net.f(x).to(x.dtype) + x, f=mlp().float())
    x = randn(3, 4).float()
    net = rg.trace(model, x)
    assert is_exported(net)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(rg.TraceError, match="gradient mode"):
        net(x)
    equal_runs(net, model, x)


@pytest.mark.slow
def test_code_in_another_gradient_mode_gives_no_gradients() -> None:
    def frozen(net: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = net.f(x)
        return net.g(x) * y

    net = agree(Body(frozen, f=mlp(), g=mlp(seed=5)), randn(3, 4))
    assert is_exported(net)


@pytest.mark.slow
def test_code_under_autocast_is_cast_as_before() -> None:
    def cast(net: Any, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            y = net.f(x.float())
        return x * y.double()

    assert is_exported(agree(Body(cast, f=mlp().float()), randn(3, 4)))


@pytest.mark.slow
def test_in_place_code_is_right() -> None:
    def edits(net: Any, x: Tensor) -> Tensor:
        y = torch.empty(x.shape, dtype=x.dtype)
        y.copy_(x * 2)
        z = net.f(y).mul_(3).add_(y, alpha=2)
        return z.clamp_(-1, 1) + torch.tensor([1.0, 2, 3, 4], dtype=x.dtype).add_(1)

    assert is_exported(agree(Body(edits, f=mlp()), randn(3, 4)))


class Square(torch.autograd.Function):
    """Its backward is not the derivative, so that losing it shows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore
        (x,) = ctx.saved_tensors
        return gradient * 7 * x


def test_a_function_keeps_its_own_backward() -> None:
    net = agree(Body(lambda net, x: Square.apply(net.f(x)), f=mlp()), randn(3, 4))
    assert is_exported(net)


@pytest.mark.slow
def test_streams_are_inverted() -> None:
    def coupled(net: Any, x: Tensor) -> Tensor:
        one, two = x.chunk(2, 1)
        one = one + net.f(two)
        two = two + net.g(one)
        return torch.cat([one, two], 1)

    class Streams(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f, self.g = mlp(), mlp(seed=5)

        def forward(self, x: Tensor) -> Any:
            with torch.no_grad():
                size = x.square().mean()
            return coupled(self, x), size

    net = agree(Streams(), randn(3, 8), couplings=2)
    assert is_exported(net)


@pytest.mark.parametrize("ask", ["requires_grad", "is_leaf", "grad_fn"])
def test_questions_that_nothing_settles_are_refused(ask: str) -> None:
    model = Body(lambda net, x: net.f(x) * (2 if getattr(net.f(x), ask) else 3), f=mlp())
    with pytest.raises(rg.TraceError, match=f"asks for {ask}"):
        rg.trace(model, randn(3, 4))


@pytest.mark.parametrize("body", [
    lambda net, x: net.f(x) if x.sum() > 0 else x,
    lambda net, x: net.f(x) * float(x.sum()),
    lambda net, x: net.f(x) * torch.from_numpy(x.detach().numpy()),
])  # fmt: skip
def test_paths_that_depend_on_values_are_refused_with_both_reasons(body: Any) -> None:
    with pytest.raises(rg.TraceError, match=r"torch\.export cannot read it either"):
        rg.trace(Body(body, f=mlp()), randn(3, 4))


def test_code_that_keeps_state_is_refused() -> None:
    def counts(net: Any, x: Tensor) -> Tensor:
        net.calls += 1
        return net.f(x) * net.calls

    model = Body(counts, f=mlp())
    model.calls = 0
    with pytest.raises(rg.TraceError, match="which it also reads"):
        rg.trace(model, randn(3, 4))
    assert model.calls == 0


def test_a_hook_on_a_tensor_is_refused() -> None:
    def hooked(net: Any, x: Tensor) -> Tensor:
        with torch.enable_grad():
            y = net.f(x) * 2
            y.register_hook(lambda gradient: gradient * 2)
        return y

    with pytest.raises(rg.TraceError, match="asks for register_hook"):
        rg.trace(Body(hooked, f=mlp()), randn(3, 4))


def test_hooks_of_modules_run_once_a_step() -> None:
    model = Teacher()
    calls: list[str] = []
    model.stem.register_forward_hook(lambda *_: calls.append("stem"))
    net = rg.trace(model, randn(3, 4))
    calls.clear()
    net(randn(3, 4))
    assert calls == ["stem"]


class Holder(nn.Module):
    """A part that fx cannot trace, with a share of the model's parameters that `width` decides."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.part = Body(lambda net, x: net.g(net.f(x)), f=mlp(seed=1), g=mlp(seed=3))
        self.rest = nn.Sequential(linear(4, width), nn.Tanh(), linear(width, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.part(x))


@pytest.mark.slow
def test_a_part_is_read_where_it_is_most_of_the_model() -> None:
    net = agree(Holder(2), randn(3, 4))
    assert is_exported(net)
    assert {"part.f.0", "part.g.2"} <= set(nodes(net))
    net = agree(Holder(64), randn(3, 4))
    assert not is_exported(net)
    assert "part" in nodes(net)


@pytest.mark.slow
def test_a_net_is_copied_and_pickled_with_what_was_exported() -> None:
    model = Teacher()
    net = rg.trace(model, randn(3, 4))
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        equal_runs(other, copy.deepcopy(model), randn(3, 4, seed=8))


class Substituting(nn.Module):
    """Couplings that call layers which hold something else than their own meanwhile."""

    def __init__(self, call: Any, layers: nn.ModuleList) -> None:
        super().__init__()
        self.call, self.layers, self.other = call, layers, linear(seed=30)

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        for layer in self.layers:
            a, b = b, a + self.call(self, layer, b).tanh()
        return a, b


def with_own_weight_assigned(net: Any, layer: Any, x: Tensor) -> Tensor:
    own = layer._parameters["weight"]
    layer._parameters["weight"] = net.other.weight
    try:
        return layer(x)
    finally:
        layer._parameters["weight"] = own


def with_other_rate(net: Any, layer: Any, x: Tensor) -> Tensor:
    own, layer.p = layer.p, 0.5
    try:
        return layer(x)
    finally:
        layer.p = own


SUBSTITUTED: dict[str, tuple[Any, Any]] = {
    "computed": (
        lambda net, f, x: torch.func.functional_call(f, {"weight": f.weight * 2}, (x,)),
        linear,
    ),
    "another layer's": (
        lambda net, f, x: torch.func.functional_call(f, dict(net.other.named_parameters()), (x,)),
        linear,
    ),
    "a part's": (
        lambda net, f, x: torch.func.functional_call(f, {"0.weight": net.other.weight * 3}, (x,)),
        lambda: nn.Sequential(linear(seed=7), nn.Tanh()),
    ),
    "a buffer": (
        lambda net, f, x: torch.func.functional_call(f, {"running_mean": f.running_mean + 1}, (x,)),
        lambda: nn.BatchNorm1d(4).double().eval(),
    ),
    "assigned": (with_own_weight_assigned, linear),
    "a setting": (with_other_rate, lambda: nn.Dropout(0.2)),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", SUBSTITUTED)
def test_a_module_called_with_what_is_not_its_own_computes_with_that(case: str) -> None:
    call, layer = SUBSTITUTED[case]
    model = Substituting(call, nn.ModuleList([layer(), layer()]))
    net = agree(model, randn(3, 4), randn(3, 4, seed=1), couplings=2)
    with torch.no_grad():
        net.other.weight.mul_(2)
        model.other.weight.copy_(net.other.weight)
    equal_runs(net, copy.deepcopy(model), randn(3, 4), randn(3, 4, seed=1))


def with_rate_for_good(net: Any, layer: Any, x: Tensor) -> Tensor:
    layer.p = 0.0
    return layer(x)


def test_a_setting_that_code_gives_to_a_layer_for_good_is_refused() -> None:
    model = Substituting(with_rate_for_good, nn.ModuleList([nn.Dropout(0.9), nn.Dropout(0.9)]))
    with pytest.raises(rg.TraceError, match=r"calls layers\.0 with something else in place of layers\.0\.p"):
        rg.trace(model, randn(3, 4), randn(3, 4, seed=1))
