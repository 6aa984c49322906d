"""Several processes, on gloo and the CPU: what one process on the whole batch gives, two give together."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from trust.networks import WIDTH, additive, make
from trust.processes import PYTHON, together
from trust.states import load, momentum, save, whole

import revgraph as rg

pytestmark = pytest.mark.slow  # for what they look at takes long, and is made once for all of them

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("distributed")


@pytest.fixture(scope="module")
def found(folder: Path) -> list[dict[str, Any]]:
    """What each of two processes noted of each case."""
    net, optimizer = trained()
    save(folder / "one", net, optimizer)
    torch.save(whole(net, optimizer), folder / "one.pt")
    commands = [(*PYTHON, HERE / "gradients_worker.py", folder, rank, 2) for rank in range(2)]
    for ended in together(commands, folder):
        assert ended.status == 0, ended.text
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def trained() -> tuple[rg.ReversibleModule, torch.optim.Optimizer]:
    """A net after a step in one process."""
    model, x = make(additive(lambda: nn.LayerNorm(WIDTH)))
    net = rg.trace(model, x)
    optimizer = momentum(net)
    net(x).square().mean().backward()
    optimizer.step()
    return net, optimizer


@pytest.mark.parametrize(
    "case",
    [
        "",
        ", recompute",
        ", affine",
        ", batch norm",
        ", synchronized norm",
        ", compiled",
        ", compiled, batch norm",
    ],
)
def test_distributed_data_parallel_gives_the_gradients_of_one_process(
    found: list[dict[str, Any]], case: str
) -> None:
    assert [each["data-parallel" + case] for each in found] == pytest.approx([0, 0], abs=1e-12)


def test_distributed_data_parallel_finds_unused_parameters(found: list[dict[str, Any]]) -> None:
    assert [each["data-parallel, unused"] for each in found] == pytest.approx([0, 0], abs=1e-12)


@pytest.mark.parametrize(
    "case",
    [
        "",
        ", gathered until backward",
        ", recompute",
        ", affine",
        ", batch norm",
        ", synchronized norm",
        ", unused",
        ", reruns",
    ],
)
def test_fully_shard_gives_the_gradients_of_one_process(found: list[dict[str, Any]], case: str) -> None:
    assert [each["sharded" + case] for each in found] == pytest.approx([0, 0], abs=1e-12)


def test_what_a_replay_gathers_is_given_up_again(found: list[dict[str, Any]]) -> None:
    assert [each["sharded, gathered in passing"] for each in found] == pytest.approx([0, 0], abs=1e-12)


def test_optimizer_step_on_shards_before_backward_is_an_error(found: list[dict[str, Any]]) -> None:
    for each in found:
        error = each["optimizer step too early"]
        assert re.match(r"ReplayError: a parameter or buffer of node 'blocks\.2\.[fg]' was changed", error)


def test_sharding_a_module_that_no_node_calls_is_explained(found: list[dict[str, Any]]) -> None:
    for each in found:
        assert (
            "fully_shard was applied to 'blocks.0', whose own forward does not run" in each["blocks sharded"]
        )


def test_distributed_checkpoint_of_two_processes_loads_in_one(
    found: list[dict[str, Any]], folder: Path
) -> None:
    assert [each["saved by two"] for each in found] == [0, 0]
    net, optimizer = trained()
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    load(folder / "two", net, optimizer)
    loaded, expected = whole(net, optimizer), torch.load(folder / "two.pt")
    assert loaded.keys() == expected.keys() and any(name.endswith(" momentum") for name in loaded)
    for name, tensor in expected.items():
        assert torch.equal(loaded[name], tensor), name
    assert not torch.equal(loaded["stem.weight"], torch.zeros_like(loaded["stem.weight"]))


def test_distributed_checkpoint_of_one_process_loads_in_two(found: list[dict[str, Any]]) -> None:
    assert [each["loaded from one"] for each in found] == [[], []]
