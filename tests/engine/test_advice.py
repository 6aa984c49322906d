"""What changes between forward and backward: right as in the plain model, or an error with fitting advice.

Each change comes after the first forward, and again after a dozen, when a net may have settled on a leaner
path.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from engine.kinds import (
    Weave,
    follow,
    leaves_of,
    loss_of,
    made_twice,
    plans,
    right_or_refused,
    settle,
    two_streams,
)
from engine.samples import assert_close
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

import revgraph as rg


class Function(nn.Module):
    """Two layers, dropout, and a running mean that is read and moved."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.extra = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.extra.requires_grad_(False)
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.one(x) - self.mean)
        if self.training:
            self.mean.lerp_(y.detach().mean(0), 0.1)
        y = functional.dropout(y, 0.3, self.training)
        return self.two(y + torch.sin(self.extra(y)))


def set_data(parameter: Tensor) -> None:
    parameter.data = parameter.data * 1.5


def set_parameter(layer: Any, name: str) -> None:
    setattr(layer, name, nn.Parameter(getattr(layer, name).detach() * 1.5))


def optimized(kind: type[torch.optim.Optimizer], **options: Any) -> Callable[[Any, Any], None]:
    def change(model: Any, inputs: Any) -> None:
        optimizer = kind(model.parameters(), lr=0.1, **options)  # pyright: ignore
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
        optimizer.step()
        optimizer.zero_grad()

    return change


def loaded(assign: bool) -> Callable[[Any, Any], None]:
    def change(model: Any, inputs: Any) -> None:
        state = {name: value * 1.5 for name, value in model.state_dict().items()}
        model.load_state_dict(state, assign=assign)

    return change


@torch.no_grad()
def edit(tensor: Tensor) -> None:
    tensor.mul_(1.5)


def edit_data(tensor: Tensor) -> None:
    tensor.data.mul_(1.5)


def assign_buffer(model: Any, inputs: Any) -> None:
    model.fs[1].mean = model.fs[1].mean + 0.5


def replace_module(model: Any, inputs: Any) -> None:
    model.fs[1] = nn.Linear(4, 4, dtype=torch.double)


def replace_layer(model: Any, inputs: Any) -> None:
    model.fs[1].one = nn.Linear(4, 4, dtype=torch.double)


def add_hook(model: Any, inputs: Any) -> None:
    model.fs[1].one.register_forward_hook(lambda module, args, output: output * 2)


