"""The table of estimated and measured times: what it counts, and that the program writes it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import step_times


def test_order_differs_where_measuring_tells_two_plans_apart() -> None:
    rows = [{"step": 1.0, "FLOPs": 1.0}, {"step": 1.2, "FLOPs": 1.1}, {"step": 1.5, "FLOPs": 1.05}]
    assert step_times.order_differs(rows, "FLOPs") == (1, 3)
    near = [{"step": 1.0, "FLOPs": 1.1}, {"step": 1.0 + step_times.APART / 2, "FLOPs": 1.0}]
    assert step_times.order_differs(near, "FLOPs") == (0, 0)


def test_the_program_writes_what_it_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert step_times.main(["--quick", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "step_times.md").read_text() in capsys.readouterr().out
    ((name, rows),) = json.loads((tmp_path / "step_times.json").read_text())["networks"].items()
    assert name in step_times.QUICK
    ordinary, *others = rows
    assert all(ordinary[each] == 1.0 for each in (*step_times.ESTIMATES, "step"))
    assert len(others) > 3
    for each in others:
        assert each["peak_bytes"] < ordinary["peak_bytes"]
        assert all(each[estimate] > 1.0 for estimate in ("generic", "cpu-core"))
