"""Reports say the same to people and to programs, with rich and without it."""

from __future__ import annotations

import builtins
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import pytest
from drawing.samples import chain, plan_for, revnet, three_streams

from revgraph.graph import Graph
from revgraph.planning import Moment, Plan, Source
from revgraph.planning.schedule import Instruction
from revgraph.reporting import Report, Reportable, as_json, report, table


@dataclass(frozen=True)
class Measurement:
    peak_bytes: int = 3 << 20
    held_bytes: int = 2 << 20
    flops: int = 1_234_567
    flops_ratio: float = 1.333
    calls: Mapping[str, int] = field(default_factory=lambda: {"f": 2, "g": 1})


@dataclass(frozen=True)
class Timed(Measurement):
    seconds: float | None = 0.25


@dataclass(frozen=True)
class GradientReport:
    max_relative_error: float = 1e-7
    angle_degrees: float = 2e-5
    drift: Mapping[str, float] = field(default_factory=lambda: {"x1": 1e-8, "x2": 3e-8})
    verdict: str = "good"
    begins_at: str | None = None
    flips: Mapping[str, int] = field(default_factory=dict)


def without_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def fake(name: str, *rest: object, **named: object) -> object:
        if name.partition(".")[0] == "rich":
            raise ImportError("no rich")
        return real(name, *rest, **named)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(builtins, "__import__", fake)


def test_a_graph_as_json_is_read_back() -> None:
    graph = three_streams()
    assert Graph.from_json(json.dumps(as_json(graph))) == graph


def test_the_keys_of_a_plan_are_stable() -> None:
    plan = plan_for(chain(2))
    assert as_json(plan) == {
        "network": "chain",
        "decisions": {
            "blocks.0.f": "invert",
            "blocks.0.g": "invert",
            "blocks.1.f": "invert",
            "blocks.1.g": "keep",
        },
        "stored": list(plan.stored),
        "peak_bytes": plan.peak_bytes,
        "peak_at": "blocks.1.f",
        "held_bytes": plan.held_bytes,
        "ordinary_bytes": plan.ordinary_bytes,
        "flops_ratio": 1.25,
        "time_ratio": plan.time_ratio,
        "cost": "time",
        "profile": plan.profile.as_json(),
        "reasons": dict.fromkeys(plan.decisions, "decided by hand for a test"),
        "results": {},
        "holds": {},
        "drops": {},
        "sources": {name: {"how": source.how, "node": source.node} for name, source in plan.sources.items()},
    }


def finer() -> Plan:
    return plan_for(
        chain(3),
        results={"blocks.1.f": (-1, 0)},
        holds={"blocks.0.f": "blocks.0.g"},
        drops={"blocks.1.g": ("blocks.0.f",)},
        sources={"blocks.0.f": Source("recomputed", "blocks.0.f")},
    )


def test_finer_options_are_in_the_json_of_a_plan() -> None:
    found = json.loads(json.dumps(as_json(finer())))
    assert found["results"] == {"blocks.1.f": [-1, 0]}
    assert found["holds"] == {"blocks.0.f": "blocks.0.g"}
    assert found["drops"] == {"blocks.1.g": ["blocks.0.f"]}
    assert found["sources"] == {"blocks.0.f": {"how": "recomputed", "node": "blocks.0.f"}}


def test_finer_options_have_columns_where_there_are_any() -> None:
    made = report(finer())
    assert made.head[7:10] == ("kept results", "rerun", "drops after")
    rows = {row[0]: row[7:10] for row in made.rows}
    assert rows["blocks.0.f"] == ("", "held from blocks.0.g", "")
    assert rows["blocks.1.f"] == ("-1: what its function returns, 0: heavy result 0", "", "")
    assert rows["blocks.1.g"] == ("", "", "blocks.0.f")
    usual = ("node", "kind", "decision", "held bytes", "what is held", "internals", "stored inputs", "why")
    assert report(plan_for(chain(3))).head == usual


def frontier() -> list[Plan]:
    points = ((10, 1.5), (12, 1.1), (30, 1.0))
    return [
        replace(finer(), peak_bytes=size << 20, flops_ratio=ratio, time_ratio=ratio) for size, ratio in points
    ]


