"""`check`: status 0 where the gradients agree, 1 where they do not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import revgraph as rg

Run = Callable[..., Any]


def test_good_network(revgraph: Run, tiny: Path) -> None:
    answer = revgraph("check", tiny)
    assert answer.status == 0 and answer.err == ""
    assert "angle in degrees" in answer.out


def test_good_network_as_json(revgraph: Run, tiny: Path) -> None:
    found = revgraph("check", tiny, "--json").json
    assert found["good"] is True and found["network"] == "tiny"
    assert 0 <= found["angle_degrees"] < 1e-3 and found["max_relative_error"] < 1e-4
    assert set(found["drift"]) and all(0 <= value < 1e-4 for value in found["drift"].values())


@pytest.mark.slow
@pytest.mark.parametrize(
    "report",
    [
        rg.GradientReport(max_relative_error=0.1, angle_degrees=2.0, drift={"x": 1e-6}),
        rg.GradientReport(max_relative_error=0.1, angle_degrees=0.1, drift={"x": 0.5}),
        rg.GradientReport(
            max_relative_error=float("inf"), angle_degrees=float("nan"), drift={"x": float("nan")}
        ),
        rg.GradientReport(
            max_relative_error=0.1, angle_degrees=0.1, drift={"x": 1e-7}, begins_at="f", is_abrupt=True
        ),
    ],
)
@pytest.mark.parametrize("options", [(), ("--json",)])
def test_bad_answer_is_status_1(
    revgraph: Run,
    tiny: Path,
    monkeypatch: pytest.MonkeyPatch,
    report: rg.GradientReport,
    options: tuple[str, ...],
) -> None:
    monkeypatch.setattr(rg, "check", lambda *args, **kwargs: report)
    answer = revgraph("check", tiny, *options)
    assert answer.status == 1
    assert "too far from those of stored activations" in answer.err
    if options:
        assert answer.json["good"] is False


def test_a_flipped_choice_is_told_with_its_node_and_what_to_do(
    revgraph: Run, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = rg.GradientReport(0.1, 0.1, {"x": 1e-7}, {"block.f": 3}, "block.f", is_abrupt=True)
    monkeypatch.setattr(rg, "check", lambda *args, **kwargs: report)
    answer = revgraph("check", tiny)
    assert answer.status == 1
    assert "wrong from node 'block.f' on" in answer.err and "--exact" in answer.err
    found = revgraph("check", tiny, "--json").json
    assert (
        found["verdict"] == "flipped" and found["begins_at"] == "block.f" and found["flips"] == {"block.f": 3}
    )


def test_limits_are_options(revgraph: Run, tiny: Path) -> None:
    found = revgraph("check", tiny, "--json").json
    drift = max(found["drift"].values())
    assert revgraph("check", tiny, "--max-drift", drift).status == 0
    if drift:
        assert revgraph("check", tiny, "--max-drift", drift / 2).status == 1
