"""The pictures of a training step over time: what they show is what the simulator says."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from torch import nn

import revgraph as rg
from revgraph.drawing.lettering import width
from revgraph.drawing.matrix import LINES, SIGNS, matrix
from revgraph.drawing.timeline import MEANINGS, timeline
from revgraph.planning.composing import PARTS, compose
from revgraph.planning.plans import human_bytes

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def plans() -> list[rg.Plan]:
    torch.manual_seed(0)
    blocks = nn.ModuleList(rg.Additive(nn.Linear(8, 8), nn.Linear(8, 8)) for _ in range(6))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = blocks
            self.head = nn.Linear(8, 3)

        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            for block in self.blocks:
                a, b = block(a, b)
            return self.head(a + b)

    graph = rg.trace(Net(), *torch.randn(2, 5, 8)).graph
    return [*rg.frontier(graph), rg.keep_all(graph)]


def test_the_parts_of_every_moment_are_its_live_bytes(plans: list[rg.Plan]) -> None:
    for plan in plans:
        composed = compose(plan)
        assert [each.moment for each in composed] == rg.simulate(plan)
        for each in composed:
            assert set(each.parts) == set(PARTS)
            assert min(each.parts.values()) >= 0
            assert sum(each.parts.values()) == each.moment.live_bytes


def test_what_is_stored_waits_at_the_turn(plans: list[rg.Plan]) -> None:
    for plan in plans:
        turn = next(each for each in compose(plan) if each.moment.step.action == "loss")
        held = {plan.graph.value[name].storage: plan.graph.value[name].nbytes for name in plan.stored}
        given = {plan.graph.value[name].storage for name in plan.graph.inputs}
        assert turn.parts["stored"] <= sum(size for name, size in held.items() if name not in given)
        assert turn.parts["rebuilt"] == 0


def test_the_matrix_has_a_sign_for_every_step(plans: list[rg.Plan]) -> None:
    for plan in plans:
        moments = rg.simulate(plan)
        root = ElementTree.fromstring(matrix(plan, [each.step for each in moments]))
        signs = [each for each in root.iter() if each.get("data-step")]
        assert [(int(each.get("data-step", "")), each.get("data-node")) for each in signs] == [
            (index, each.step.node) for index, each in enumerate(moments) if each.step.node
        ]


def test_the_timeline_names_its_peak_and_budget(plans: list[rg.Plan]) -> None:
    composed = compose(plans[0])
    dots = [(0, 100), (3, 400)]
    root = ElementTree.fromstring(timeline(plans[0], composed, budget=10**6, measured=dots))
    texts = [each.text for each in root.iter(f"{SVG}text")]
    assert any(text and text.startswith("peak ") for text in texts)
    assert "budget 976.6 KiB" in texts
    assert len([each for each in root.iter(f"{SVG}circle")]) == len(dots) + 2  # and the peak, and the legend
    description = root.find(f"{SVG}desc")
    assert description is not None
    assert f"{len(composed)} steps" in (description.text or "")


def boxes(root: ElementTree.Element) -> dict[str, tuple[float, float, float, float]]:
    """Left, top, right and bottom of the texts about the peak and the budget, without space around."""
    found: dict[str, tuple[float, float, float, float]] = {}
    for text in root.iter(f"{SVG}text"):
        if "fill-peak" in text.get("class", ""):
            size, words = float(text.get("font-size", "0")), text.text or ""
            wide = width(words, size, bold=text.get("font-weight") == "bold")
            x, y = float(text.get("x", "0")), float(text.get("y", "0"))
            left = x - wide if text.get("text-anchor") == "end" else x
            found[words.split()[0]] = left, y - 0.75 * size, left + wide, y + 0.22 * size
    return found


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.5, 0.9, 0.97, 0.99, 1.0, 1.001, 1.01, 1.02, 1.03, 1.05, 1.08, 1.2, 3])
def test_the_peaks_words_keep_off_the_budgets_line_and_words(plans: list[rg.Plan], share: float) -> None:
    short = rg.trace(nn.Linear(8, 3), torch.randn(5, 8)).plan
    for plan in [*plans, short]:
        budget = round(plan.peak_bytes * share)
        root = ElementTree.fromstring(timeline(plan, compose(plan), budget))
        words = boxes(root)
        assert set(words) == {"peak", "budget"}
        left, top, right, bottom = words["peak"]
        its_left, its_top, its_right, its_bottom = words["budget"]
        assert left >= its_right or its_left >= right or top >= its_bottom or its_top >= bottom
        (line,) = (each for each in root.iter(f"{SVG}path") if "line-peak" in each.get("class", ""))
        height = float(line.get("d", "").split("H")[0].split(",")[1])
        for _, above, _, below in words.values():
            assert height <= above or below < height
        size = root.get("viewBox", "").split()
        if plan is not short:  # which is narrower than the words
            assert all(box[0] >= 0 and box[2] <= float(size[2]) for box in words.values())
        assert all(box[1] >= 0 and box[3] <= float(size[3]) for box in words.values())


def test_legends_have_what_is_drawn_and_nothing_else(plans: list[rg.Plan]) -> None:
    seen: set[frozenset[str]] = set()
    for plan in plans:
        composed = compose(plan)
        root = ElementTree.fromstring(timeline(plan, composed))
        texts = {each.text for each in root.iter(f"{SVG}text")}
        areas = {
            word.removeprefix("fill-area-")
            for each in root.iter(f"{SVG}path")
            for word in each.get("class", "").split()
            if word.startswith("fill-area-")
        }
        assert {part for part, meaning in MEANINGS.items() if meaning in texts} == areas
        assert "measured" not in texts and not any(text and text.startswith("budget") for text in texts)
        steps = [each.moment.step for each in composed]
        root = ElementTree.fromstring(matrix(plan, steps))
        texts = {each.text for each in root.iter(f"{SVG}text")}
        forms = {"run": {"run", "loss"}, "wire": {"wire", "invert_wiring"}, "backward": {"backward"}}
        forms |= {"invert": {"invert"}}
        forms["recompute"] = {"recompute", "recompute_and_keep", "rerun", "invert_again"}
        actions = {step.action for step in steps}
        told = {sign for sign, meaning in SIGNS.items() if meaning in texts}
        # The word for the second half of the picture is the same as that of its sign.
        assert told == {sign for sign, each in forms.items() if each & actions}
        lines = {
            line
            for line in LINES
            for each in root.iter(f"{SVG}path")
            if f"line-{line}" in each.get("class", "").split()
            and each.get("stroke-width") == f"{LINES[line][0]:g}"
        }
        assert {line for line, (_, meaning) in LINES.items() if meaning in texts} == lines
        seen.add(frozenset(told | lines | areas))
    assert len(seen) > 1  # plans differ, and so do their legends


def test_a_thousand_nodes_are_drawn_without_names_over_each_other() -> None:
    graph = rg.trace(nn.Sequential(*(nn.Linear(2, 2) for _ in range(1000))), torch.zeros(1, 2)).graph
    plan = rg.keep_all(graph)
    root = ElementTree.fromstring(matrix(plan, [each.step for each in rg.simulate(plan)]))
    texts = [each for each in root.iter(f"{SVG}text") if each.get("font-size") == "9"]
    rows = sorted(float(each.get("y", "0")) for each in texts)
    assert len(rows) > 50
    assert min(after - before for before, after in pairwise(rows)) >= 9


@pytest.mark.parametrize("show", ["memory", "schedule", "hill"])
def test_pictures_are_drawn_by_name(plans: list[rg.Plan], tmp_path: Path, show: rg.drawing.Picture) -> None:
    path = rg.draw(plans[0], tmp_path / "picture.svg", show=show)
    root = ElementTree.fromstring(path.read_text())
    assert root.tag == f"{SVG}svg"
    assert root.find(f"{SVG}title") is not None
    with pytest.raises(ValueError, match=rf"the {show} of a plan is drawn as \.svg"):
        rg.draw(plans[0], tmp_path / "picture.png", show=show)
    with pytest.raises(rg.GraphError, match=f"only a plan has a {show} to show"):
        rg.draw(plans[0].graph, tmp_path / "picture.svg", show=show)


def test_hill_stands_before_that_of_ordinary_training(plans: list[rg.Plan], tmp_path: Path) -> None:
    for plan in plans:
        root = ElementTree.fromstring(rg.draw(plan, tmp_path / "hill.svg", show="hill").read_text())
        words = " ".join(each.text or "" for each in root.iter(f"{SVG}text"))
        assert f"ordinary training, {human_bytes(plan.ordinary_bytes)}" in words
        assert f"this plan, {human_bytes(plan.peak_bytes)}" in words
        assert f"\u00d7{plan.time_ratio:.2f}" in words
        theirs, ours = (
            _corners(each) for each in root.iter(f"{SVG}path") if each.find(f"{SVG}title") is not None
        )
        floor = max(y for _, y in theirs)
        heights = [floor - min(y for _, y in corners) for corners in (ours, theirs)]
        assert heights[0] / heights[1] == pytest.approx(plan.peak_bytes / plan.ordinary_bytes, abs=1e-3)
        lengths = [max(x for x, _ in corners) - min(x for x, _ in corners) for corners in (ours, theirs)]
        assert lengths[0] / lengths[1] == pytest.approx(plan.time_ratio, abs=1e-3)
    with pytest.raises(ValueError, match=r"the hill of a plan is drawn as \.svg"):
        rg.draw(plans[0], tmp_path / "hill.html", show="hill")


def test_hill_of_nothing(tmp_path: Path) -> None:
    plan = rg.keep_all(rg.trace(nn.Identity(), torch.zeros(2)).graph)
    assert "nan" not in rg.draw(plan, tmp_path / "hill.svg", show="hill").read_text()


def _corners(path: ElementTree.Element) -> list[tuple[float, float]]:
    """The points of a path of level, upright and other pieces."""
    found, x, y = [], 0.0, 0.0
    for letter, numbers in re.findall(r"([MLHV])([-0-9.,]+)", path.get("d", "")):
        values = [float(each) for each in numbers.split(",")]
        if letter in "ML":
            x, y = values
        elif letter == "H":
            (x,) = values
        else:
            (y,) = values
        found.append((x, y))
    return found


def test_an_unknown_picture_is_refused(plans: list[rg.Plan], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot show 'time': there are the pictures"):
        rg.draw(plans[0], tmp_path / "picture.svg", show="time")  # pyright: ignore
