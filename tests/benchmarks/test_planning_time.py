"""The planning benchmark tells seconds and memory of every stage, and puts up with what takes too long."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.planning_time import STAGES, main

pytestmark = pytest.mark.slow  # for what they look at takes long, and is made once for all of them

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("planning")
    assert main(["--quick", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def rows(written: Path) -> list[dict[str, Any]]:
    return json.loads((written / "planning_time.json").read_text())["networks"]


def test_every_stage_has_its_seconds(rows: list[dict[str, Any]]) -> None:
    assert [row["network"] for row in rows] == ["chain-10", "random-10"]
    for row in rows:
        assert row["problem"] is None
        assert all(row[f"{stage}_seconds"] >= 0 for stage in STAGES)
        assert row["default_seconds"] > 0
        assert row["nodes"] >= 10
        assert row["frontier_plans"] > 1
        assert row["least_peak_bytes"] <= row["budget"] <= row["keep_all_peak_bytes"]


def test_memory_is_the_high_water_mark(rows: list[dict[str, Any]]) -> None:
    assert all(10**7 < row["resident_bytes"] < 4 * 10**9 for row in rows)


def test_what_takes_too_long_says_so(tmp_path: Path) -> None:
    assert main(["--only", "chain-10", "--seconds", "1", "--out", str(tmp_path)]) == 0
    (row,) = json.loads((tmp_path / "planning_time.json").read_text())["networks"]
    assert row["problem"] == "stopped after 1 s"
    assert "stopped after 1 s" in (tmp_path / "planning_time.md").read_text()


def test_the_files_name_the_machine_and_no_path(written: Path) -> None:
    assert json.loads((written / "planning_time.json").read_text())["machine"]["cpu"]
    for file in written.iterdir():
        assert str(ROOT) not in file.read_text()
