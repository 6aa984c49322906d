"""The table of plan quality: shares, textbook segments beside, the same digest every time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import revgraph as rg
from benchmarks import planning_quality
from benchmarks.planning_quality import SHARES, broken_promises, quality


def graph() -> rg.Graph:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(16, 16), nn.GELU()) for _ in range(8)))
    return rg.trace(model, torch.zeros(32, 16)).graph


def test_plans_are_no_dearer_than_textbook_segments_and_the_same_every_time() -> None:
    row = quality("eight", graph())
    assert row == quality("eight", graph())
    assert row["least_bytes"] <= row["free_bytes"] <= row["keep_all_bytes"]
    pairs = list(zip(row["within"], row["textbook"], strict=True))
    assert len(pairs) == len(SHARES)
    assert any(textbook is not None for _, textbook in pairs)
    assert all(ours <= textbook for ours, textbook in pairs if textbook is not None)
    assert row["broken"] == []


def test_broken_promises_are_found() -> None:
    eight = graph()
    plans = rg.frontier(eight, points=1000, cost="flops")
    assert broken_promises(eight, plans, []) == []
    dear = broken_promises(eight, plans[:1], plans[1:])
    assert len(dear) >= len(plans) - 1 and all(" is known" in each for each in dear)


def test_the_program_writes_what_it_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning_quality, "NETWORKS", {"eight": graph})
    assert planning_quality.main(["--out", str(tmp_path)]) == 0
    assert (tmp_path / "planning_quality.md").read_text() in capsys.readouterr().out
    (row,) = json.loads((tmp_path / "planning_quality.json").read_text())["networks"]
    assert row["network"] == "eight"