class Symmetric(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.triu() + x.triu(1).t()


def parametrized(model: Any, inputs: Any) -> None:
    parametrize.register_parametrization(model.fs[1].one, "weight", Symmetric())


@dataclass(frozen=True)
class Change:
    """What is done between forward and backward, and what an error about it has to say."""

    do: Callable[[Any, Any], Any]
    says: str


PARAMETER = "(?i)parameter"
CHANGES: dict[str, Change] = {
    "weight frozen": Change(lambda m, i: m.fs[1].one.weight.requires_grad_(False), "requires_grad"),
    "bias frozen": Change(lambda m, i: m.fs[1].one.bias.requires_grad_(False), "requires_grad"),
    "weight thawed": Change(lambda m, i: m.fs[1].extra.weight.requires_grad_(True), "requires_grad"),
    "all frozen but one": Change(lambda m, i: m.fs[1].requires_grad_(False), "requires_grad"),
    "input frozen": Change(lambda m, i: i[0].requires_grad_(False), "requires_grad"),
    "weight edited": Change(lambda m, i: edit(m.fs[1].one.weight), PARAMETER),
    "bias edited": Change(lambda m, i: edit(m.fs[1].one.bias), PARAMETER),
    "frozen weight edited": Change(lambda m, i: edit(m.fs[1].extra.weight), PARAMETER),
    "weight edited through data": Change(lambda m, i: edit_data(m.fs[1].one.weight), PARAMETER),
    "bias edited through data": Change(lambda m, i: edit_data(m.fs[1].one.bias), PARAMETER),
    "frozen weight edited through data": Change(lambda m, i: edit_data(m.fs[1].extra.weight), PARAMETER),
    "data of a weight replaced": Change(lambda m, i: set_data(m.fs[1].one.weight), PARAMETER),
    "data of a bias replaced": Change(lambda m, i: set_data(m.fs[1].one.bias), PARAMETER),
    "weight replaced": Change(lambda m, i: set_parameter(m.fs[1].one, "weight"), PARAMETER),
    "bias replaced": Change(lambda m, i: set_parameter(m.fs[1].one, "bias"), PARAMETER),
    "sgd": Change(optimized(torch.optim.SGD), PARAMETER),
    "adam, each by itself": Change(optimized(torch.optim.Adam, foreach=False), PARAMETER),
    "adam, fused": Change(optimized(torch.optim.Adam, fused=True), PARAMETER),
    "state loaded": Change(loaded(False), PARAMETER),
    "state assigned": Change(loaded(True), PARAMETER),
    "moved to single precision": Change(lambda m, i: m.float(), PARAMETER),
    "moved to half precision": Change(lambda m, i: m.fs[1].half(), PARAMETER),
    "buffer edited": Change(lambda m, i: edit(m.fs[1].mean), "(?i)buffer"),
    "buffer edited through data": Change(lambda m, i: m.fs[1].mean.data.add_(0.5), "(?i)buffer"),
    "buffer replaced": Change(assign_buffer, "(?i)buffer"),
    "module replaced": Change(replace_module, "(?i)module|replaced"),
    "layer replaced": Change(replace_layer, "(?i)module|parameter|replaced"),
    "hook added": Change(add_hook, "(?i)hook"),
    "parametrization added": Change(parametrized, "(?i)parametri|parameter"),
    "stored input edited": Change(
        lambda m, i: edit(i[1]), "(?i)edited in place.*clone|clone.*edited in place"
    ),
}

# What a replay is not to notice at all.
SAFE: dict[str, Callable[[Any, Any], Any]] = {
    "nothing": lambda m, i: None,
    "evaluation": lambda m, i: m.eval(),
    "one function in evaluation": lambda m, i: m.fs[1].eval(),
    "seeded": lambda m, i: torch.manual_seed(99),
    "numbers drawn": lambda m, i: torch.rand(7),
    "gradients cleared": lambda m, i: m.zero_grad(),
    "gradients set": lambda m, i: [setattr(p, "grad", torch.ones_like(p)) for p in m.parameters()],
    "hook on a parameter": lambda m, i: m.fs[1].one.weight.register_hook(lambda grad: None),
    "another forward": lambda m, i: m(i[0] * 2, i[1]),
    "a forward without gradients": lambda m, i: torch.no_grad()(m)(*i),
    "state read": lambda m, i: m.state_dict(),
    "attribute added": lambda m, i: setattr(m.fs[1], "note", "none"),
    "collected": lambda m, i: gc.collect(),
}


def prepared(plan: str, late: bool) -> tuple[Any, Any, tuple[Tensor, Tensor]]:
    net, plain = copy.deepcopy(traced(plan))
    inputs = two_streams()
    if late:
        settle(net, plain, inputs, 11)
    return net, plain, inputs


@cache
def traced(plan: str) -> tuple[Any, Any]:
    """A net under a plan that is never run, but copied for every test, and the plain model."""
    model, plain = made_twice(lambda: Weave(Function))
    net = rg.trace(model, *two_streams())
    (net.plan,) = plans(net, plan)
    return net, plain


def differentiated(run: Any, inputs: Any, change: Callable[[Any, Any], Any]) -> list[Tensor | None]:
    """Gradients of what still requires one, with a change between forward and backward."""
    torch.manual_seed(7)
    inputs = [each.detach().clone().requires_grad_() for each in inputs]
    leaves = leaves_of(run, inputs)
    loss = loss_of(run(*inputs))
    change(run, inputs)
    now = [leaf for leaf in leaves if leaf.requires_grad]
    return list(torch.autograd.grad(loss, now, allow_unused=True))


LATE = pytest.mark.parametrize("late", [False, True], ids=["first", "late"])


@pytest.mark.slow
@LATE
@pytest.mark.parametrize("name", CHANGES)
def test_a_change_before_backward_is_right_or_refused_with_fitting_advice(name: str, late: bool) -> None:
    net, plain, inputs = prepared("inverted", late)
    change = CHANGES[name]
    try:
        expected = differentiated(plain, inputs, change.do)
    except RuntimeError:
        expected = None  # ordinary autograd refuses it too, for instance an edit of a saved tensor
    try:
        found = differentiated(net, inputs, change.do)
    except rg.RevgraphError as error:
        text = str(error)
        assert "deterministic" not in text and "retain_graph" not in text, f"blames another cause: {text}"
        with right_or_refused("'fs.", "'b'", says=change.says):
            raise
    except RuntimeError as error:
        assert expected is None and "modified by an inplace operation" in str(error)
    else:
        assert expected is not None, "right where ordinary autograd sees a conflict?"
        assert_close(found, expected, 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", SAFE)
def test_what_a_replay_does_not_depend_on_may_change(name: str) -> None:
    net, plain, inputs = prepared("inverted", late=True)
    found, expected = (differentiated(run, inputs, SAFE[name]) for run in (net, plain))
    assert_close(found, expected, 1e-9)


@pytest.mark.slow
@LATE
def test_another_plan_before_backward(late: bool) -> None:
    """A plan counts from the next forward on."""
    net, plain, inputs = prepared("inverted", late)

    def change(run: Any, _: Any) -> None:
        if run is net:
            net.plan = rg.keep_all(net.graph)

    found, expected = (differentiated(run, inputs, change) for run in (net, plain))
    assert_close(found, expected, 1e-9)
    follow(net, plain, inputs, 3)


@pytest.mark.slow
def test_the_net_may_go_before_backward() -> None:
    net, plain, inputs = prepared("inverted", False)
    leaves = [leaves_of(run, inputs) for run in (net, plain)]
    losses = []
    for run in (net, plain):
        torch.manual_seed(7)
        losses.append(loss_of(run(*inputs)))
    del net, run
    gc.collect()
    found, expected = (torch.autograd.grad(*each) for each in zip(losses, leaves, strict=True))
    assert_close(found, expected, 1e-9)


@pytest.mark.slow
@LATE
@pytest.mark.parametrize("plan", ["least", "inverted"])
def test_an_output_edited_before_backward_is_refused(plan: str, late: bool) -> None:
    net, _, inputs = prepared(plan, late)
    outputs = net(*inputs)
    loss = loss_of([each * 1.0 for each in outputs])
    with torch.no_grad():
        outputs[1].zero_()
    with pytest.raises(rg.ReplayError, match=r"(?s)'fs\.2'.*edited in place.*clone") as caught:
        loss.backward()
    assert "deterministic" not in str(caught.value)


@pytest.mark.slow
@LATE
def test_an_output_that_no_replay_reads_may_be_edited(late: bool) -> None:
    """Under the default plan it is made by a node that is kept."""
    net, plain, inputs = prepared("default", late)
    found = []
    for run in (net, plain):
        torch.manual_seed(7)
        outputs = run(*inputs)
        loss = loss_of([each * 1.0 for each in outputs])
        with torch.no_grad():
            outputs[1].zero_()
        found.append(torch.autograd.grad(loss, leaves_of(run, inputs)))
    assert_close(*found, 1e-9)


class Changing(rg.Boundary):
    """Another function at every call."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.calls = nn.Linear(4, 4), [0]  # inside a list, where nothing can be put back

    def forward(self, x: Tensor) -> Tensor:
        if type(x) is Tensor and x.device.type == "cpu":
            self.calls[0] += 1
        return torch.tanh(self.linear(x) * (1 + self.calls[0] % 7))


@pytest.mark.parametrize("plan", ["recomputed", "inverted"])
def test_a_function_that_differs_from_itself_is_called_so(plan: str) -> None:
    model, _ = made_twice(lambda: Weave(Changing))
    inputs = two_streams()
    net = rg.trace(model, *inputs)
    (net.plan,) = plans(net, plan)
    with pytest.raises(rg.ReplayError, match=r"'fs\.\d'.*deterministic.*keep") as caught:
        loss_of(net(*inputs)).backward()
    assert "retain_graph" not in str(caught.value) and "edited" not in str(caught.value)


class EditsItsInput(nn.Module):
    def __init__(self, through_data: bool) -> None:
        super().__init__()
        self.linear, self.through_data = nn.Linear(4, 4), through_data

    def forward(self, x: Tensor) -> Tensor:
        if self.through_data:
            x.data.add_(1.0)
        else:
            x.add_(1.0)
        return torch.tanh(self.linear(x))


class OpaqueEdits(rg.Boundary, EditsItsInput):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("kind", [EditsItsInput, OpaqueEdits])
@pytest.mark.parametrize("through_data", [False, True])
@pytest.mark.parametrize("plan", ["inverted", "recomputed"])
def test_a_function_that_edits_its_input_is_right_or_called_so(
    plan: str, through_data: bool, kind: type[EditsItsInput]
) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weave = Weave(lambda: kind(through_data))

        def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
            return self.weave(a * 1.0, b * 1.0)

    model, plain = made_twice(Net)
    inputs = two_streams()
    with right_or_refused("weave", says="(?i)in place|edits"):
        net = rg.trace(model, *inputs)
        (net.plan,) = plans(net, plan)
        follow(net, plain, inputs, 12)


AGAIN = r"(?i)retain_graph|a second time"


@pytest.mark.slow
@LATE
@pytest.mark.parametrize("plan", ["default", "inverted", "recomputed"])
def test_a_second_backward_asks_to_retain_the_graph(plan: str, late: bool) -> None:
    net, _, inputs = prepared(plan, late)
    loss = loss_of(net(*inputs))
    loss.backward()
    with pytest.raises((rg.RevgraphError, RuntimeError), match=AGAIN) as caught:
        loss.backward()
    assert "deterministic" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("plan", ["default", "inverted", "recomputed"])
def test_the_rest_of_a_graph_that_went_asks_to_retain_it(plan: str) -> None:
    """Two losses of one forward: the first backward takes what the second needs."""
    net, plain, inputs = prepared(plan, False)
    for run in (plain, net):
        one, two = run(*inputs)
        one.sum().backward()
        with pytest.raises((rg.RevgraphError, RuntimeError), match=AGAIN) as caught:
            two.sum().backward()
    assert "deterministic" not in str(caught.value)


@pytest.mark.slow
@LATE
@pytest.mark.parametrize("plan", ["default", "inverted", "recomputed"])
def test_a_retained_graph_gives_the_same_as_often_as_asked(plan: str, late: bool) -> None:
    net, plain, inputs = prepared(plan, late)
    results = []
    for run in (net, plain):
        torch.manual_seed(7)
        loss = loss_of(run(*inputs))
        leaves = leaves_of(run, inputs)
        results.append(
            [g for keep in (True, True, False) for g in torch.autograd.grad(loss, leaves, retain_graph=keep)]
        )
    assert_close(*results, 1e-9)


@pytest.mark.slow
@LATE
@pytest.mark.parametrize("plan", ["least", "inverted"])
def test_a_net_is_usable_after_a_refusal(plan: str, late: bool) -> None:
    net, plain, inputs = prepared(plan, late)
    for run in (plain, net):
        torch.manual_seed(7)
        outputs = run(*inputs)
    loss = loss_of([each * 1.0 for each in outputs])
    with torch.no_grad():
        outputs[1].zero_()
    with pytest.raises(rg.ReplayError):
        loss.backward()
    follow(net, plain, inputs, 3)
