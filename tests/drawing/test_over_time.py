"""The pictures of a training step over time: what they show is what the simulator says."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from torch import nn

import revgraph as rg
from revgraph.drawing.matrix import matrix
from revgraph.drawing.timeline import timeline
from revgraph.planning.composing import PARTS, compose

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


def test_a_thousand_nodes_are_drawn_without_names_over_each_other() -> None:
    graph = rg.trace(nn.Sequential(*(nn.Linear(2, 2) for _ in range(1000))), torch.zeros(1, 2)).graph
    plan = rg.keep_all(graph)
    root = ElementTree.fromstring(matrix(plan, [each.step for each in rg.simulate(plan)]))
    texts = [each for each in root.iter(f"{SVG}text") if each.get("font-size") == "9"]
    rows = sorted(float(each.get("y", "0")) for each in texts)
    assert len(rows) > 50
    assert min(after - before for before, after in pairwise(rows)) >= 9


@pytest.mark.parametrize("show", ["memory", "schedule"])
def test_pictures_are_drawn_by_name(plans: list[rg.Plan], tmp_path: Path, show: rg.drawing.Picture) -> None:
    path = rg.draw(plans[0], tmp_path / "picture.svg", show=show)
    root = ElementTree.fromstring(path.read_text())
    assert root.tag == f"{SVG}svg"
    assert root.find(f"{SVG}title") is not None
    with pytest.raises(ValueError, match=rf"the {show} of a plan is drawn as \.svg"):
        rg.draw(plans[0], tmp_path / "picture.png", show=show)
    with pytest.raises(rg.GraphError, match=f"only a plan has a {show} to show"):
        rg.draw(plans[0].graph, tmp_path / "picture.svg", show=show)


def test_an_unknown_picture_is_refused(plans: list[rg.Plan], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot show 'time': there are the pictures"):
        rg.draw(plans[0], tmp_path / "picture.svg", show="time")  # pyright: ignore