def test_a_frontier_is_a_table_of_its_plans_with_the_knee() -> None:
    made = report(frontier())
    assert [row[:2] for row in made.rows] == [
        ("10.0 MiB", "x1.500"),
        ("12.0 MiB", "x1.100"),
        ("30.0 MiB", "x1.000"),
    ]
    assert made.head[3:9] == ("keep", "invert", "recompute", "results", "rerun", "runs")
    assert made.rows[0][3:9] == ("1", "5", "0", "2", "1", "2")
    assert [row[-1] for row in made.rows] == ["", "knee", ""]
    found = as_json(frontier())
    assert [each["knee"] for each in found] == [False, True, False]
    assert {name: value for name, value in found[0].items() if name != "knee"} == as_json(frontier()[0])


def test_a_frontier_marks_the_plan_chosen() -> None:
    plans = frontier()
    assert [row[-1] for row in report(plans, plans[1]).rows] == ["", "chosen knee", ""]
    assert [row[-1] for row in report(plans, replace(plans[2])).rows] == ["", "knee", "chosen"]
    other = replace(plans[0], peak_bytes=20 << 20)
    made = report(plans, other)
    assert [(row[0], row[-1]) for row in made.rows][2:] == [("20.0 MiB", "chosen"), ("30.0 MiB", "")]
    assert [row[-1] for row in report([], other).rows] == ["chosen"]
    with pytest.raises(TypeError, match="cannot report a list"):
        report([])


def moments() -> list[Moment]:
    run = Instruction("run", "f", "", ("x",), ("y",), ("y",), ("x",))
    return [Moment(run, 2048, 4096, 1_000, 7), Moment(Instruction("rerun", "f", "g"), 1024, 1024, 500)]


def test_a_simulation_is_a_table_of_its_steps() -> None:
    made = report(moments())
    assert made.title == "a training step, simulated: peak 4.0 KiB"
    assert made.rows == (
        ("run", "f", "", "2.0 KiB", "4.0 KiB", "1,000"),
        ("rerun", "f", "g", "1.0 KiB", "1.0 KiB", "500"),
    )
    assert as_json(moments())[0] == {
        "action": "run",
        "node": "f",
        "stage": "",
        "reads": ["x"],
        "makes": ["y"],
        "stores": ["y"],
        "frees": ["x"],
        "live_bytes": 2048,
        "peak_bytes": 4096,
        "flops": 1_000,
        "nanoseconds": 7,
    }


def test_the_keys_of_measurements_and_gradient_reports_are_stable() -> None:
    measured = {
        "peak_bytes": 3 << 20,
        "held_bytes": 2 << 20,
        "flops": 1_234_567,
        "flops_ratio": 1.333,
        "calls": {"f": 2, "g": 1},
    }
    assert as_json(Measurement()) == measured
    assert as_json(Timed()) == {**measured, "seconds": 0.25}
    assert as_json(Timed(seconds=None)) == measured
    assert as_json({"stored": Measurement()}) == {"stored": measured}
    assert as_json(GradientReport()) == {
        "verdict": "good",
        "begins_at": None,
        "max_relative_error": 1e-7,
        "angle_degrees": 2e-5,
        "drift": {"x1": 1e-8, "x2": 3e-8},
        "flips": {},
    }


def test_numbers_that_json_lacks_are_null() -> None:
    data = as_json(GradientReport(float("nan"), float("inf"), {"x": float("-inf"), "y": 0.5}))
    assert data["max_relative_error"] is None and data["angle_degrees"] is None
    assert data["drift"] == {"x": None, "y": 0.5}
    json.dumps(data, allow_nan=False)
    assert as_json(replace(plan_for(chain(2)), flops_ratio=float("nan")))["flops_ratio"] is None


