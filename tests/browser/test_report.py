"""The report of a plan in a real browser: it asks for nothing, and its cursor moves through the schedule."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from browser.chromium import FOUND, LEGIBILITY, Page, browsing
from torch import Tensor, nn

import revgraph as rg
from revgraph.drawing.rendering import find_graphviz
from revgraph.planning.plans import human_bytes

pytestmark = [
    pytest.mark.skipif(FOUND is None, reason="no Chromium is installed"),
    pytest.mark.skipif(find_graphviz() is None, reason="neither dot nor graphviz-pure is installed"),
]


class Streams(nn.Module):
    """Three streams, a skip, and a boundary between them."""

    def __init__(self) -> None:
        super().__init__()
        self.moves = nn.ModuleList(nn.Linear(8, 8) for _ in range(6))
        self.turn = nn.Linear(8, 8)

    def forward(self, a: Tensor, b: Tensor, c: Tensor) -> Any:
        start = b
        for index, move in enumerate(self.moves):
            a, b, c = b, c, a + move(torch.tanh(b + c))
            if index == 2:
                a = torch.relu(self.turn(a))
        return a + start, b, c


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with browsing() as page:
        yield page


@pytest.fixture(scope="module")
def plan() -> rg.Plan:
    """A plan by hand, which inverts every coupling and stores what the boundary reads."""
    torch.manual_seed(0)
    return rg.decide(rg.trace(Streams(), *torch.randn(3, 4, 8)).graph, {})


@pytest.fixture(scope="module")
def url(plan: rg.Plan, tmp_path_factory: pytest.TempPathFactory) -> str:
    return rg.draw(plan, tmp_path_factory.mktemp("report") / "plan.html").as_uri()


def step(page: Page) -> int:
    return int(page.run("document.getElementById('step').value"))


def shown(page: Page, identity: str) -> str:
    return str(page.run(f"document.getElementById({identity!r}).textContent"))


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_opens_from_a_file_without_errors_or_requests(page: Page, url: str, scheme: str) -> None:
    page.open(url, scheme)
    assert page.run("document.querySelectorAll('svg').length") == 3
    assert [each for each in page.requests if not each.startswith("data:")] == [url]
    assert page.errors == []


def test_light_and_dark_differ_and_can_be_read(page: Page, url: str) -> None:
    grounds = []
    for scheme in ("light", "dark"):
        page.open(url, scheme)
        ground, ink = (
            [int(part) for part in page.run(f"getComputedStyle(document.body).{key}")[4:-1].split(",")]
            for key in ("backgroundColor", "color")
        )
        assert abs(sum(ground) - sum(ink)) > 450
        grounds.append(ground)
        filled = page.run(
            "[...document.querySelectorAll('#time svg')].map("
            "svg => getComputedStyle(svg.querySelector('rect')).fill)"
        )
        assert filled == [f"rgb({', '.join(map(str, ground))})"] * 2
    assert sum(grounds[0]) > sum(grounds[1])


def test_arrow_keys_move_the_cursor_in_all_pictures(page: Page, url: str, plan: rg.Plan) -> None:
    page.open(url)
    moments = rg.simulate(plan)
    before = page.run("[...document.querySelectorAll('.cursor')].map(each => each.getAttribute('x'))")
    for expected in (1, 2, 3):
        page.press("ArrowRight")
        assert step(page) == expected
    page.press("ArrowLeft")
    assert step(page) == 2
    assert page.run("document.querySelectorAll('g.here').length") == 1
    assert page.run("document.querySelector('g.here').dataset.node") == moments[2].step.node
    after = page.run("[...document.querySelectorAll('.cursor')].map(each => each.getAttribute('x'))")
    assert len(after) == 2
    assert all(float(new) > float(old) for new, old in zip(after, before, strict=True))
    page.press("End")
    assert step(page) == len(moments) - 1
    page.press("ArrowRight")
    assert step(page) == len(moments) - 1
    page.press("Home")
    assert step(page) == 0
    assert page.errors == []


def test_every_step_says_what_it_does_and_the_lines_of_algorithm_1(
    page: Page, url: str, plan: rg.Plan
) -> None:
    page.open(url)
    for index, moment in enumerate(rg.simulate(plan)):
        assert step(page) == index
        what = shown(page, "what")
        assert moment.step.node in what or moment.step.action in ("loss", "free")
        lines = page.run("[...document.querySelectorAll('#algorithm li.runs')].map(each => each.value)")
        if moment.step.action == "invert":
            assert lines
            assert max(lines) <= 3
        elif moment.step.action == "run":
            assert lines == []
        page.press("ArrowRight")


def test_the_tape_is_what_the_plan_stores_at_the_turn(page: Page, url: str, plan: rg.Plan) -> None:
    page.open(url)
    turn = next(index for index, each in enumerate(rg.simulate(plan)) if each.step.action == "loss")
    for _ in range(turn):
        page.press("ArrowRight")
    held = page.run("[...document.querySelectorAll('#tape span.stored')].map(each => each.textContent)")
    made = {name for node in plan.graph.nodes if node.kind != "input" for name in node.outputs}
    unread = {name for each in rg.simulate(plan) if each.step.action == "free" for name in each.step.frees}
    assert held
    assert sorted(held) == sorted((set(plan.stored) & made) - unread)


def test_the_button_leads_to_the_peak(page: Page, url: str, plan: rg.Plan) -> None:
    page.open(url)
    page.click("#peak")
    moments = rg.simulate(plan)
    assert moments[step(page)].peak_bytes == max(each.peak_bytes for each in moments) == plan.peak_bytes


def find(page: Page, name: str) -> None:
    page.run(
        f"(() => {{ const box = document.getElementById('search'); box.value = {name!r};"
        "box.dispatchEvent(new Event('change')); })()"
    )


def in_view(page: Page, selector: str) -> bool:
    """Whether all of an element can be seen: it is in the window, and nothing lies over its corners."""
    return page.run(
        f"(() => {{ const found = document.querySelector({selector!r});"
        "const box = found.getBoundingClientRect();"
        "const inside = box.width > 0 && box.left >= 0 && box.top >= 0"
        " && box.right <= window.innerWidth && box.bottom <= window.innerHeight;"
        "const middle = document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);"
        "const ends = [[box.left + 6, box.top + 6], [box.right - 6, box.bottom - 6]]"
        " .map(([x, y]) => document.elementFromPoint(x, y));"
        "const whole = found.closest('g') ?? found;"  # a node's words lie over its shape
        "const near = (each) => whole.contains(each) || each.contains(whole);"
        "return inside && [middle, ...ends].every(near); })()"
    )


def test_a_click_and_a_search_explain_a_node(page: Page, url: str, plan: rg.Plan) -> None:
    page.open(url)
    assert not in_view(page, "#found")
    name = next(iter(plan.decisions))
    page.click(f"#plan g.node[data-node='{name}']")
    assert shown(page, "about") == plan.explain(name)
    other = list(plan.decisions)[-1]
    find(page, other)
    assert shown(page, "about") == plan.explain(other)
    assert page.run("document.querySelector('g.chosen').dataset.node") == other
    find(page, "nobody")
    assert shown(page, "about") == "There is no node nobody."
    assert shown(page, "goto") == "" and page.run("document.querySelector('g.chosen')") is None
    find(page, plan.graph.nodes[0].name)
    assert "an input, which the caller holds" in shown(page, "about")
    page.press("Escape")
    assert not in_view(page, "#found")
    page.press("/")
    page.press("Enter")  # the same name once more
    assert in_view(page, "#found")
    page.click("#close")
    assert not in_view(page, "#found")


@pytest.mark.parametrize("size", [(390, 800), (1280, 900)])
def test_what_was_found_is_in_view_and_leads_to_its_steps(
    page: Page, url: str, plan: rg.Plan, size: tuple[int, int]
) -> None:
    page.open(url, size=size)
    page.run("window.scrollTo(0, document.body.scrollHeight)")
    name = list(plan.decisions)[2]
    find(page, name)
    assert in_view(page, "#about") and in_view(page, "#goto")
    places = [index for index, each in enumerate(rg.simulate(plan)) if each.step.node == name]
    links = page.run("[...document.querySelectorAll('#goto a')].map(each => each.getAttribute('href'))")
    assert links == [f"#step={place + 1}" for place in places]
    assert shown(page, "goto").startswith("go to its steps: forward ")
    page.click("#goto a:last-child")
    assert step(page) == places[-1]
    assert page.errors == []


def test_up_and_down_go_from_node_to_node(page: Page, url: str, plan: rg.Plan) -> None:
    page.open(url)
    owners = [each.step.stage or each.step.node for each in rg.simulate(plan)]
    turns = [index for index, owner in enumerate(owners) if not index or owner != owners[index - 1]]
    assert len(turns) < len(owners)
    for turn in turns[1:]:
        page.press("ArrowDown")
        assert step(page) == turn
    page.press("ArrowDown")
    assert step(page) == len(owners) - 1
    page.press("End")
    for turn in reversed(turns[:-1] if turns[-1] == len(owners) - 1 else turns):
        page.press("ArrowUp")
        assert step(page) == turn
    page.press("ArrowUp")
    assert step(page) == 0


def test_keys_lead_to_the_peak_the_search_and_the_list_of_keys(page: Page, url: str, plan: rg.Plan) -> None:
    page.open(url)
    page.press("p")
    assert rg.simulate(plan)[step(page)].peak_bytes == plan.peak_bytes
    page.press("Home")
    page.press("P")
    peak = step(page)
    assert rg.simulate(plan)[peak].peak_bytes == plan.peak_bytes
    page.press("/")
    assert page.run("document.activeElement.id") == "search"
    page.press("Home")  # is the search box's own
    assert step(page) == peak
    page.press("Escape")
    assert page.run("document.activeElement.id") != "search"
    opened = "document.getElementById('keylist').open"
    assert not page.run(opened)
    page.press("?")
    assert page.run(opened)
    assert in_view(page, "#keylist")
    page.press("Home")
    assert step(page) == peak
    page.press("?")
    assert not page.run(opened)
    page.click("#help")
    assert page.run(opened)
    page.click("#keylist button")
    assert not page.run(opened)
    page.press("Home")
    assert step(page) == 0
    assert page.errors == []


def test_the_keys_are_shown(page: Page, url: str) -> None:
    page.open(url)
    assert in_view(page, "#keys")
    listed = "[...document.querySelectorAll('#keylist kbd')].map(each => each.textContent)"
    short = "[...document.querySelectorAll('#keys kbd')].map(each => each.textContent)"
    assert set(page.run(short)) == {"\u2190", "\u2192", "\u2191", "\u2193", "P", "/", "?"}
    assert set(page.run(short)) | {"PgUp", "PgDn", "Home", "End", "Esc"} == set(page.run(listed))


def test_a_link_goes_to_a_step(page: Page, url: str, plan: rg.Plan) -> None:
    def opened(fragment: str) -> int:
        page.open("about:blank")
        page.open(url + fragment)
        return step(page)

    count = len(rg.simulate(plan))
    assert opened("#step=5") == 4
    assert page.run("document.querySelector('#count').getAttribute('href')") == "#step=5"
    page.press("ArrowRight")
    assert page.run("location.hash") == "#step=6"
    page.run("location.hash = '#step=2'")
    page.run("new Promise(done => setTimeout(done, 50))")
    assert step(page) == 1
    for fragment, place in (("", 0), ("#step=0", 0), (f"#step={count + 9}", count - 1), ("#step=x", 0)):
        assert opened(fragment) == place
    assert page.errors == []


def luminance(colour: str) -> float:
    parts = (int(part) / 255 for part in colour.partition("(")[2].rstrip(")").split(",")[:3])
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_values_that_are_not_held_can_be_read(page: Page, url: str, plan: rg.Plan, scheme: str) -> None:
    page.open(url, scheme)
    for key in ("Home", "End"):
        page.press(key)
        found = page.run(
            "[...document.querySelectorAll('#plan g.gone')].map(group => {"
            "const look = (each) => getComputedStyle(group.querySelector(each));"
            "const shape = group.querySelector('path, polygon');"
            "return [look('text').fill, getComputedStyle(shape).fill, getComputedStyle(group).opacity,"
            "getComputedStyle(shape).strokeDasharray, group.querySelector('text').textContent]; })"
        )
        assert found
        for front, behind, opacity, dashes, text in found:
            dark, bright = sorted((luminance(front), luminance(behind)))
            assert (bright + 0.05) / (dark + 0.05) >= 4.5
            assert opacity == "1" and dashes != "none"
            assert text.strip().startswith("stored")


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_at_every_step(page: Page, url: str, plan: rg.Plan, scheme: str) -> None:
    page.open(url, scheme)
    page.run(LEGIBILITY)
    for index in range(len(rg.simulate(plan))):
        assert page.run("legibility.faint()") == [], f"step {index + 1}"
        page.press("ArrowRight")
    find(page, next(iter(plan.decisions)))
    assert page.run("legibility.faint()") == []
    page.press("?")
    assert page.run("legibility.faint()") == []


def test_the_headline_is_beside_ordinary_training(page: Page, url: str, plan: rg.Plan) -> None:
    page.open(url)
    share = f"{plan.peak_bytes / plan.ordinary_bytes:.0%}"
    assert shown(page, "headline") == (
        f"Peak {human_bytes(plan.peak_bytes)}, {share} of ordinary training's "
        f"{human_bytes(plan.ordinary_bytes)}."
    )
    assert page.run("document.getElementById('question')") is None


def test_on_a_phone_the_picture_and_the_step_are_seen_together(page: Page, url: str, plan: rg.Plan) -> None:
    page.open(url, size=(390, 800))
    for index in range(len(rg.simulate(plan))):
        assert step(page) == index
        assert in_view(page, "#what") and in_view(page, "#live")
        if page.run("document.querySelector('g.here') !== null"):
            assert in_view(page, "g.here > :is(path, polygon)"), index
        page.press("ArrowRight")
    page.run("window.scrollTo(0, document.body.scrollHeight)")
    page.press("p")
    assert in_view(page, "#what")


def test_a_question_hides_the_peak_until_it_is_answered(page: Page, tmp_path: Path) -> None:
    wide = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 4))
    plan = rg.trace(wide, torch.randn(16, 8)).plan
    asking = rg.draw(plan, tmp_path / "question.html", question=True, budget="1 MiB").as_uri()
    moments = rg.simulate(plan)
    peak = max(range(len(moments)), key=lambda index: moments[index].peak_bytes)
    marks = (
        "[...document.querySelectorAll('[data-mark=peak], #plan g.node.peak text.fill-peak')]"
        ".map(each => getComputedStyle(each).visibility)"
    )
    border = "getComputedStyle(document.querySelector('#plan g.node.peak > .line-peak')).stroke"
    page.open(asking)
    assert in_view(page, "#question") and "Which step is the peak?" in shown(page, "question")
    assert set(page.run(marks)) == {"hidden"}
    hidden = page.run(border)
    words = page.run(
        "[...document.querySelectorAll('svg text')].filter(each => each.checkVisibility({"
        "visibilityProperty: true})).map(each => each.textContent.trim())"
    )
    assert not any(word.startswith(("peak ", "predicted peak")) for word in words)
    assert any(word.startswith("budget ") for word in words)
    assert peak != 0
    page.click("#answer")
    assert shown(page, "verdict").startswith("Not step 1: ")
    assert set(page.run(marks)) == {"hidden"}
    for _ in range(peak):
        page.press("ArrowRight")
    page.click("#answer")
    assert shown(page, "verdict").startswith(f"Yes: step {peak + 1}, ")
    assert set(page.run(marks)) == {"visible"}
    assert page.run(border) != hidden
    for ask in (lambda: page.click("#reveal"), lambda: page.press("p")):
        page.open("about:blank")
        page.open(asking)
        assert step(page) == 0
        ask()
        assert shown(page, "verdict").startswith(f"It is step {peak + 1}, ")
        assert step(page) == peak
        assert set(page.run(marks)) == {"visible"}
    assert page.errors == []


def test_measured_bytes_a_budget_and_the_frontier_are_shown(page: Page, tmp_path: Path) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(3, 4, 8)
    net = rg.trace(Streams(), *inputs)
    plans = rg.frontier(net.graph)
    dots = rg.track(net, *inputs)
    kept = rg.keep_all(net.graph)
    report = tmp_path / "plan.html"
    rg.draw(net.plan, report, measured=dots, budget="2 KiB", frontier=plans, beside={"all kept": kept})
    page.open(report.as_uri(), "dark")
    assert page.run("document.querySelectorAll('#time svg')[0].querySelectorAll('circle').length") > len(dots)
    words = page.run("[...document.querySelectorAll('svg text')].map(each => each.textContent.trim())")
    assert {"measured", "budget 2.0 KiB", "this plan", "all kept", "its knee"} <= set(words)
    # The chart's own style holds for it alone.
    joins = (
        "[...document.querySelectorAll('#time svg path')].map(each => getComputedStyle(each).strokeLinejoin)"
    )
    assert set(page.run(joins)) == {"miter"}
    assert page.run("document.querySelector('#frontier svg').getBoundingClientRect().width") > 300
    page.press("ArrowRight")
    assert page.errors == []
    assert [each for each in page.requests if not each.startswith("data:")] == [report.as_uri()]


@pytest.mark.parametrize("size", [(390, 800), (1280, 900)])
def test_nothing_is_wider_than_the_window(page: Page, url: str, size: tuple[int, int]) -> None:
    page.open(url, size=size)
    assert page.run("document.documentElement.scrollWidth") <= size[0]
    assert page.run("document.getElementById('plan').getBoundingClientRect().width") > 250


@pytest.mark.slow
def test_a_folded_plan_shows_each_node_where_it_is_drawn(page: Page, tmp_path: Path) -> None:
    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(rg.Additive(nn.Linear(4, 4), nn.Linear(4, 4)) for _ in range(30))

        def forward(self, a: Tensor, b: Tensor) -> Any:
            for block in self.blocks:
                a, b = block(a, b)
            return a, b

    plan = rg.trace(Chain(), *torch.randn(2, 3, 4)).plan
    page.open(rg.draw(plan, tmp_path / "chain.html").as_uri())
    for _ in range(5):
        page.press("ArrowRight")
        assert page.run("document.querySelectorAll('g.here').length") == 1
    visible = "document.querySelectorAll('#plan > div:not([hidden]) g.node[data-node]').length"
    folded = page.run(visible)
    page.click("#unfold")
    assert page.run(visible) == len(plan.graph.nodes) > folded
    node = rg.simulate(plan)[step(page)].step.node
    assert page.run("document.querySelector('#plan > div:not([hidden]) g.here').dataset.node") == node
    page.click("#unfold")
    assert page.run(visible) == folded
    assert page.errors == []
