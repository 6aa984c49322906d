"""Costs that hold from one trace to the next: equal to those recorded anew, and never the user's code's."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from engine.random_nets import BATCH, WIDTH, RandomNet, recipes
from hypothesis import Phase, given, seed, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import revgraph as rg
from revgraph.costs import known, sweeping

TIMES = 1


class Wide(nn.Module):
    """Code of the user's, whose work depends on a global."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x] * TIMES, -1).tanh()[..., : x.shape[-1]]


class Streams(nn.Module):
    def __init__(self, function: Callable[[], nn.Module], blocks: int = 2) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(rg.Additive(function(), function()) for _ in range(blocks))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x1, x2 = self.head.weight.sum() + x, x * 2
        for block in self.blocks:
            x1, x2 = block(x1, x2)
        return self.head(x1 + x2)


def frozen() -> nn.Module:
    return nn.Linear(8, 8).requires_grad_(False)


def hooked() -> nn.Module:
    layer = nn.Linear(8, 8)
    layer.register_forward_hook(lambda module, args, result: result * 2)
    return layer


MODELS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(8, 8),
    "sequence": lambda: nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)),
    "dropout": lambda: nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5)),
    "evaluated": lambda: nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5)).eval(),
    "batch norm": lambda: nn.BatchNorm1d(8),
    "frozen": frozen,
    "hooked": hooked,
    "shared": lambda: nn.Sequential(*[nn.Linear(8, 8)] * 2),
    "not shared": lambda: nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)),
    "recurrent": lambda: nn.Sequential(nn.Linear(8, 8), nn.Unflatten(1, (1, 8)), nn.Flatten()),
    "user's": Wide,
}


@pytest.fixture(autouse=True)
def nothing_known() -> Iterator[None]:
    known.forget()
    yield
    known.forget()


@pytest.fixture
def recordings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The nodes that are run to record them."""
    found: list[str] = []
    for name in ("record", "record_again", "record_wiring"):
        original = getattr(sweeping, name)

        def counted(model: Any, at: Any, *rest: Any, original: Any = original) -> Any:
            found.append(at.node.name)
            return original(model, at, *rest)

        monkeypatch.setattr(sweeping, name, counted)
    return found


def costs(model: nn.Module, rows: int = 4, dtype: torch.dtype = torch.float32) -> list[Any]:
    graph = rg.trace(model.to(dtype), torch.randn(rows, 8, dtype=dtype)).graph
    return [(node.name, node.cost) for node in graph.nodes]


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_known_costs_are_those_recorded_anew(name: str) -> None:
    settings = [(4, torch.float32), (4, torch.float64), (7, torch.float32)]
    anew = []
    for setting in settings:
        known.forget()
        anew.append(costs(Streams(MODELS[name]), *setting))
    known.forget()
    for other in MODELS.values():  # all that could be mixed up
        costs(Streams(other, blocks=1))
    assert [costs(Streams(MODELS[name]), *setting) for setting in settings] == anew


def test_nothing_of_torchs_own_is_recorded_again(recordings: list[str]) -> None:
    costs(Streams(MODELS["sequence"]))
    recordings.clear()
    costs(Streams(MODELS["sequence"]))
    assert recordings == []


@pytest.mark.parametrize("name", ["hooked", "user's"])
def test_what_runs_the_users_code_is_recorded_each_time(name: str, recordings: list[str]) -> None:
    costs(Streams(MODELS[name]))
    recordings.clear()
    costs(Streams(MODELS[name]))
    assert recordings


def test_costs_follow_what_the_users_code_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    before = costs(Streams(Wide))
    monkeypatch.setitem(globals(), "TIMES", 5)
    assert costs(Streams(Wide)) != before


def test_global_state_of_torchs_counts(recordings: list[str]) -> None:
    costs(Streams(MODELS["linear"]))
    recordings.clear()
    torch.use_deterministic_algorithms(True)
    try:
        costs(Streams(MODELS["linear"]))
    finally:
        torch.use_deterministic_algorithms(False)
    assert recordings


def test_no_more_is_kept_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known, "MOST", 5)
    costs(Streams(MODELS["sequence"]))
    assert len(known._known) == 5


def test_a_loss_that_counts_an_output_twice_is_another() -> None:
    class Twice(nn.Module):
        def __init__(self, times: int) -> None:
            super().__init__()
            self.times, self.layer = times, nn.Linear(8, 8)

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return (self.layer(x),) * self.times

    def loss(times: int) -> Any:
        graph = rg.trace(Twice(times), torch.randn(4, 8)).graph
        assert graph.loss is not None
        return graph.loss.cost

    first, second = loss(1), loss(2)
    known.forget()
    assert (loss(2), loss(1)) == (second, first) and first != second


@pytest.mark.slow
@pytest.mark.parametrize("number", range(3))
def test_known_costs_of_random_nets_are_those_recorded_anew(number: int) -> None:
    found: list[tuple[Any, Any]] = []

    @seed(number)
    @settings(max_examples=8, deadline=None, database=None, phases=(Phase.generate,))
    @given(recipes(), st.integers(0, 10**6))
    def run(recipe: Any, drawn: int) -> None:
        pick = random.Random(drawn)
        model, inputs = RandomNet(*recipe), [torch.randn(BATCH, WIDTH) for _ in range(recipe[0])]
        for tensor in (*inputs, *model.parameters()):
            tensor.requires_grad_(pick.random() < 0.9)
        found.append((rg.trace(model, *inputs).graph, (model, inputs)))

    run()
    for graph, (model, inputs) in found:
        known.forget()
        assert rg.trace(model, *inputs).graph == graph
