"""Two processes under one plan: process 0 makes it, the other reads it, and what fails fails in both."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from trust.processes import PYTHON, together

import revgraph as rg

HERE = Path(__file__).parent
Notes = list[dict[str, str]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Notes:
    """What each of two processes noted."""
    folder = tmp_path_factory.mktemp("sharing")
    commands = [(*PYTHON, HERE / "plan_worker.py", folder, rank) for rank in range(2)]
    for ended in together(commands, folder):
        assert ended.status == 0, ended.text
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["least", "by hand"])
def test_main_process_plans_for_all(found: Notes, case: str) -> None:
    main, other = (each[case] for each in found)
    assert main == other and rg.Plan.from_json(main).decisions
    assert [each["trained"] for each in found] == ["done", "done"]


def test_budget_that_no_plan_fits_fails_everywhere_and_leaves_the_plans(found: Notes) -> None:
    main, other = (each["budget"] for each in found)
    assert main.startswith("BudgetError: no plan fits 1 B")
    assert other == f"Elsewhere: the main process failed: {main.removeprefix('BudgetError: ')}"
    for each in found:
        assert each["after budget"] == each["by hand"]


def test_net_of_another_graph_refuses_the_plan_and_ends_both(found: Notes) -> None:
    main, other = (each["other batch"] for each in found)
    assert main.startswith("Elsewhere: the main process's plan does not fit the net of another process")
    assert other.startswith("PlanError: this plan is for another graph")
    assert "A plan is for one batch size" in other
