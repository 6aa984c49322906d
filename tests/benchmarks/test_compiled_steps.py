"""Compiled steps: every way is a row, one that fails does not lose the others, and rows are kept."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import benchmarks.compiled_steps as experiment
import revgraph as rg
from benchmarks.compiled_steps import (
    BUDGETS,
    QUICK_BUDGETS,
    RESULTS,
    gathered,
    main,
    networks,
    page,
    section,
    study,
)

CONDITIONS = {
    "machine": {"cpu": "a processor", "libraries": {"torch": "2.13.0"}},
    "rounds": 3,
    "load_average": [0.5, 2.25],
    "problem": None,
}


class Broken(torch.nn.Module):
    def forward(self, *_: Any) -> Any:
        raise ValueError("no compiler\nand more")


def contenders(net: rg.ReversibleModule, budgets: Any) -> Any:
    yield "plain, eager", net.__dict__["_model"]
    yield "revgraph, eager", net
    for budget in budgets:
        yield f"torch.compile, memory budget {budget}", Broken()
    yield 'rg.compile, "aot"', rg.compile(net, "aot")


@pytest.mark.slow
def test_every_memory_budget_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch compiles one model a few times, and then runs it as it is without a word."""
    compiled: list[float | None] = []

    def backend(budget: float | None) -> Any:
        def compile_once(graph: Any, _: Any) -> Any:
            compiled.append(budget)
            return graph.forward

        return compile_once

    monkeypatch.setattr(experiment, "_inductor", backend)
    monkeypatch.setattr(experiment, "compile", lambda net, _: net)
    torch._dynamo.reset()
    x = torch.randn(4, 128)
    told: list[dict[str, Any]] = []
    study((rg.trace(experiment.Chain(1), x), (x,), "A chain"), BUDGETS, 1, told.append)
    assert set(compiled) == {None, *BUDGETS}
    assert not any("problem" in each for each in told)


@pytest.mark.slow
def test_ways_are_timed_and_weighed_and_one_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "contenders", contenders)
    torch.manual_seed(0)
    x = torch.randn(64, 128)
    net = rg.trace(experiment.Chain(3), x)
    decisions: Any = {node.name: "invert" for node in net.graph.planned if node.kind == "coupling"}
    net.plan = rg.decide(net.graph, decisions)
    told: list[dict[str, Any]] = []
    study((net, (x,), "A chain"), (0.5,), 2, told.append)
    found = gathered(told)
    plain, eager, broken, aot = found["ways"]
    assert broken == {"way": "torch.compile, memory budget 0.5", "problem": "ValueError: no compiler"}
    for each in (plain, eager, aot):
        assert each.keys() == {"way", "compile_seconds", "seconds", "held_bytes", "peak_bytes"}
    assert aot["held_bytes"] == pytest.approx(net.plan.held_bytes, rel=0.03)
    assert aot["held_bytes"] < plain["held_bytes"]
    stopped = section({**gathered(told[:3]), **CONDITIONS, "problem": "stopped after 9 s"})  # before timing
    assert "ended early: stopped after 9 s" in stopped
    assert re.search(r"\| plain, eager +\| +- \|", stopped)
    text = section({**found, **CONDITIONS})
    assert "### A chain" in text and "memory budget 0.5: ValueError: no compiler" in text
    assert "load average 0.5 to 2.2; medians of 3 steps" in text


def test_networks_are_written_one_by_one_beside_those_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, Any]] = []

    def measured(name: str, chosen: Any) -> dict[str, Any]:
        asked.append((name, chosen.budgets))
        if name == "gpt":
            raise KeyboardInterrupt
        problem = "stopped after 9 s" if name == "resnet-32" else None
        return {"title": f"The {name}", "ways": [], **CONDITIONS, "problem": problem}

    monkeypatch.setattr(experiment, "measured", measured)
    assert main(["--only", "chain", "--out", str(tmp_path)]) == 0
    with pytest.raises(KeyboardInterrupt):
        main(["--only", "resnet-32", "--only", "gpt", "--quick", "--out", str(tmp_path)])
    assert list(json.loads((tmp_path / "compiled_steps.json").read_text())) == ["chain", "resnet-32"]
    text = (tmp_path / "compiled_steps.md").read_text()
    assert "### The chain" in text and "The process ended early: stopped after 9 s" in text
    assert len(asked[0][1]) == 9 and asked[1][1] == QUICK_BUDGETS
    assert main(["--only", "resnet-32", "--out", str(tmp_path)]) == 1


def test_the_tables_in_the_repository_are_made_of_the_figures() -> None:
    found = json.loads((RESULTS / "compiled_steps.json").read_text())
    assert (RESULTS / "compiled_steps.md").read_text() == page(found)
    assert set(found) <= set(networks("cpu"))
