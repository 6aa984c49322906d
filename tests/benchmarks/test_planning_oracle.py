"""The benchmark against all schedules counts every budget, at every effort."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.planning_oracle import EFFORTS, KINDS, main


def test_every_kind_and_effort_has_a_row(tmp_path: Path) -> None:
    assert main(["--problems", "3", "--out", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "planning_oracle.json").read_text())
    assert [(row["kind"], row["effort"]) for row in rows] == [(k, e) for k in KINDS for e in EFFORTS]
    for row in rows:
        assert 0 < row["equal"] <= row["budgets"]
        assert len(row["excess"]) == row["budgets"] - row["equal"]
        assert all(share > 0 for share in row["excess"])
        assert len(row["peaks"]) == 3
    assert "nothing better" in (tmp_path / "planning_oracle.md").read_text()
