"""The paper's Table 1 on small networks: what grows with the depth, and what does not."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.complexity import (
    LAWS,
    ORDINARY,
    RECURSIVE,
    REVERSIBLE,
    ROOT,
    Point,
    exponent,
    main,
    misfit,
)
from benchmarks.paper.checkpoints import recursive
from benchmarks.tradeoff.networks import Fold

pytestmark = pytest.mark.slow  # for what they look at takes long, and is made once for all of them

DEPTHS = (2, 4, 8)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("matplotlib")
    out = tmp_path_factory.mktemp("complexity")
    assert main(["--depths", *map(str, DEPTHS), "--batch", "1", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def points(written: Path) -> dict[tuple[str, int], Point]:
    with (written / "complexity.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    read = [
        Point(
            row["strategy"],
            *(int(row[name]) for name in ("depth", "peak_bytes", "held_bytes", "flops")),
            float(row["flops_ratio"]),
        )
        for row in rows
    ]
    return {(point.strategy, point.depth): point for point in read}


def test_reversible_bytes_are_flat_in_depth(points: dict[tuple[str, int], Point]) -> None:
    assert len({points[REVERSIBLE, depth].peak_bytes for depth in DEPTHS}) == 1
    assert len({points[REVERSIBLE, depth].held_bytes for depth in DEPTHS}) == 1


def test_ordinary_bytes_are_linear_in_depth(points: dict[tuple[str, int], Point]) -> None:
    few, some, many = (points[ORDINARY, depth].peak_bytes for depth in DEPTHS)
    assert many - some == 2 * (some - few)


def test_checkpoints_take_less_than_linear_and_more_than_constant_bytes(
    points: dict[tuple[str, int], Point],
) -> None:
    grown = {strategy: points[strategy, 8].peak_bytes - points[strategy, 4].peak_bytes for strategy in LAWS}
    assert grown[ORDINARY] > grown[ROOT] > grown[RECURSIVE] > grown[REVERSIBLE] == 0


def test_only_recursive_checkpoints_compute_ever_more(points: dict[tuple[str, int], Point]) -> None:
    assert all(points[ORDINARY, depth].flops_ratio == 1 for depth in DEPTHS)
    for strategy in (ROOT, REVERSIBLE):
        assert all(1.2 < points[strategy, depth].flops_ratio < 4 / 3 for depth in DEPTHS)
    ratios = [points[RECURSIVE, depth].flops_ratio for depth in DEPTHS]
    assert ratios == sorted(set(ratios))
    assert ratios[0] > 4 / 3


def test_recursive_checkpoints_give_autograds_gradients() -> None:
    torch.manual_seed(0)
    model = Fold(nn.Sequential(nn.Linear(3, 3), nn.Tanh()) for _ in range(7)).double()
    x = torch.randn(2, 3, dtype=torch.float64)
    expected = torch.autograd.grad(model(x).sum(), list(model.parameters()))
    found = torch.autograd.grad(recursive(model)(x).sum(), list(model.parameters()))
    for one, two in zip(found, expected, strict=True):
        assert torch.equal(one, two)


def test_fits_recognise_their_law() -> None:
    depths = [4, 8, 16, 32]
    logarithmic = [7 + 3 * math.log(depth) for depth in depths]
    assert misfit(depths, logarithmic, math.log) < 1e-12 < misfit(depths, logarithmic, math.sqrt)
    assert exponent(depths, [depth**0.5 for depth in depths]) == pytest.approx(0.5)


def test_the_command_writes_the_laws_and_a_chart_with_words(written: Path) -> None:
    assert "O(log L)" in (written / "complexity.md").read_text()
    svg = (written / "complexity.svg").read_text()
    assert 'role="img"' in svg and f">{REVERSIBLE}</text>" in svg


def test_one_depth_cannot_be_fitted(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--depths", "4"])
    assert "two depths or more" in capsys.readouterr().err
