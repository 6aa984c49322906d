"""Tracing goes through modules of every kind, and calls those without couplings as they are."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from tracing.agreement import agree, equal_runs, linear, mlp, randn

import revgraph as rg


class Block(nn.Module):
    """The paper's block in plain code."""

    def __init__(self, width: int = 4, seed: int = 0) -> None:
        super().__init__()
        self.f, self.g = mlp(width, seed), mlp(width, seed + 10)

    def forward(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
        y1 = x1 + self.f(x2)
        return y1, x2 + self.g(y1)


class Streams(NamedTuple):
    one: Tensor
    two: Tensor


class TupleBlock(Block):
    def forward(self, streams: Any) -> Any:  # pyright: ignore
        return super().forward(*streams)


class ListBlock(Block):
    def forward(self, streams: Any) -> Any:  # pyright: ignore
        return list(super().forward(*streams))


class DictBlock(Block):
    def forward(self, streams: Any) -> Any:  # pyright: ignore
        one, two = super().forward(streams["one"], streams["two"])
        return {"one": one, "two": two}


class NamedBlock(Block):
    def forward(self, streams: Any) -> Any:  # pyright: ignore
        return Streams(*super().forward(streams.one, streams.two))


class Over(nn.Module):
    """A form of two streams around a list of blocks."""

    def __init__(self, form: Any, blocks: nn.Module) -> None:
        super().__init__()
        self.form, self.blocks = form, blocks

    def forward(self, x1: Tensor, x2: Tensor) -> Any:
        return self.blocks(self.form(x1, x2))


FORMS = {
    "tuple": (lambda a, b: (a, b), TupleBlock),
    "list": (lambda a, b: [a, b], ListBlock),
    "dict": (lambda a, b: {"one": a, "two": b}, DictBlock),
    "namedtuple": (Streams, NamedBlock),
}


def pair(width: int = 4) -> tuple[Tensor, Tensor]:
    return randn(3, width, seed=1), randn(3, width, seed=2)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_couplings_are_found_in_submodules_that_pass_streams(form: str) -> None:
    make, block = FORMS[form]
    agree(Over(make, nn.Sequential(*(block(seed=index) for index in range(3)))), *pair(), couplings=6)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_root_may_take_and_return_streams_in_any_form(form: str) -> None:
    make, block = FORMS[form]
    agree(block(), make(*pair()), couplings=2)


def test_module_list_and_dict_are_gone_through() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(Block(seed=index) for index in range(2))
            self.named = nn.ModuleDict({"a": Block(seed=5), "b": Block(seed=6)})

        def forward(self, x1: Tensor, x2: Tensor) -> Any:
            for block in self.blocks:
                x1, x2 = block(x1, x2)
            for name, block in self.named.items():
                x1, x2 = block(x1, x2) if name != "c" else (x1, x2)
            return x1, self.blocks[0](x1, x2)[1]

    agree(Net(), *pair(), couplings=10)


def test_nested_submodules_with_streams_are_gone_through() -> None:
    class Stage(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            self.one, self.two = Block(seed=seed), Block(seed=seed + 1)

        def forward(self, x1: Tensor, x2: Tensor) -> Any:
            return self.two(*self.one(x1, x2))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.stage, self.last, self.tail = linear(4, 8), Stage(0), Stage(5), linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x1, x2 = self.head(x).chunk(2, dim=1)
            x1, x2 = self.last(*self.stage(x1, x2))
            return self.tail(torch.cat([x1, x2], dim=1))

    net = agree(Net(), randn(3, 4), couplings=8)
    boundaries = [node.module for node in net.graph.nodes if node.kind == "boundary"]
    assert boundaries == ["head", "tail"]


@pytest.mark.parametrize("reverse", [False, True])
def test_function_module_is_one_call_whose_hooks_fire(reverse: bool) -> None:
    class Function(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = linear(), linear(seed=1)

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.two(torch.relu(self.one(x))))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = Function()

        def forward(self, x1: Tensor, x2: Tensor) -> Any:
            return (self.f(x2) + x1, x2) if reverse else (x1 + self.f(x2), x2)

    model = Net()
    net = agree(model, *pair(), couplings=1)
    calls = []
    model.f.register_forward_hook(lambda *_: calls.append("f"))
    with torch.no_grad():
        net(*pair())
    assert calls == ["f"]


@pytest.mark.slow
def test_hook_there_before_the_trace_fires_once() -> None:
    calls: list[str] = []
    model = nn.Sequential(linear(), mlp(seed=3), TwoStreams())
    model[1].register_forward_hook(lambda *_: calls.append("hook"))
    net = rg.trace(model, randn(3, 4))
    calls.clear()
    with torch.no_grad():
        net(randn(3, 4))
    assert calls == ["hook"]


@pytest.mark.slow
def test_hook_that_changes_the_result_is_obeyed() -> None:
    model = nn.Sequential(linear(), mlp(seed=3), TwoStreams())
    model[1].register_forward_hook(lambda module, args, out: out * 2)
    agree(model, randn(3, 4), couplings=2)


@pytest.mark.slow
def test_hook_on_a_module_with_couplings_is_obeyed() -> None:
    model = TwoStreams()
    model.block.register_forward_hook(lambda module, args, out: (out[0] * 2, out[1]))
    agree(model, randn(3, 4))


def test_forward_hook_on_the_root_is_obeyed() -> None:
    model = TwoStreams()
    model.register_forward_hook(lambda module, args, out: out * 2)
    net = rg.trace(model, randn(3, 4))
    with torch.no_grad():
        torch.testing.assert_close(net(randn(3, 4)), model(randn(3, 4)), rtol=0, atol=0)


class TwoStreams(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Block(2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(self.block(*x.chunk(2, 1)), 1)


@pytest.mark.slow
def test_replaced_submodule_is_used() -> None:
    model = TwoStreams()
    net = rg.trace(model, randn(3, 4))
    model.block.f = mlp(2, seed=77)
    with torch.no_grad():
        torch.testing.assert_close(net(randn(3, 4)), model(randn(3, 4)), rtol=0, atol=0)


def test_replaced_forward_of_a_function_is_used() -> None:
    model = TwoStreams()
    net = rg.trace(model, randn(3, 4))
    model.block.f.forward = torch.sin
    with torch.no_grad():
        torch.testing.assert_close(net(randn(3, 4)), model(randn(3, 4)), rtol=0, atol=0)


def test_parameter_replaced_after_the_trace_is_used() -> None:
    model = TwoStreams()
    net = rg.trace(model, randn(3, 4))
    model.block.f[0].weight = nn.Parameter(randn(6, 2, seed=9))
    equal_runs(net, model, randn(3, 4))


def test_shared_module_in_several_couplings() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = mlp()
            self.same = self.f

        def forward(self, x1: Tensor, x2: Tensor) -> Any:
            for _ in range(3):
                x1 = x1 + self.f(x2)
                x2 = x2 + self.same(x1)
            return x1, x2

    agree(Net(), *pair(), couplings=6)


def test_boundary_module_called_twice() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mid = linear()

        def forward(self, x: Tensor) -> Tensor:
            return self.mid(torch.tanh(self.mid(x)))

    agree(Net(), randn(3, 4), couplings=0)


def test_parameters_and_buffers_used_directly() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pos = nn.Parameter(randn(1, 4, seed=1))
            self.scale = nn.Parameter(randn(4, seed=2))
            self.register_buffer("shift", randn(4, seed=3))
            self.register_buffer("quiet", randn(4, seed=4), persistent=False)
            self.weights = nn.ParameterList([nn.Parameter(randn(4, 4, seed=5))])
            self.table = nn.ParameterDict({"w": nn.Parameter(randn(4, 4, seed=6))})
            self.f = mlp()

        def forward(self, x1: Tensor, x2: Tensor) -> Any:
            x1 = x1 + self.pos
            x1 = x1 + self.f(x2) * self.scale + self.shift
            x2 = x2 + torch.tanh(x1 @ self.weights[0]) @ self.table["w"]
            return nn.functional.linear(x1, self.weights[0], self.quiet), x2 - self.shift

    agree(Net(), *pair())


def test_buffer_changed_after_the_trace_is_used() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("shift", randn(4, seed=3))

        def forward(self, x: Tensor) -> Tensor:
            return torch.sin(x) * self.shift

    model = Net()
    net = rg.trace(model, randn(3, 4))
    model.shift.fill_(2.0)
    equal_runs(net, model, randn(3, 4))
    model.shift = torch.ones(4).double()
    equal_runs(net, model, randn(3, 4))


def test_plain_tensor_attribute_is_used() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = randn(4, seed=4)
            self.f = mlp()

        def forward(self, x1: Tensor, x2: Tensor) -> Any:
            return x1 + self.f(x2) * self.table, x2 + self.table

    agree(Net(), *pair())


def test_parametrized_module_is_right() -> None:
    model = TwoStreams()
    nn.utils.parametrizations.weight_norm(model.block.f[0])
    agree(model, randn(3, 4), couplings=2)


def test_spectral_norm_moves_once_as_in_plain_autograd() -> None:
    model = TwoStreams()
    nn.utils.parametrizations.spectral_norm(model.block.f[0])
    agree(model, randn(3, 4), couplings=2)


@pytest.mark.slow
def test_coupling_module_anywhere_with_keyword_arguments() -> None:
    class Masked(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            self.net = mlp(seed=seed)

        def forward(self, x: Tensor, mask: Tensor | None = None, scale: float = 1.0) -> Tensor:
            y = self.net(x) * scale
            return y if mask is None else y * mask

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(rg.Additive(Masked(index), Masked(index + 3)) for index in range(2))
            self.step = rg.Additive(Masked(9))

        def forward(self, x1: Tensor, x2: Tensor, mask: Tensor) -> Any:
            for block in self.blocks:
                x1, x2 = block(x1, x2, mask=mask)
            x1 = self.step(x1, x2, mask=mask * 2, scale=0.5)
            x2 = self.step(x2, x1, scale=x1.shape[0])
            return x1, x2

    agree(Net(), *pair(), randn(3, 1, seed=8), couplings=6)


@pytest.mark.slow
def test_coupling_modules_in_plain_sequential() -> None:
    class Affine(rg.Coupling):
        def couple(self, x: Tensor, term: Any) -> Tensor:
            return x * 2 + term

        def uncouple(self, y: Tensor, term: Any) -> Tensor:
            return (y - term) / 2

    class Wrap(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, streams: Any) -> Any:
            return self.inner(*streams)

    model = nn.Sequential(
        OrderedDict(
            split=rg.Split(),
            one=Wrap(rg.Additive(mlp(2), mlp(2, 1))),
            two=Wrap(rg.Affine(linear(2, 4), linear(2, 4, 3))),
            swap=Wrap(rg.Swap()),
            own=Wrap(Affine(mlp(2, 5), mlp(2, 6))),
            join=Wrap(rg.Concatenate()),
        )
    )
    net = agree(model, randn(3, 4), couplings=6)
    assert not [node for node in net.graph.nodes if node.kind == "boundary"]
    with torch.no_grad():
        torch.testing.assert_close(net.inverse(net(randn(3, 4))), randn(3, 4), rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_coupling_module_as_root() -> None:
    agree(rg.Additive(mlp(), mlp(seed=4)), *pair(), couplings=2)
    agree(rg.Additive(mlp()), *pair(), couplings=1)


def test_bijection_with_parameters_is_a_coupling_without_others() -> None:
    class ActNorm(rg.Coupling):
        def __init__(self) -> None:
            super().__init__()
            self.log_scale = nn.Parameter(randn(4, seed=1))
            self.shift = nn.Parameter(randn(4, seed=2))

        def couple(self, x: Tensor, term: Any) -> Tensor:
            return x * self.log_scale.exp() + self.shift

        def uncouple(self, y: Tensor, term: Any) -> Tensor:
            return (y - self.shift) * (-self.log_scale).exp()

    agree(nn.Sequential(ActNorm(), ActNorm()), randn(3, 4), couplings=2)


def test_coupling_module_of_one_stream_twice() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.step = rg.Additive(mlp())

        def forward(self, x: Tensor) -> Tensor:
            return self.step(x, x)

    with pytest.warns(rg.TraceWarning, match=r"'step' \(Additive, test_modules.*one value is given as two"):
        agree(Net(), randn(3, 4))


def test_coupling_module_with_a_plain_number_is_a_boundary() -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor, scale: float) -> Tensor:
            return torch.sin(x) * scale

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.step = rg.Additive(Scaled())

        def forward(self, x1: Tensor, x2: Tensor) -> Any:
            return self.step(x1, x2, 0.5), x2

    with pytest.warns(rg.TraceWarning, match="a stream is a parameter, a buffer or a constant"):
        agree(Net(), *pair())


def test_coupling_function_that_edits_its_input_is_refused() -> None:
    model = rg.Additive(nn.Sequential(nn.ReLU(inplace=True), linear()))
    with pytest.raises(rg.RevgraphError, match=r"in place|'f'|inputs"):
        net = rg.trace(model, *pair())
        net.plan = rg.decide(net.graph, {})
        net(*pair())[0].sum().backward()


def test_compiled_function_module_is_called() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = torch.compile(mlp(), backend="eager")

        def forward(self, x1: Tensor, x2: Tensor) -> Any:
            return x1 + self.f(x2), x2

    model = Net()
    net = rg.trace(model, *pair())
    assert [node.kind for node in net.graph.nodes if node.module.startswith("f")] == ["coupling"]
    with torch.no_grad():
        for one, two in zip(net(*pair()), model(*pair()), strict=True):
            torch.testing.assert_close(one, two, rtol=0, atol=0)


def test_boundary_subclass_is_always_one_node() -> None:
    class Whole(rg.Boundary):
        def __init__(self) -> None:
            super().__init__()
            self.block = Block()

        def forward(self, x1: Tensor, x2: Tensor) -> Any:
            return self.block(x1, x2)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.whole = Whole()

        def forward(self, x1: Tensor, x2: Tensor) -> Any:
            return self.whole(x1, x2)

    net = agree(Net(), *pair(), couplings=0)
    assert [node.name for node in net.graph.planned] == ["whole"]


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
def test_batchnorm_and_dropout_in_couplings(training: bool) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = nn.Sequential(linear(), nn.BatchNorm1d(4).double(), nn.Dropout(0.5))
            self.g = nn.Sequential(nn.BatchNorm1d(4).double(), linear(seed=5), nn.Dropout(0.2))

        def forward(self, x1: Tensor, x2: Tensor) -> Any:
            x1 = x1 + self.f(x2)
            return x1, x2 + self.g(x1)

    agree(Net().train(training), *pair(), couplings=2)


def test_functional_dropout_obeys_a_later_eval() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = mlp()

        def forward(self, x1: Tensor, x2: Tensor) -> Any:
            x2 = nn.functional.dropout(x2, 0.5, self.training)
            return x1 + nn.functional.dropout(self.f(x2), 0.5, training=self.training), x2

    model = Net()
    net = agree(model, *pair(), couplings=1)
    net.eval()
    with torch.no_grad():
        one, two = net(*pair()), model.eval()(*pair())
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])


def test_functional_dropout_of_a_submodule_obeys_its_own_flag() -> None:
    class Drop(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.dropout(x, 0.5, self.training)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop, self.f = Drop(), mlp()

        def forward(self, x1: Tensor, x2: Tensor) -> Any:
            return x1 + self.drop(self.f(x2)), x2

    model = Net()
    net = agree(model, *pair(), couplings=1)
    model.drop.eval()
    equal_runs(net, model, *pair())


@pytest.mark.slow
def test_module_held_in_a_plain_list_is_right_or_refused() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden = [mlp()]

        def forward(self, x1: Tensor, x2: Tensor) -> Any:
            return x1 + self.hidden[0](x2), x2

    try:
        rg.trace(Net(), *pair())
    except rg.TraceError as error:
        assert "submodule" in str(error) or "ModuleList" in str(error)
    else:
        agree(Net(), *pair())


@pytest.mark.slow
def test_module_made_in_forward_is_right_or_refused() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.ReLU()(x) + nn.Flatten()(x.view(3, 2, 2))

    try:
        rg.trace(Net(), randn(3, 4))
    except rg.TraceError as error:
        assert len(str(error)) > 60
    else:
        agree(Net(), randn(3, 4))


def test_module_called_by_its_forward_is_right() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f, self.block = mlp(), Block()

        def forward(self, x1: Tensor, x2: Tensor) -> Any:
            x1, x2 = self.block.forward(x1, x2)
            return x1 + self.f.forward(x2), x2

    agree(Net(), *pair(), couplings=3)


def test_method_besides_forward_is_gone_into() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f, self.g = mlp(), mlp(seed=3)

        def step(self, x: Tensor, y: Tensor) -> Tensor:
            return x + self.f(y)

        def forward(self, x1: Tensor, x2: Tensor) -> Any:
            return self.step(x1, x2), self.step(x2, x1)

    agree(Net(), *pair(), couplings=2)


def test_star_arguments_pass_through() -> None:
    class Star(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Block()

        def forward(self, *streams: Tensor, **extras: Tensor) -> Any:
            x1, x2 = self.block(*streams)
            return {"x1": x1, **{key: value * 2 for key, value in extras.items()}, "x2": x2}

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.star = Star()

        def forward(self, *args: Tensor, **kwargs: Tensor) -> Any:
            return self.star(*args, **kwargs)

    agree(Net(), *pair(), mask=randn(3, 4, seed=3), couplings=2)


def test_function_captured_from_outside_the_model() -> None:
    scale = randn(4, seed=3)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = mlp()

        def forward(self, x1: Tensor, x2: Tensor) -> Any:
            return x1 + self.f(x2) * scale, x2

    agree(Net(), *pair(), couplings=1)


def test_lambda_module_is_gone_into_or_one_node() -> None:
    class Lambda(nn.Module):
        def __init__(self, function: Any) -> None:
            super().__init__()
            self.function = function

        def forward(self, *args: Any) -> Any:
            return self.function(*args)

    model = nn.Sequential(linear(), Lambda(lambda x: torch.sin(x) * 2), Lambda(lambda x: x.chunk(2, 1)))
    agree(model, randn(3, 4), couplings=0)


def test_class_attribute_module_of_two_names_counts_parameters_once() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = linear()
            self.b = linear(seed=1)
            self.b.weight = self.a.weight

        def forward(self, x1: Tensor, x2: Tensor) -> Any:
            return x1 + self.a(x2), x2 - torch.tanh(self.b(x1))

    agree(Net(), *pair())


def test_frozen_parameters_stay_without_gradient() -> None:
    model = TwoStreams()
    model.block.f.requires_grad_(False)
    model.block.g[0].weight.requires_grad_(False)
    agree(model, randn(3, 4), couplings=2)


def test_state_dict_has_the_keys_of_the_model() -> None:
    model = TwoStreams()
    net = rg.trace(model, randn(3, 4))
    assert list(net.state_dict()) == list(model.state_dict())
    assert all(one is two for one, two in zip(net.parameters(), model.parameters(), strict=True))
