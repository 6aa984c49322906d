"""The report of a plan in a real browser: it asks for nothing, and its cursor moves through the schedule."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from browser.chromium import FOUND, Page, browsing
from torch import Tensor, nn

import revgraph as rg
from revgraph.drawing.rendering import find_graphviz

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
    torch.manual_seed(0)
    return rg.trace(Streams(), *torch.randn(3, 4, 8)).plan


@pytest.fixture(scope="module")
def url(plan: rg.Plan, tmp_path_factory: pytest.TempPathFactory) -> str:
    return rg.draw(plan, tmp_path_factory.mktemp("report") / "plan.html").as_uri()


def step(page: Page) -> int:
    return int(page.run("document.getElementById('step').value"))


def shown(page: Page, identity: str) -> str:
    return str(page.run(f"document.getElementById({identity!r}).textContent"))


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
    assert sorted(held) == sorted((set(plan.stored) & made) - unread)


def test_the_button_leads_to_the_peak(page: Page, url: str, plan: rg.Plan) -> None:
    page.open(url)
    page.click("#peak")
    moments = rg.simulate(plan)
    assert moments[step(page)].peak_bytes == max(each.peak_bytes for each in moments) == plan.peak_bytes


def test_a_click_and_a_search_explain_a_node(page: Page, url: str, plan: rg.Plan) -> None:
    page.open(url)
    name = next(iter(plan.decisions))
    page.click(f"#plan g.node[data-node='{name}']")
    assert shown(page, "about") == plan.explain(name)
    other = list(plan.decisions)[-1]
    page.run(
        f"(() => {{ const box = document.getElementById('search'); box.value = {other!r};"
        "box.dispatchEvent(new Event('change')); })()"
    )
    assert shown(page, "about") == plan.explain(other)
    assert page.run("document.querySelector('g.chosen').dataset.node") == other


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
