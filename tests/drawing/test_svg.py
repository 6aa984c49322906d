"""The SVG is valid and complete, readable in light and dark, and without any colour at all."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import pytest
from drawing.samples import Sketch, chain, plan_for, revnet, three_streams

from revgraph.courses import Course
from revgraph.drawing import draw
from revgraph.drawing.palette import PAINTS
from revgraph.drawing.rendering import find_graphviz
from revgraph.drawing.subject import subject
from revgraph.graph import Graph, Node
from revgraph.planning.plans import Decision, Plan

pytestmark = pytest.mark.skipif(find_graphviz() is None, reason="neither dot nor graphviz-pure is installed")

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = [
    '"quoted"',
    "<b>&amp;</b>",
    "two\nlines\tand a tab",
    "back\\slash\\",
    "\\N\\G\\L",
    "port:n:s",
    "\u65e5\u672c\u8a9e\u306e\u540d\u524d" * 5,
    "x" * 500,
    "e\u0301\u00f1\U0001f642",
    "%s{0}|",
    "\x00\x07control",
    "\ud800surrogate",
    "node 3",
    "value 0",
    "legend 0",
    "graph",
    "",
    " ",
    "<!--c--> ]]>",
]


def mixed(node: Node) -> Decision:
    return {"f": "invert", "g": "recompute", "h": "keep"}.get(node.name[-1], "keep")  # pyright: ignore[reportReturnType]


def hostile() -> Graph:
    sketch = Sketch('a "hostile" <&> \n net \\')
    (value,) = sketch.add("x", "input", (), ((2, 3),))
    for index, name in enumerate(HOSTILE):
        (value,) = sketch.add(name, "boundary", (value,), ((2, 4 + index),), expression=f"{name}(x)")
    sketch.add("output", "output", (value,))
    return sketch.graph()


@cache
def drawings() -> dict[str, Graph | Plan]:
    return {
        "graph": revnet(),
        "plan": plan_for(revnet()),
        "three": plan_for(three_streams(), mixed),
        "folded": plan_for(chain(40)),
        "hostile": hostile(),
        "hostile plan": plan_for(hostile()),
    }


@pytest.fixture(scope="module", params=list(drawings()))
def root(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Element:
    path = draw(drawings()[request.param], tmp_path_factory.mktemp("svg") / "drawing.svg")
    return ElementTree.fromstring(path.read_bytes())


def texts(element: Element) -> list[str]:
    return ["".join(each.itertext()) for each in element.iter(f"{SVG}text")]


def test_it_tells_screen_readers_what_it_is(root: Element) -> None:
    assert (root.get("role"), root.get("lang")) == ("img", "en")
    title, description = root[0], root[1]
    assert (title.tag, description.tag) == (f"{SVG}title", f"{SVG}desc")
    assert re.fullmatch(r"revgraph: (graph|plan) of .+", title.text or "")
    assert re.match(r"A network as a graph, .*: \d+ couplings?, \d+ boundar(y|ies), ", description.text or "")


def test_it_asks_for_nothing_from_outside(root: Element) -> None:
    for element in root.iter():
        assert element.tag.split("}")[1] in (
            "svg",
            "title",
            "desc",
            "style",
            "g",
            "path",
            "polygon",
            "ellipse",
            "text",
        )
        for name, value in element.attrib.items():
            assert "href" not in name
            assert not re.search(r"url\(|//", value) or name in ("data-node", "data-value"), (name, value)
    (style,) = root.iter(f"{SVG}style")
    assert not re.search(r"url\(|@import|//", style.text or "")


def test_every_part_is_named_after_what_it_shows(root: Element) -> None:
    for group in root.iter(f"{SVG}g"):
        words = group.get("class", "").split()
        if "id" in group.attrib:
            raise AssertionError("element ids clash where two drawings stand in one page")
        if "node" in words and ("coupling" in words or "boundary" in words):
            title = group.find(f"{SVG}title")
            assert group.get("data-node") is not None
            assert title is not None
            assert re.search(r": (coupling|boundary)", title.text or "")


def test_every_colour_has_its_counterpart_in_the_dark(root: Element) -> None:
    light = {paint.light: role for role, paint in PAINTS.items()}
    for element in root.iter():
        for attribute, kind in (("fill", "fill"), ("stroke", "line")):
            colour = element.get(attribute, "none")
            if colour not in ("none", "transparent"):
                assert f"{kind}-{light[colour]}" in element.get("class", "").split()
        if element.tag == f"{SVG}text":
            assert element.get("fill") is not None
    (style,) = root.iter(f"{SVG}style")
    assert "@media screen and (prefers-color-scheme:dark)" in (style.text or "")
    for role, paint in PAINTS.items():
        assert f".revgraph .fill-{role}{{fill:{paint.dark}}}" in (style.text or "")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_all_text_contrasts_with_what_is_behind_it(root: Element, theme: str) -> None:
    seen = 0
    for group in root.iter(f"{SVG}g"):
        shapes = [child for child in group if child.tag in (f"{SVG}path", f"{SVG}polygon")]
        behind = painted(shapes[0], theme) if shapes else None
        if behind is None or "edge" in group.get("class", "").split():
            behind = getattr(PAINTS["ground"], theme)
        for text in group.findall(f"{SVG}text"):
            front = painted(text, theme)
            assert front is not None
            assert contrast(front, behind) >= 4.5, (texts(group), front, behind)
            seen += 1
    assert seen > 10


def test_lines_contrast_with_every_ground_they_run_on() -> None:
    for theme in ("light", "dark"):
        for line in (
            "stream",
            "other",
            "invert-line",
            "peak",
            "keep-line",
            "recompute-line",
            "boundary-line",
        ):
            for ground in ("ground", "stage", "block"):
                assert contrast(getattr(PAINTS[line], theme), getattr(PAINTS[ground], theme)) >= 3, (
                    line,
                    ground,
                    theme,
                )


def test_no_two_roles_share_a_light_colour() -> None:
    assert len({paint.light for paint in PAINTS.values()}) == len(PAINTS)


def test_decisions_show_without_colour(tmp_path: Path) -> None:
    root = ElementTree.fromstring(draw(plan_for(three_streams(), mixed), tmp_path / "plan.svg").read_bytes())
    looks: dict[str, tuple[str, bool, bool]] = {}
    for group in root.iter(f"{SVG}g"):
        words = group.get("class", "").split()
        for decision in ("keep", "invert", "recompute"):
            if decision in words and "coupling" in words:
                (shape,) = (child for child in group if child.tag in (f"{SVG}path", f"{SVG}polygon"))
                assert any(text.startswith(decision) for text in texts(group))
                dashed, grey = "stroke-dasharray" in shape.attrib, luminance(shape.get("fill", ""))
                looks[decision] = decision, dashed, grey > 0.85
    assert looks == {
        "keep": ("keep", False, False),
        "invert": ("invert", False, True),
        "recompute": ("recompute", True, True),
    }
    assert luminance(PAINTS["stored"].light) < 0.1
    lines = {
        kind: [child.get("stroke-width") for child in group if child.tag == f"{SVG}path"]
        for group in root.iter(f"{SVG}g")
        for kind in ("stream", "other", "inversion")
        if kind in group.get("class", "").split()
    }
    assert lines == {"stream": ["2.2"], "other": ["1.1"], "inversion": ["1.2"]}
    dashed = [group for group in root.iter(f"{SVG}g") if "inversion" in group.get("class", "").split()]
    assert all(group.find(f"{SVG}path").get("stroke-dasharray") for group in dashed)  # pyright: ignore[reportOptionalMemberAccess]


def test_couplings_are_round_and_boundaries_sharp(tmp_path: Path) -> None:
    root = ElementTree.fromstring(draw(revnet(), tmp_path / "graph.svg").read_bytes())
    for group in root.iter(f"{SVG}g"):
        words = group.get("class", "").split()
        if "node" in words and "coupling" in words:
            assert group.find(f"{SVG}path") is not None
        elif "node" in words and "boundary" in words:
            assert group.find(f"{SVG}polygon") is not None


def test_a_plan_says_its_figures_and_marks_its_peak(tmp_path: Path) -> None:
    plan = plan_for(revnet(), peak_at="backward of stage2.unit1.g", peak_bytes=200 << 20)
    root = ElementTree.fromstring(draw(plan, tmp_path / "plan.svg").read_bytes())
    written = texts(root)
    assert "predicted peak 200.0 MiB (backward of stage2.unit1.g)" in written
    assert any(text.startswith("held ") and ", FLOPs \u00d71.250, time \u00d7" in text for text in written)
    assert sum(text.startswith("stored ") for text in written) == len(plan.stored)
    (peak,) = (group for group in root.iter(f"{SVG}g") if "peak" in group.get("class", "").split())
    assert peak.get("data-node") == "stage2.unit1.g"
    assert texts(peak) == ["unit1.g", "invert", "peak 200.0 MiB"]


def legend(root: Element) -> set[str]:
    """The words of the legend: texts of groups that are named after nothing."""
    groups = (group for group in root.iter(f"{SVG}g") if group.get("class") == "node")
    return {text for group in groups if group.find(f"{SVG}title") is None for text in texts(group)}


def drawn_signs(root: Element, plan: bool) -> set[str]:
    """The words that the legend needs for what is drawn."""
    found: set[str] = set()
    meanings = {
        "keep": "internals kept",
        "invert": "inverted",
        "recompute": "recomputed",
        "peak": "at the peak",
    }
    meanings |= {"stream": "stream", "other": "other input", "inversion": "inversion", "wiring": "wiring"}
    meanings |= {"input": "input or output", "output": "input or output"}
    meanings |= {"coupling": "coupling", "boundary": "boundary"}
    for group in root.iter(f"{SVG}g"):
        words = group.get("class", "").split()
        if group.find(f"{SVG}title") is None:
            continue
        found |= {meanings[word] for word in words if word in meanings}
        if "value" in words and "node" in words:
            found.add("value stored" if plan else "value of a new shape")
        if "cluster" in words and "equal blocks, drawn once" in (group.findtext(f"{SVG}title") or ""):
            found.add("equal blocks drawn once")
    return found


@pytest.mark.parametrize("name", list(drawings()))
def test_the_legend_has_what_is_drawn_and_nothing_else(tmp_path: Path, name: str) -> None:
    drawn = drawings()[name]
    root = ElementTree.fromstring(draw(drawn, tmp_path / "drawing.svg").read_bytes())
    assert legend(root) == drawn_signs(root, isinstance(drawn, Plan))


def test_kept_results_are_told_in_the_node_with_their_bytes(tmp_path: Path) -> None:
    kept = Course(forward=(("use", 5000, 5000),), backward=(("replay",), ("done",), ("use", 0, -5000)))
    bare = Course(backward=(("replay",), ("done",)))
    courses = {"invert": bare, "invert+0": kept, "invert+-1+0": kept}
    graph = three_streams()
    nodes = tuple(
        replace(node, cost=replace(node.cost, courses=courses, heavy_results=1)) if node.target else node
        for node in graph.nodes
    )
    results = {"enc.f": (0,), "enc.g": (0, -1), "enc.h": (-1,)}
    plan = plan_for(replace(graph, nodes=nodes), results=results)
    root = ElementTree.fromstring(draw(plan, tmp_path / "plan.svg").read_bytes())
    told = {
        group.get("data-node"): [text for text in texts(group) if text.startswith("+ ")]
        for group in root.iter(f"{SVG}g")
        if "coupling" in group.get("class", "").split()
    }
    assert told["enc.f"] == ["+ result 4.9 KiB"]
    assert told["enc.g"] == ["+ 2 results 4.9 KiB"]
    assert told["enc.h"] == ["+ result"]  # what it takes is not known
    assert told["dec.f"] == []


def test_blocks_that_keep_other_results_are_not_folded_into_one() -> None:
    graph = chain(40)
    plan = plan_for(graph, results={"blocks.7.f": (0,)})
    shown = subject(plan).shown
    assert shown["blocks.7.f"] == "blocks.7.f"
    assert shown["blocks.2.f"] != "blocks.2.f"


def test_a_plan_is_beside_ordinary_training(tmp_path: Path) -> None:
    root = ElementTree.fromstring(
        draw(plan_for(revnet(), ordinary_bytes=3 << 30), tmp_path / "plan.svg").read_bytes()
    )
    assert "ordinary training: peak 3.0 GiB" in texts(root)


def test_one_sign_for_times(tmp_path: Path) -> None:
    plans = [plan_for(revnet(), ordinary_bytes=3 << 30), plan_for(chain(40))]
    for index, plan in enumerate(plans):
        for name in ("plan.svg", "plan.html"):
            text = draw(plan, tmp_path / f"{index}-{name}").read_text()
            assert "\u00d71.250" in text
            assert not re.search(r"(?<![\w.])x\d+\.\d", text)


def test_hostile_names_are_shown_shortened_and_kept_whole_in_titles(tmp_path: Path) -> None:
    root = ElementTree.fromstring(draw(hostile(), tmp_path / "net.svg").read_bytes())
    groups = [group for group in root.iter(f"{SVG}g") if "boundary" in group.get("class", "").split()]
    assert len(groups) == len(HOSTILE)
    shown = [texts(group)[0] for group in groups]
    assert shown[:6] == [*HOSTILE[:2], "two lines and a tab", *HOSTILE[3:6]]
    assert re.fullmatch(r"x+\u2026x+", shown[7])
    assert shown[10:12] == ["\ufffd\ufffdcontrol", "\ufffdsurrogate"]
    assert shown[16:18] == ["(no name)", "(no name)"]
    assert [group.get("data-node") for group in groups[:10]] == HOSTILE[:10]


def test_text_can_be_selected_and_is_in_the_middle_of_its_box(root: Element) -> None:
    for group in root.iter(f"{SVG}g"):
        words = group.get("class", "").split()
        shape = next((child for child in group if child.tag in (f"{SVG}path", f"{SVG}polygon")), None)
        if "node" not in words or shape is None:
            continue
        places = re.findall(r"(-?[\d.]+),(-?[\d.]+)", shape.get("points") or shape.get("d", ""))
        left, right = min(float(x) for x, _ in places), max(float(x) for x, _ in places)
        for text in group.findall(f"{SVG}text"):
            assert text.get("text-anchor") == "middle"
            assert float(text.get("x", "nan")) == pytest.approx((left + right) / 2, abs=0.02)


def painted(element: Element, theme: str) -> str | None:
    """The fill of an element in a theme, by the class that the stylesheet gives it."""
    for word in element.get("class", "").split():
        if word.startswith("fill-"):
            return getattr(PAINTS[word.removeprefix("fill-")], theme)
    return None


def luminance(colour: str) -> float:
    parts = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, two: str) -> float:
    """WCAG 2's contrast ratio."""
    dark, bright = sorted((luminance(one), luminance(two)))
    return (bright + 0.05) / (dark + 0.05)
