"""Nothing overlaps: nodes stand apart, lines meet their nodes and run through no other, on any graph."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
from drawing.random_graphs import graphs
from drawing.samples import chain, plan_for, revnet, three_streams
from hypothesis import HealthCheck, given, settings

from revgraph.drawing.lanes import find_lanes
from revgraph.drawing.layout import Box, Layout, lay_out
from revgraph.drawing.legend import lay_out_head
from revgraph.drawing.routes import BESIDE, Route, find_routes
from revgraph.drawing.subject import Subject, subject
from revgraph.drawing.titles import place_titles
from revgraph.graph import Graph
from revgraph.planning.plans import Plan

NEAR = 0.01


def overlap(one: Box, two: Box) -> bool:
    across = min(one.right, two.right) - max(one.left, two.left)
    down = min(one.bottom, two.bottom) - max(one.top, two.top)
    return across > NEAR and down > NEAR


def crosses(route: Route, box: Box) -> bool:
    for (x, y), (next_x, next_y) in pairwise(route.points):
        piece = Box(min(x, next_x), min(y, next_y), max(x, next_x), max(y, next_y))
        across = min(piece.right, box.right) - max(piece.left, box.left)
        down = min(piece.bottom, box.bottom) - max(piece.top, box.top)
        if across > -NEAR and down > -NEAR and max(across, down) > NEAR and min(across, down) >= 0:
            inside_x = box.left + NEAR < max(piece.left, box.left) + across / 2 < box.right - NEAR
            inside_y = box.top + NEAR < max(piece.top, box.top) + down / 2 < box.bottom - NEAR
            if inside_x and inside_y:
                return True
    return False


def check(drawn: Graph | Plan, fold: bool | None = False) -> None:
    about = subject(drawn, fold)
    layout = lay_out(about)
    routes = find_routes(about, layout)
    check_boxes(layout)
    check_lines(about, layout, routes)
    check_titles(layout, routes)


def check_boxes(layout: Layout) -> None:
    boxes = [(f"node {name}", box) for name, box in layout.nodes.items()]
    boxes += [(f"tag {name}", box) for name, box in layout.tags.items()]
    for (name, one), (other, two) in combinations(boxes, 2):
        assert not overlap(one, two), (name, other)
    for name, box in boxes:
        assert max(line.width for line in box.lines) < box.right - box.left, name
    for one, two in combinations(layout.frames, 2):
        stage, block = sorted((one, two), key=lambda frame: frame.block)
        around, box = layout.frames[stage], layout.frames[block]
        nested = not stage.block and block.block and around.top < box.top and box.bottom < around.bottom
        assert nested or not overlap(around, box), (one, two)


def check_lines(about: Subject, layout: Layout, routes: tuple[Route, ...]) -> None:
    boxes = [(name, False, box) for name, box in layout.nodes.items()]
    boxes += [(name, True, box) for name, box in layout.tags.items()]
    drawn = {
        (route.value, route.head) for route in routes if route.kind != "inversion" and not route.head_tag
    }
    assert drawn == {(name, node.name) for node in about.graph.nodes for name in node.inputs}
    for route in routes:
        assert all(x == next_x or y == next_y for (x, y), (next_x, next_y) in pairwise(route.points)), route
        back = route.kind == "inversion"
        end = (
            layout.nodes[route.tail]
            if back
            else (layout.tags if route.head_tag else layout.nodes)[route.head]
        )
        x, y = route.points[0 if back else -1]
        assert end.left - NEAR <= x <= end.right + NEAR, route
        assert end.top - NEAR <= y <= end.bottom + NEAR, route
        if back:
            x = route.points[-1][0]
            lanes = (layout.x[route.value], layout.bypass_x.get(route.value, x))
            assert min(abs(x - lane) for lane in lanes) <= BESIDE
        else:
            for name, tag, box in boxes:
                assert not crosses(route, box), (route, name, tag)
    level = [
        (min(x, next_x), max(x, next_x), y, route.value, route.head)
        for route in routes
        if route.kind != "inversion"
        for (x, y), (next_x, next_y) in pairwise(route.points)
        if y == next_y and x != next_x
    ]
    for one, two in combinations(level, 2):
        if abs(one[2] - two[2]) < 2 and one[3] != two[3]:
            assert min(one[1], two[1]) - max(one[0], two[0]) < NEAR, (one, two)


def check_titles(layout: Layout, routes: tuple[Route, ...]) -> None:
    for frame, title in place_titles(layout.frames, routes).items():
        assert layout.frames[frame].left < title.left, frame
        assert title.right < layout.frames[frame].right, frame
        for route in routes:
            assert not crosses(route, title), (frame, route)


@pytest.mark.parametrize(
    "graph", [revnet(), revnet(units=10), three_streams(), chain(3)], ids=lambda g: g.name
)
def test_nothing_overlaps_in_known_graphs(graph: Graph) -> None:
    check(graph)
    check(plan_for(graph))
    check(plan_for(graph), fold=True)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(graphs())
def test_nothing_overlaps_in_random_graphs(graph: Graph) -> None:
    check(graph)
    check(plan_for(graph))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(graphs())
def test_no_two_values_share_a_column_at_a_row(graph: Graph) -> None:
    lanes = find_lanes(graph)
    taken: dict[tuple[int, int], str] = {}
    for name, lane in lanes.lane.items():
        for row in range(lane.first, lane.last):
            assert taken.setdefault((lane.column, row), name) == name
        if lane.bypass is not None:
            for row in range(lane.first, lane.bypass_last):
                assert taken.setdefault((lane.bypass, row), name) == name


def test_a_stream_is_one_straight_line() -> None:
    about = subject(revnet())
    layout = lay_out(about)
    couplings = [node for node in about.graph.nodes if node.kind == "coupling"]
    assert {layout.x[node.outputs[0]] - layout.x[node.target or ""] for node in couplings} == {0.0}
    assert len({layout.x[node.outputs[0]] for node in couplings}) == 2


def test_boxes_of_a_revnet_are_flush() -> None:
    layout = lay_out(subject(plan_for(revnet())))
    wide = [
        layout.nodes[name] for name in ("split", "stage1.unit0", "stage2.unit0", "stage3.unit0", "concat")
    ]
    assert len({(box.left, box.right) for box in wide}) == 1
    f, g = layout.nodes["stage1.unit1.f"], layout.nodes["stage1.unit1.g"]
    assert (f.left, g.right) == (wide[0].left, wide[0].right)
    assert layout.nodes["stem"].middle[0] == pytest.approx(wide[0].middle[0])


def test_the_head_is_wide_enough_for_its_text() -> None:
    about = subject(plan_for(chain(1, name="a rather long name " * 6)))
    layout = lay_out(about)
    head = lay_out_head(about, find_routes(about, layout), 0, 100)
    assert head.title.right - head.title.left >= max(line.width for line in head.title.lines)
    assert all(
        head.title.left <= each.sample.left and each.text.right <= head.title.right for each in head.signs
    )
    assert all(each.text.bottom <= 0 for each in head.signs)
