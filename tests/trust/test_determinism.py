"""A function that gives other values at its replay is an error with the node's name; drift alone is none."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy
import pytest
import torch
from engine.samples import Chain, assert_close, batch, counted, couplings, doubled, inverted, loss_of, step
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import revgraph as rg
from revgraph.engine.saved_tensors import KINDS, departs, sample


class Own(rg.Boundary):
    """A function with a source of change that torch knows nothing of."""

    def __init__(self, change: Callable[[Own, Tensor], Tensor], width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.change = change
        self.calls = [0]  # in a list, where nothing puts it back
        self.factor = 1.0

    def forward(self, x: Tensor) -> Tensor:
        self.calls[0] += 1
        return torch.tanh(self.change(self, self.linear(x)))


def by_python(own: Own, y: Tensor) -> Tensor:
    return y * (1 + random.random())


def by_numpy(own: Own, y: Tensor) -> Tensor:
    return y + torch.from_numpy(numpy.random.standard_normal(y.shape) * 0.05).to(y)


def by_own_generator(own: Own, y: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(own.calls[0])
    return y * (torch.rand(y.shape, generator=generator) + 0.5).to(y)


def by_counter(own: Own, y: Tensor) -> Tensor:
    return y / own.calls[0]


def by_stale_memory(own: Own, y: Tensor) -> Tensor:
    before, own.last = getattr(own, "last", torch.zeros_like(y)), y.detach()
    return y + before


def by_attribute(own: Own, y: Tensor) -> Tensor:
    return y * own.factor


SOURCES = [by_python, by_numpy, by_own_generator, by_counter, by_stale_memory]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("choice", ["invert", "recompute"])
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.__name__)
def test_a_function_that_is_not_deterministic_is_refused_by_name(
    source: Callable[[Own, Tensor], Tensor], choice: str, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    random.seed(0)  # for two draws may be one by chance
    numpy.random.seed(0)
    model = Chain(3, lambda width: Own(source, width), 8).to(dtype)
    x = batch(4, 16).detach().to(dtype).requires_grad_()
    net = rg.trace(model, x)
    net.plan = rg.decide(net.graph, {name: choice for name in couplings(net.graph)})
    loss = loss_of(net(x))
    with pytest.raises(rg.ReplayError, match=r"replay of node 'blocks\.2\.g'.*other values") as caught:
        loss.backward()
    assert "decisions {'blocks.2.g': 'keep'}" in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("place", range(3))
def test_one_such_function_among_others_is_found_at_its_place(place: int) -> None:
    model, _ = doubled(Chain)
    model.blocks[place].f = Own(by_python, 4).double()
    x = batch()
    net = inverted(model, x)
    with pytest.raises(rg.ReplayError, match=rf"'blocks\.{place}\.f'.*other values"):
        loss_of(net(x)).backward()


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.__name__)
def test_such_a_function_may_be_kept(source: Callable[[Own, Tensor], Tensor]) -> None:
    def gradients(keeps: bool) -> list[Tensor | None]:
        model, plain = doubled(Chain)
        for run in (model, plain):
            run.blocks[1].f = Own(source, 4).double()
        plain.load_state_dict(model.state_dict())
        x = batch()
        if not keeps:
            return step(plain, plain, x)
        net = rg.trace(model, x)
        net.plan = rg.decide(net.graph, {"blocks.1.f": "keep"})
        model.blocks[1].f.calls[0] = 0
        vars(model.blocks[1].f).pop("last", None)
        return step(net, model, x)

    found = []
    for keeps in (True, False):
        torch.manual_seed(3)
        random.seed(3)
        numpy.random.seed(3)
        found.append(gradients(keeps))
    assert_close(*found)


def test_an_attribute_changed_between_forward_and_backward_is_refused() -> None:
    model, _ = doubled(lambda: Chain(1, lambda width: Own(by_attribute, width)))
    x = batch()
    net = inverted(model, x)
    loss = loss_of(net(x))
    model.blocks[0].g.factor = 2.0
    with pytest.raises(rg.ReplayError, match=r"'blocks\.0\.g'.*other values"):
        loss.backward()


def test_a_function_that_turns_random_later_is_found_within_sixteen_steps() -> None:
    def late(own: Own, y: Tensor) -> Tensor:
        return y * random.random() if own.factor > 1 else y

    model, _ = doubled(lambda: Chain(1, lambda width: Own(late, width)))
    x = batch()
    net = inverted(model, x)
    for _ in range(37):
        step(net, model, x)
    model.blocks[0].f.factor = 2.0
    with pytest.raises(rg.ReplayError, match=r"'blocks\.0\.f'.*other values"):
        for _ in range(16):
            step(net, model, x)
    with pytest.raises(rg.ReplayError, match=r"'blocks\.0\.f'.*other values"):
        rg.check(net, x)


def test_the_net_is_usable_after_such_a_refusal() -> None:
    model, plain = doubled(lambda: Chain(2, lambda width: Own(by_attribute, width)))
    x = batch()
    net = inverted(model, x)
    loss = loss_of(net(x))
    model.blocks[1].g.factor = 2.0
    with pytest.raises(rg.ReplayError):
        loss.backward()
    model.blocks[1].g.factor = 1.0
    assert_close(step(net, model, x), step(plain, plain, x))


def test_zeros_without_memory_are_not_read() -> None:
    """Torch writes some zeros nowhere; they have an address, and nothing is there."""
    zeros = torch._efficientzerotensor((4, 4))
    assert sample(zeros) == b""
    freed = torch.ones(4)
    freed.untyped_storage().resize_(0)
    assert sample(freed) == b""


@pytest.mark.parametrize("dtype", list(KINDS), ids=str)
def test_samples_tell_changes_from_rounding_in_any_layout(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    tensor = torch.randn(6, 5, dtype=torch.float64)
    for each in (tensor, tensor.T, tensor[:, 1:4], tensor[1::2], tensor[0, 0], tensor[:0]):
        plain = each.to(dtype)
        rounded = (each * (1 + torch.finfo(dtype).eps)).to(dtype)
        changed = (each * 1.5).to(dtype)
        for before in (plain, plain.contiguous()):
            for now in (rounded, rounded.contiguous()):
                assert not departs(sample(before), sample(now), now)
            assert departs(sample(before), sample(changed), changed) == (each.numel() > 0)
        gone = torch.full_like(plain, torch.nan)
        assert departs(sample(plain), sample(gone), gone) == (each.numel() > 0)
        assert not departs(sample(gone), sample(gone), gone)


def steep(width: int) -> nn.Module:
    made = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(3)
    return made


def test_drift_is_not_taken_for_it() -> None:
    """Weights threefold, 24 blocks, float32: what is rebuilt has nothing in common with what was there."""
    torch.manual_seed(0)
    model = Chain(24, steep, 16)
    x = torch.randn(8, 32, requires_grad=True)
    net = inverted(model, x)
    assert max(rg.check(net, x).drift.values()) > 1e-2
    for _ in range(3):
        loss_of(net(x)).backward()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_the_comparison_costs_no_evaluation_and_no_flop(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = Chain(6, lambda width: nn.Sequential(nn.Linear(width, width), nn.Tanh()), 8).to(dtype)
    x = torch.randn(4, 16, dtype=dtype, requires_grad=True)
    net = inverted(model, x)
    with counted(model, nn.Sequential) as calls, FlopCounterMode(display=False) as counter:
        loss_of(net(x)).backward()
    assert set(calls.values()) == {2}
    forward_and_gradients = 12 * (2 * 4 * 8 * 8) * 3
    assert counter.get_total_flops() <= forward_and_gradients * 4 // 3
