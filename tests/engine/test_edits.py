"""What must not change between forward and backward: the error names it, never a wrong gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from engine.samples import Chain, Pair, assert_close, batch, doubled, inverted, loss_of, normed, step
from torch import Tensor, nn

import revgraph as rg

pytestmark = pytest.mark.usefixtures("device")


def test_an_edit_of_the_output_is_refused_by_name() -> None:
    model, _ = doubled(Chain)
    x = batch()
    output = inverted(model, x)(x)
    loss = loss_of(output * 1.0)
    with torch.no_grad():
        output.add_(1)
    with pytest.raises(rg.ReplayError, match=r"'join'.*edited in place"):
        loss.backward()


def test_an_edit_of_an_output_stream_is_refused_by_name() -> None:
    model, _ = doubled(Pair)
    x1, x2 = batch(3, 4, seed=1), batch(3, 4, seed=2)
    y1, y2 = inverted(model, x1, x2)(x1, x2)
    loss = loss_of((y1 * 1.0, y2 * 1.0))
    with torch.no_grad():
        y2.zero_()
    with pytest.raises(rg.ReplayError, match=r"'g'.*edited in place"):
        loss.backward()


def test_an_edit_of_a_stored_input_is_refused_by_name() -> None:
    model, _ = doubled(lambda: Pair(nn.Linear(4, 4), nn.Linear(4, 4)))
    x1, x2 = batch(3, 4, seed=1), batch(3, 4, seed=2)
    net = inverted(model, x1, x2)
    net.plan = rg.decide(net.graph, {"f": "recompute", "g": "recompute"})
    loss = loss_of(net(x1, x2))
    with torch.no_grad():
        x2.mul_(2)
    with pytest.raises(rg.ReplayError, match=r"'x2'.*edited in place"):
        loss.backward()


def test_an_edit_of_an_anchor_is_refused_by_name() -> None:
    class Out(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = Pair(), Pair()

        def forward(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, ...]:
            a, b = self.one(x1, x2)
            return a, *self.two(a, b)

    model, _ = doubled(Out)
    x1, x2 = batch(3, 4, seed=1), batch(3, 4, seed=2)
    net = inverted(model, x1, x2)
    anchor = next(node.outputs[0] for node in net.graph.nodes if node.module == "one.f")
    net.plan = rg.decide(net.graph, {}, anchors=[anchor])
    a, *ends = net(x1, x2)
    loss = loss_of(ends)
    with torch.no_grad():
        a.add_(1)
    with pytest.raises(rg.ReplayError, match=f"{anchor!r}.*edited in place"):
        loss.backward()


def test_an_edit_through_a_view_is_refused() -> None:
    model, _ = doubled(Chain)
    x = batch()
    output = inverted(model, x)(x)
    loss = loss_of(output * 1.0)
    with torch.no_grad():
        output[0, :2].fill_(7)
    with pytest.raises(rg.ReplayError, match="edited in place"):
        loss.backward()


def test_an_edit_of_what_no_replay_reads_is_allowed() -> None:
    model, plain = doubled(lambda: nn.Sequential(Chain(), nn.Linear(8, 2)))
    x = batch()
    net = inverted(model, x)
    results = []
    for run, leaves in ((net, model), (plain, plain)):
        output = run(x)
        loss = output.sum()
        with torch.no_grad():
            output.add_(1)
        results.append(torch.autograd.grad(loss, [x, *leaves.parameters()]))
    assert_close(*results)


@pytest.mark.parametrize("foreach", [True, False])
def test_an_optimizer_step_between_forward_and_backward_is_refused(foreach: bool) -> None:
    model, _ = doubled(Chain)
    x = batch()
    net = inverted(model, x)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, foreach=foreach)
    first, second = net(x), net(x)
    loss_of(first).backward()
    optimizer.step()
    with pytest.raises(rg.ReplayError, match=r"parameter or buffer of node 'blocks\.2\.g' was changed"):
        loss_of(second).backward()


def test_a_bias_alone_changed_between_forward_and_backward_is_refused() -> None:
    model, _ = doubled(Chain)
    x = batch()
    loss = loss_of(inverted(model, x)(x))
    with torch.no_grad():
        model.blocks[1].f[0].bias.add_(1)
    with pytest.raises(rg.ReplayError, match=r"'blocks\.1\.f'"):
        loss.backward()


@pytest.mark.parametrize("how", ["data", "assign", "setattr"])
def test_a_parameter_replaced_between_forward_and_backward_is_right_or_refused(how: str) -> None:
    model, plain = doubled(Chain)
    x = batch()
    expected = torch.autograd.grad(loss_of(plain(x)), x)
    loss = loss_of(inverted(model, x)(x))
    linear = model.blocks[1].f[0]
    other = torch.full_like(linear.bias, 3.0)
    if how == "data":
        linear.bias.data = other
    elif how == "assign":
        model.load_state_dict({**model.state_dict(), "blocks.1.f.0.bias": other}, assign=True)
    else:
        linear.bias = nn.Parameter(other)
    try:
        found = torch.autograd.grad(loss, x)
    except rg.ReplayError as error:
        assert "was changed or replaced between forward and backward" in str(error)
    else:
        assert_close(found, expected)


def test_a_buffer_changed_between_forward_and_backward_is_refused() -> None:
    model, _ = doubled(lambda: Chain(f=normed))
    x = batch()
    net = inverted(model, x).eval()
    loss = loss_of(net(x))
    model.blocks[0].f[1].running_mean.add_(1)
    with pytest.raises(rg.ReplayError, match=r"'blocks\.0\.f'"):
        loss.backward()


class EditsInput(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        x += 1.0
        return torch.tanh(self.linear(x))


class HiddenEdit(rg.Boundary, EditsInput):
    pass


class ReluFirst(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.ReLU(inplace=True), nn.Linear(4, 4))


@pytest.mark.parametrize("kind", [EditsInput, HiddenEdit, ReluFirst])
@pytest.mark.parametrize("module", [True, False])
def test_a_function_that_edits_its_input_is_right_or_a_clear_error(kind: Any, module: bool) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pair = rg.Additive(kind(), kind()) if module else Pair(kind(), kind())

        def forward(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
            return self.pair(x1 * 1.0, x2 * 1.0)

    model, plain = doubled(Net)
    x1, x2 = batch(3, 4, seed=1), batch(3, 4, seed=2)
    expected = [*plain(x1, x2), *step(plain, plain, x1, x2)]
    try:
        net = inverted(model, x1, x2)
        found = [*net(x1, x2), *step(net, model, x1, x2)]
    except rg.RevgraphError as error:
        assert "in place" in str(error) and "pair" in str(error)
    else:
        assert_close(found, expected)


class Moody(rg.Boundary):
    """Saves another number of tensors, or another shape, at its second call."""

    def __init__(self, mood: str) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.mood, self.calls = mood, [0]  # in a list, where nothing puts it back

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "meta" or type(x) is not Tensor:
            return self.linear(x)
        self.calls[0] += 1
        y = self.linear(x)
        if self.mood == "more":
            return torch.tanh(y) if self.calls[0] > 1 else y
        if self.mood == "fewer":
            return torch.tanh(y) if self.calls[0] == 1 else y
        return torch.exp(y[:, : 4 if self.calls[0] == 1 else 2]).sum(1, keepdim=True).expand(-1, 4)


@pytest.mark.parametrize("mood", ["more", "fewer", "shape"])
def test_a_replay_that_saves_other_tensors_is_refused_by_name(mood: str) -> None:
    model, _ = doubled(lambda: Pair(Moody(mood), nn.Linear(4, 4)))
    x1, x2 = batch(3, 4, seed=1), batch(3, 4, seed=2)
    net = inverted(model, x1, x2)
    assert "f" in [node.name for node in net.graph.nodes if node.kind == "coupling"]
    model.f.calls[0] = 0
    loss = loss_of(net(x1, x2))
    with pytest.raises(rg.ReplayError, match=r"replay of node 'f'.*differs from its forward"):
        loss.backward()


def test_the_net_is_usable_after_a_refused_backward() -> None:
    model, plain = doubled(Chain)
    x = batch()
    net = inverted(model, x)
    output = net(x)
    loss = loss_of(output * 1.0)
    with torch.no_grad():
        output.add_(1)
    with pytest.raises(rg.ReplayError):
        loss.backward()
    assert_close(step(net, model, x), step(plain, plain, x))
