"""Several processes, on gloo and the CPU: what one process on the whole batch gives, two give together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from trust.processes import run_together

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes noted of each case."""
    folder = tmp_path_factory.mktemp("gradients")
    run_together(HERE / "gradients_worker.py", folder)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("case", ["", ", recompute", ", affine", ", batch norm", ", synchronized norm"])
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
        assert error.startswith("ReplayError: a parameter or buffer of node 'blocks.2.g' was changed")


def test_sharding_a_module_that_no_node_calls_is_explained(found: list[dict[str, Any]]) -> None:
    for each in found:
        assert (
            "fully_shard was applied to 'blocks.0', whose own forward does not run" in each["blocks sharded"]
        )
