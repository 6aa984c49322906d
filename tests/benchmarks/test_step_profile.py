"""The profile of a step accounts for all its time, in groups of the operators they are named for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.comparison.networks import chain
from benchmarks.step_profile import BETWEEN, CONVOLUTIONS, GROUPS, NORMS, main, profiled


def test_groups_add_up_to_the_step_and_count_what_runs_again() -> None:
    found = profiled(chain(2, 3, 0))
    assert list(found) == ["plain autograd", "checkpoint per block", "revgraph"]
    plain, _, inverting = (each["calls"]["aten::addmm"] for each in found.values())
    assert plain == 2 * 2 * 2  # blocks, F and G, layers in each
    assert plain < inverting <= 2 * plain
    for each in found.values():
        assert each["milliseconds"][CONVOLUTIONS] > 0
        assert each["milliseconds"][BETWEEN] > 0
        assert each["milliseconds"][NORMS] == 0
        assert set(each["milliseconds"]) == set(GROUPS)


@pytest.mark.slow
def test_the_program_writes_what_it_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    assert main(["--quick", "--out", str(tmp_path)]) == 0
    torch.set_num_threads(threads)
    written = (tmp_path / "step_profile.md").read_text()
    assert written in capsys.readouterr().out
    found = json.loads((tmp_path / "step_profile.json").read_text())
    assert found["networks"]["RevNet-38, batch 2"]["revgraph"]["milliseconds"][NORMS] > 0
    assert "batch 2" in written
