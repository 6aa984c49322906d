"""Charts of frontiers and drift: complete files whose words can be read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from drawing.samples import chain, plan_for

from revgraph.drawing import draw
from revgraph.drawing.charts import chart_drift
from revgraph.errors import GraphError
from revgraph.planning import Plan

SVG = "{http://www.w3.org/2000/svg}"


def frontier() -> list[Plan]:
    points = ((10, 1.5), (12, 1.1), (30, 1.0))
    return [replace(plan_for(chain(2)), peak_bytes=size << 20, time_ratio=ratio) for size, ratio in points]


def drawn(path: Path) -> ElementTree.Element:
    plans = frontier()
    others = {"the plan chosen": plans[0], "ordinary <autograd>": replace(plans[-1], peak_bytes=50 << 20)}
    assert draw(plans, path, budget="11 MiB", beside=others) == path
    return ElementTree.parse(path).getroot()


def test_words_of_an_svg_stay_words(tmp_path: Path) -> None:
    root = drawn(tmp_path / "new" / "frontier.svg")
    words = {"".join(text.itertext()).strip() for text in root.iter(f"{SVG}text")}
    assert {"chain: computing again against activation memory", "its knee", "the plan chosen"} <= words
    assert {"ordinary <autograd>", "the budget, 11.0 MiB", "activation bytes at the peak, MiB"} <= words


def test_an_svg_has_a_title_and_a_description(tmp_path: Path) -> None:
    root = drawn(tmp_path / "frontier.svg")
    assert root.get("role") == "img"
    assert root.findtext(f"{SVG}title") == "chain: computing again against activation memory"
    assert root.findtext(f"{SVG}desc") == (
        "A frontier of 3 plans from 10.0 MiB and \u00d71.500 estimated time to 30.0 MiB and \u00d71.000 "
        "estimated time; its knee at 12.0 MiB and \u00d71.100 estimated time; the plan chosen at 10.0 MiB "
        "and \u00d71.500 estimated time; ordinary <autograd> at 50.0 MiB and \u00d71.000 estimated time; the "
        "budget of 11.0 MiB."
    )


def test_no_ground_hides_a_dark_page(tmp_path: Path) -> None:
    drawn(tmp_path / "frontier.svg")
    text = (tmp_path / "frontier.svg").read_text().lower()
    assert "#ffffff" not in text and "#000000" not in text


def test_same_plans_give_the_same_file(tmp_path: Path) -> None:
    for name in ("one.svg", "two.svg"):
        drawn(tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


def test_png(tmp_path: Path) -> None:
    draw(frontier(), tmp_path / "frontier.PNG")
    assert (tmp_path / "frontier.PNG").read_bytes().startswith(b"\x89PNG")


def test_one_plan_is_a_frontier(tmp_path: Path) -> None:
    assert draw(frontier()[:1], tmp_path / "frontier.svg").stat().st_size > 0


def test_failure_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "frontier.svg"
    path.write_text("before")

    def fail(self: Path, data: bytes) -> int:
        raise OSError("the disk is full")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match="disk is full"):
        draw(frontier(), path)
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_drawn_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Use one of \.svg, \.png"):
        draw(frontier(), tmp_path / "frontier.pdf")
    with pytest.raises(GraphError, match="cannot draw an empty list"):
        draw([], tmp_path / "frontier.svg")
    with pytest.raises(ValueError, match="nothing was rebuilt"):
        chart_drift({}, tmp_path / "drift.svg")
    with pytest.raises(ValueError, match=r"use one of \.svg, \.png"):
        chart_drift({"x": 1e-7}, tmp_path / "drift.html")
    assert not list(tmp_path.iterdir())
