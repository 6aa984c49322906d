"""What is asked of other libraries' models finds what is right and what is not, on models written here."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from benchmarks.clients import CLIENTS
from benchmarks.clients.client import Client, Example
from benchmarks.clients.page import STAGES, failures, page
from benchmarks.clients.trial import trial
from benchmarks.shared import told_by

pytestmark = pytest.mark.slow  # for what they look at takes long, and is made once for all of them


class Blocks(nn.Module):
    """Residual blocks with dropout, which checkpoint themselves if they are told to."""

    def __init__(self, depth: int = 4, width: int = 16) -> None:
        super().__init__()
        self.checkpointing = False
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm1d(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(0.1))
            for _ in range(depth)
        )
        self.out = nn.ModuleList(nn.Linear(4 * width, width) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for layer, out in zip(self.layers, self.out, strict=True):

            def run(x: Tensor, layer: nn.Module = layer, out: nn.Module = out) -> Tensor:
                return x + out(layer(x))

            x = checkpoint(run, x, use_reentrant=False) if self.checkpointing else run(x)
        return x


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def switch_on(model: nn.Module) -> None:
    model.checkpointing = True  # pyright: ignore


def blocks() -> Example:
    return Example(Blocks(), (torch.randn(8, 16),))


def row_of(client: Client) -> dict[str, Any]:
    row: dict[str, Any] = {"client": client.name, "library": client.library, "obstacle": client.obstacle}
    trial(client, row.update)
    return json.loads(json.dumps(row))


@pytest.fixture(scope="module")
def row() -> dict[str, Any]:
    return row_of(Client("blocks", "torch", blocks, blocks, checkpoint=switch_on))


def test_a_model_that_goes_in_has_every_stage_and_no_failure(row: dict[str, Any]) -> None:
    assert set(STAGES) < row.keys()
    assert failures([row]) == []
    assert row["trace"]["nodes"] > 4
    assert row["training"]["last_loss"] != row["training"]["first_loss"]


def test_bytes_without_memory_are_those_with_it(row: dict[str, Any]) -> None:
    for name in ("plain", "own", "default", "equal_flops"):
        assert row["full"][name] == row["bytes"][name]
    assert row["bytes"]["own"]["flops_ratio"] > 1 == row["bytes"]["plain"]["flops_ratio"]
    assert row["full"]["predicted_bytes"]["default"] == row["bytes"]["default"]["peak_bytes"]


def test_plans_keep_to_what_the_own_checkpoints_take(row: dict[str, Any]) -> None:
    weights = row["bytes"]
    assert weights["equal_flops"]["flops"] <= weights["own"]["flops"]
    assert weights["equal_bytes"]["peak_bytes"] <= weights["own"]["peak_bytes"]


def test_a_model_that_does_not_go_in_is_a_row_with_the_reason() -> None:
    row = row_of(Client("branching", "torch", lambda: Example(Branching(), (torch.randn(3),))))
    (failure,) = failures([row])
    assert failure.startswith("torch branching: trace: TraceError: the forward of Branching cannot be traced")
    assert failures([{**row, "obstacle": "it asks for values"}]) == []


def test_a_net_that_learns_otherwise_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that is another one each time it is made has other gradients than its copy."""
    from benchmarks.clients import trial as module

    made: list[int] = []

    def other(client: Client) -> Any:
        plain, net = pair(client)
        with torch.no_grad():
            next(net.model.parameters()).mul_(1 + 1e-3)
        made.append(1)
        return plain, net

    pair = module._pair
    monkeypatch.setattr(module, "_pair", other)
    row = row_of(Client("blocks", "torch", blocks))
    found = failures([row])
    assert len(made) == 2
    assert any("gradients are wrong by" in each for each in found)
    assert any("training" in each for each in found)


def test_the_page_has_every_client_and_what_does_not_go_in(row: dict[str, Any]) -> None:
    machine = {"cpu": "a CPU", "python": "3", "libraries": {"torch": "2"}}
    other = {"client": "refused", "library": "torch", "obstacle": "", "trace": {"problem": "TraceError: no"}}
    text = page({"clients": [row, other], "machine": machine})
    assert "1 of 2 models" in text
    assert "torch blocks" in text
    assert "- torch refused: not expected to fail. trace: TraceError: no" in text


def test_clients_have_names_of_their_own() -> None:
    names = [client.name for client in CLIENTS]
    assert len(set(names)) == len(names) >= 25


FAILS = """
print('{"a": 1}', flush=True)
print("what a library prints")
raise ValueError("no")
"""
SLEEPS = """
import time
print('{"a": 1}', flush=True)
print("{", end="", flush=True)
time.sleep(60)
"""


def test_a_process_that_ends_early_has_told_what_it_found() -> None:
    assert told_by(["-c", FAILS], 60) == ([{"a": 1}], "ValueError: no")
    assert told_by(["-c", SLEEPS], 3) == ([{"a": 1}], "stopped after 3 s")
