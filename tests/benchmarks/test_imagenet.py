"""Predicted bytes of networks: the same as planning really gives, in the order they must have."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

import revgraph as rg
from benchmarks.imagenet import FRONTIER, INVERTED, KEPT, LEAST, main, planned
from benchmarks.paper.networks import images, one_stage


@pytest.mark.slow
def test_plans_are_written_with_their_frontier(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    small = tmp_path / "small.yaml"
    small.write_text(_yaml(units=2))
    arguments = ["--networks", str(small), "--batches", "1", "2", "--frontier-batch", "2"]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    with (tmp_path / "imagenet.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["network"] for row in rows} == {"small"}
    assert [row["plan"] for row in rows][:6] == 2 * [KEPT, INVERTED, LEAST]
    bytes_of = {
        (row["plan"], row["batch"]): int(row["peak_bytes"]) for row in rows if row["plan"] != FRONTIER
    }
    for batch in ("1", "2"):
        assert bytes_of[LEAST, batch] < bytes_of[INVERTED, batch] < bytes_of[KEPT, batch]
    ratios = [float(row["flops_ratio"]) for row in rows if row["plan"] == FRONTIER]
    assert ratios == sorted(set(ratios), reverse=True) and ratios[-1] == 1
    assert "The frontiers at batch 2" in (tmp_path / "imagenet.md").read_text()
    assert 'role="img"' in (tmp_path / "imagenet.svg").read_text()


@pytest.mark.slow
def test_what_is_predicted_without_memory_is_what_a_step_takes(tmp_path: Path) -> None:
    small = tmp_path / "small.yaml"
    small.write_text(_yaml(units=2))
    net = rg.load(small, batch=2)
    ways = {
        KEPT: rg.keep_all,
        INVERTED: lambda graph: rg.decide(graph, {}),
        LEAST: lambda graph: rg.plan(graph, budget="least"),
    }
    for row in planned(str(small), 2):
        net.plan = ways[row.plan](net.graph)
        measured = rg.measure(net, images(net))
        assert (row.peak_bytes, row.held_bytes) == (measured.peak_bytes, measured.held_bytes)
        assert row.flops_ratio == pytest.approx(measured.flops_ratio, rel=1e-12)


def _yaml(units: int) -> str:
    import yaml

    return yaml.safe_dump(one_stage(units, 2, channels=4, side=8), sort_keys=False)
