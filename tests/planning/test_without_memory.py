"""Costs from tensors without memory are those of tensors with memory, and of a step that is measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from planning.corpus import tracker
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import revgraph as rg
from revgraph import costs

CONSTANT = torch.tensor([0.5, 1.0, 1.5])
MASK = torch.ones(1, 3, dtype=torch.bool)


def lengths_of(count: int, length: int) -> Tensor:
    return torch.full((count,), length)


def temporal(x: Tensor) -> Tensor:
    """Three labels for each of four samples, in five steps of time."""
    scores = torch.stack([x] * 5).log_softmax(-1)
    labels = torch.ones(4, 3, dtype=torch.long, device=x.device)
    return F.ctc_loss(scores, labels, lengths_of(4, 5), lengths_of(4, 3))


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    **{
        f"{loss.__name__} {reduction}": lambda x, loss=loss, reduction=reduction: loss(
            torch.sigmoid(x), x.detach() * 0 + 0.5, reduction=reduction
        )
        for loss in (F.mse_loss, F.smooth_l1_loss, F.soft_margin_loss, F.binary_cross_entropy, F.l1_loss)
        for reduction in ("mean", "sum", "none")
    },
    "loss against one row": lambda x: F.mse_loss(x, x.new_zeros(1, 3).expand(4, 3)),
    "fold of patches that overlap": lambda x: F.fold(F.unfold(x.view(1, 1, 4, 3), 2), (4, 3), 2),
    "temporal classification": temporal,
    "constant": lambda x: x * CONSTANT,
    "view of a constant": lambda x: torch.tanh(x * CONSTANT.view(1, 3).expand(4, 3)),
    "mask of the file": lambda x: torch.where(MASK.expand(4, 3), x.exp(), x),
}


class Autocast(nn.Module):
    """Casts of its parameters are made once, and go as the block ends."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return torch.tanh(self.layer(self.layer(x))).float()


class Through(nn.Module):
    """A layer, and a function of what it gives."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.function = nn.Linear(3, 3), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.layer(x))


class Bag(nn.Module):
    def __init__(self, mode: str) -> None:
        super().__init__()
        self.bag, self.out = nn.EmbeddingBag(12, 6, mode=mode), nn.Linear(6, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(torch.relu(self.bag(ids)))


MODELS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    **{name: (lambda each=each: Through(each), torch.randn(4, 3)) for name, each in FUNCTIONS.items()},
    "autocast within": (lambda: Through(Autocast()), torch.randn(4, 3)),
    **{
        f"bag of embeddings, {mode}": (lambda mode=mode: Bag(mode), torch.randint(12, (4, 5)))
        for mode in ("sum", "mean", "max")
    },
}


def costs_of(graph: rg.Graph) -> dict[str, Any]:
    return {node.name: node.cost for node in graph.nodes}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_tensors_without_memory_cost_what_those_with_memory_do(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, x = MODELS[name]
    with_memory = rg.trace(make(), x)
    monkeypatch.setattr(costs, "SMALL", 0)
    net = rg.trace(make(), x)
    assert costs_of(net.graph) == costs_of(with_memory.graph)
    for decision in ("keep", "recompute"):
        plan = net.plan = rg.decide(net.graph, {node.name: decision for node in net.graph.planned})
        with net.comparing(False):
            tracked = tracker.track(net, x)
            assert (tracked.peak_bytes, tracked.held_bytes) == (plan.peak_bytes, plan.held_bytes)


class Scaled(rg.Coupling):
    """A coupling of one's own, which is tried on numbers where there are any."""

    def couple(self, x: Tensor, term: Tensor) -> Tensor:
        return 2 * x + term

    def uncouple(self, y: Tensor, term: Tensor) -> Tensor:
        return (y - term) / 2


@pytest.mark.slow
@pytest.mark.parametrize("where", ["meta device", "fake tensors"])
def test_couplings_of_ones_own_are_planned_without_memory(where: str) -> None:
    def made() -> tuple[nn.Module, list[Tensor]]:
        return Scaled(nn.Linear(4, 4), nn.Linear(4, 4)), [torch.zeros(3, 4), torch.zeros(3, 4)]

    with torch.device("meta") if where == "meta device" else FakeTensorMode():
        model, inputs = made()
    plan = rg.trace(model, *inputs).plan
    real, numbers = made()
    expected = rg.trace(real, *numbers).plan
    assert plan.decisions == expected.decisions
    assert (plan.peak_bytes, plan.held_bytes) == (expected.peak_bytes, expected.held_bytes)
