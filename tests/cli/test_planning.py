"""`plan`: a budget met or not, the frontier and its chart, and what torch's own checkpoint would take."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import revgraph as rg
from revgraph.cli.showing import show_plan
from revgraph.reporting import as_json, report

Run = Callable[..., Any]
BUDGET = 6_000_000


@pytest.fixture(scope="module")
def graph() -> rg.Graph:
    return rg.load("revnet-38", batch=4).graph


@pytest.fixture
def loaded(graph: rg.Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    """`rg.load` gives a RevNet of known graph at once."""

    class Net:
        pass

    net = Net()
    net.graph = graph  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setattr(rg, "load", lambda name, batch, **parameters: net)


def test_plan_prints_the_plan(revgraph: Run, tiny: Path) -> None:
    answer, plan = revgraph("plan", tiny, "--batch", 3), rg.load(tiny, batch=3).plan
    assert answer.status == 0
    assert answer.out == f"{plan}\n"
    assert max(map(len, answer.out.splitlines())) <= 80
    table = revgraph("plan", tiny, "--batch", 3, "--table").out
    assert table == f"{plan.summary()}\n\n{plan.table()}\n" == f"{plan.summary()}\n\n{report(plan)}\n"


@pytest.mark.slow
def test_plan_takes_the_width_of_a_terminal(
    graph: rg.Graph, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = rg.decide(replace(graph, name="x" * 200), {})
    show_plan(plan)
    assert max(map(len, capsys.readouterr().out.splitlines())) == 80
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    show_plan(plan)
    shown = capsys.readouterr().out
    assert len(shown.splitlines()[0]) == 120 and "\x1b" not in shown
    monkeypatch.setenv("COLUMNS", "20")
    show_plan(plan)
    assert len(capsys.readouterr().out.splitlines()[0]) == 80


def test_plan_as_json(revgraph: Run, tiny: Path) -> None:
    chosen = rg.load(tiny, batch=3).plan
    found = revgraph("plan", tiny, "--batch", 3, "--json").json
    assert (found["batch"], found["budget_bytes"], found["fits"]) == (3, None, True)
    assert {name: found[name] for name in as_json(chosen)} == as_json(chosen)
    assert "frontier" not in found


def test_plan_is_drawn(revgraph: Run, tiny: Path, tmp_path: Path) -> None:
    answer = revgraph("plan", tiny, "--json", "--out", tmp_path / "plan.svg")
    assert answer.status == 0 and answer.json["network"] == "tiny"
    assert "plan.svg" in answer.err
    assert "<svg" in (tmp_path / "plan.svg").read_text()


def test_budget_is_kept(revgraph: Run, loaded: None) -> None:
    found = revgraph("plan", "revnet-38", "--budget", f"{BUDGET:,} B", "--json").json
    assert found["peak_bytes"] <= found["budget_bytes"] == BUDGET
    assert found["fits"] is True
    assert found["flops_ratio"] < revgraph("plan", "revnet-38", "--json").json["flops_ratio"]


def test_budget_that_no_plan_fits_is_status_1(revgraph: Run, loaded: None, graph: rg.Graph) -> None:
    answer = revgraph("plan", "revnet-38", "--budget", "1 MiB")
    assert answer.status == 1 and answer.out == ""
    assert answer.err.startswith("error: no plan fits 1.0 MiB")
    found = revgraph("plan", "revnet-38", "--budget", "1 MiB", "--json")
    assert found.status == 1 and "no plan fits" in found.err
    assert found.json["fits"] is False and found.json["budget_bytes"] == 2**20
    assert 2**20 < found.json["least_bytes"] <= rg.keep_all(graph).peak_bytes
    assert found.json["node"] in graph.node


@pytest.mark.parametrize("budget", ["ten", "0", "-5", "5 parsecs"])
def test_budget_that_cannot_be_read_is_status_2(revgraph: Run, budget: str) -> None:
    answer = revgraph("plan", "revnet-38", f"--budget={budget}")
    assert answer.status == 2 and answer.out == "" and "is no budget" in answer.err


def test_budget_without_a_unit_is_asked_back_before_anything_is_loaded(revgraph: Run) -> None:
    answer = revgraph("plan", "revnet-38", "--budget", "120")
    assert answer.status == 2 and answer.out == "" and "did you mean '120 MiB'?" in answer.err


def test_a_budget_may_be_a_share_or_the_least(revgraph: Run, loaded: None, graph: rg.Graph) -> None:
    half = revgraph("plan", "revnet-38", "--budget", "50%", "--json").json
    assert half["peak_bytes"] <= half["budget_bytes"] == rg.keep_all(graph).peak_bytes // 2
    least = revgraph("plan", "revnet-38", "--budget", "least", "--json").json
    assert least["budget_bytes"] is None
    assert least["peak_bytes"] <= revgraph("plan", "revnet-38", "--json").json["peak_bytes"]


def test_effort_is_one_of_three(revgraph: Run, loaded: None) -> None:
    assert revgraph("plan", "revnet-38", "--effort", "quick", "--json").status == 0
    answer = revgraph("plan", "revnet-38", "--effort", "hard")
    assert answer.status == 2 and "efforts are quick, normal, thorough" in " ".join(answer.err.split())


def test_frontier_is_a_table(revgraph: Run, loaded: None) -> None:
    answer = revgraph("plan", "revnet-38", "--frontier")
    assert answer.status == 0
    lines = answer.out[answer.out.index("revnet-38: the frontier, predicted") :].splitlines()
    assert len(lines) > 4 and sum(line.endswith("knee") for line in lines) == 1
    assert sum("chosen" in line for line in lines) == 1
    assert max(map(len, lines)) <= 80


def test_frontier_as_json(revgraph: Run, loaded: None, graph: rg.Graph) -> None:
    found = revgraph("plan", "revnet-38", "--frontier", "--json").json
    sizes = [each["peak_bytes"] for each in found["frontier"]]
    ratios = [each["time_ratio"] for each in found["frontier"]]
    assert sizes == sorted(set(sizes)) and ratios == sorted(set(ratios), reverse=True)
    assert ratios[-1] == 1.0 and sum(each["knee"] for each in found["frontier"]) == 1
    plain = found["baselines"]["ordinary autograd"]
    assert plain == {
        "peak_bytes": rg.keep_all(graph).peak_bytes,
        "held_bytes": rg.keep_all(graph).held_bytes,
        "flops_ratio": 1.0,
        "time_ratio": 1.0,
    }
    assert found["baselines"]["torch's checkpoint per block"]["flops_ratio"] > 1


def test_chart_shows_the_frontier_the_budget_and_the_baselines(
    revgraph: Run, loaded: None, tmp_path: Path
) -> None:
    path = tmp_path / "frontier.svg"
    answer = revgraph("plan", "revnet-38", "--budget", BUDGET, "--chart", path)
    assert answer.status == 0 and "frontier.svg" in answer.err
    assert "the frontier, predicted" not in answer.out
    root = ElementTree.parse(path).getroot()
    words = {"".join(text.itertext()) for text in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {
        "the frontier's plans",
        "its knee",
        "the plan chosen",
        "ordinary autograd",
        "torch's checkpoint per block",
        "the budget, 5.7 MiB",
    } <= words


@pytest.mark.parametrize("options", [("--chart", "frontier.pdf"), ("--out", "plan.jpeg")])
def test_unknown_suffix_is_refused_before_planning(revgraph: Run, options: tuple[str, ...]) -> None:
    answer = revgraph("plan", "no such network", *options)
    assert answer.status == 2 and "ends in one of" in " ".join(answer.err.split())


def test_a_measured_step_takes_what_is_predicted(revgraph: Run, tiny: Path, tmp_path: Path) -> None:
    answer = revgraph("plan", tiny, "--measure", "--out", tmp_path / "plan.svg", "--json")
    said = answer.json
    assert said["measured_peak_bytes"] == said["peak_bytes"]
    assert f"measured in one step: {said['peak_bytes']:,} bytes" in answer.err


@pytest.mark.slow
def test_a_report_has_the_frontier_the_budget_and_measured_bytes(
    revgraph: Run, tiny: Path, tmp_path: Path
) -> None:
    path = tmp_path / "plan.html"
    answer = revgraph("plan", tiny, "--frontier", "--measure", "--budget", "1 GiB", "--out", path)
    assert answer.status == 0
    text = path.read_text()
    assert "Other budgets" in text and "budget 1.0 GiB" in text and ">measured<" in text


@pytest.mark.slow
def test_a_plan_is_written_for_other_tools(revgraph: Run, tiny: Path, tmp_path: Path) -> None:
    trace, snapshot = tmp_path / "plan.trace.json", tmp_path / "plan.pickle"
    said = revgraph("plan", tiny, "--measure", "--json", "--out", trace).json
    counters = [each for each in json.loads(trace.read_text())["traceEvents"] if each["ph"] == "C"]
    for name in ("live bytes", "measured live bytes"):
        assert max(each["args"]["bytes"] for each in counters if each["name"] == name) == said["peak_bytes"]
    assert revgraph("plan", tiny, "--out", snapshot).status == 0
    assert snapshot.read_bytes().startswith(b"\x80\x04")


def test_a_refused_suffix_names_the_exports_too(revgraph: Run) -> None:
    answer = revgraph("plan", "no such network", "--out", "plan.json")
    assert answer.status == 2
    assert ".svg, .png, .html, .trace.json, .pickle" in " ".join(answer.err.replace("│", " ").split())