@pytest.mark.parametrize(
    "reportable",
    [
        revnet(),
        plan_for(revnet()),
        Measurement(),
        {"stored": Measurement(), "inverted": Timed()},
        GradientReport(),
        frontier(),
        moments(),
    ],
    ids=["graph", "plan", "measurement", "measurements", "gradients", "frontier", "simulation"],
)
def test_every_report_is_a_table_with_rich_and_without(
    reportable: Reportable, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rich.console import Console

    made = report(reportable)
    assert all(len(row) == len(made.head) for row in made.rows)
    assert made.right <= set(made.head)
    console = Console(width=200, no_color=True)
    with console.capture() as caught:
        console.print(table(reportable))
    without_rich(monkeypatch)
    plain = table(reportable)
    assert isinstance(plain, str)
    for row in made.rows:
        for cell in row:
            assert cell in plain
            assert cell in caught.get()


@pytest.mark.parametrize("width", [50, 80, 300])
@pytest.mark.parametrize(
    "reportable",
    [revnet(), plan_for(revnet()), {"stored": Measurement(), "inverted": Timed()}, frontier(), moments()],
    ids=["graph", "plan", "measurements", "frontier", "simulation"],
)
def test_a_table_fits_a_terminal_and_says_all_there(reportable: Reportable, width: int) -> None:
    """In columns, or, where these have no room, row by row."""
    made = report(reportable)
    _, *lines = made.within(width).splitlines()
    assert max(map(len, lines)) <= width
    words = [word for line in lines for word in line.split()]
    for row in made.rows:
        for cell in row:
            assert not Counter(cell.split()) - Counter(words)


def test_the_last_column_of_a_table_is_broken_between_words_where_that_is_enough() -> None:
    made = Report(
        "the run", ("name", "count", "what it is"), (("a", "10", "of many words " * 3),), frozenset({"count"})
    )
    assert made.within(40).splitlines() == [
        "the run",
        "name  count  what it is",
        "a        10  of many words of many words",
        "             of many words",
    ]
    assert made.within(30).splitlines() == [
        "the run",
        "",
        "a",
        "  count       10",
        "  what it is  of many words of",
        "              many words of",
        "              many words",
    ]


def test_names_are_not_taken_for_markup() -> None:
    from rich.console import Console

    console = Console(width=120, no_color=True)
    with console.capture() as caught:
        console.print(table({"[bold]a[/bold]": Measurement()}))
    assert "[bold]a[/bold]" in caught.get()


def test_measurements_stand_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    without_rich(monkeypatch)
    assert table({"stored": Measurement(peak_bytes=9 << 20), "inverted": Timed()}) == "\n".join(
        [
            "one training step",
            "quantity                                        stored   inverted",
            "activation bytes at the peak                   9.0 MiB    3.0 MiB",
            "activation bytes held for the backward pass    2.0 MiB    2.0 MiB",
            "FLOPs                                        1,234,567  1,234,567",
            "FLOPs over ordinary autograd's                   1.333      1.333",
            "evaluations, most of one node                        2          2",
            "evaluations, all nodes                               3          3",
            "seconds                                                     0.250",
        ]
    )


def test_the_largest_drift_comes_first() -> None:
    assert [row[0] for row in report(GradientReport()).rows] == [
        "gradients: largest relative error",
        "gradients: angle in degrees",
        "gradients: verdict",
        "drift of x2",
        "drift of x1",
    ]


def test_where_gradients_go_wrong_comes_before_the_drift() -> None:
    rows = report(GradientReport(verdict="flipped", begins_at="f.1", flips={"f.1": 1200, "f.0": 3})).rows
    assert rows[2:6] == (
        ("gradients: verdict", "flipped"),
        ("gradients: wrong from node", "f.1"),
        ("flipped choices in f.1", "1,200"),
        ("flipped choices in f.0", "3"),
    )


@pytest.mark.parametrize("function", [as_json, report, table])
def test_anything_else_is_a_clear_error(function: object) -> None:
    with pytest.raises(TypeError, match=r"^cannot report a int: give a Graph, a Plan, what rg\.measure"):
        function(3)  # pyright: ignore[reportCallIssue]
    with pytest.raises(TypeError, match="cannot report a list"):
        function([])  # pyright: ignore[reportCallIssue]
    with pytest.raises(TypeError, match="cannot report a str"):
        function({"name": "value"})  # pyright: ignore[reportCallIssue]
