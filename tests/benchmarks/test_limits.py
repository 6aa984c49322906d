"""What fits in a memory: predicted to the byte, measured within it, and no larger one fits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import benchmarks.limits as experiment
from benchmarks.limits import CHECKPOINTED, ORDINARY, REVERSIBLE, Limit, draw, largest, limits, main, page
from benchmarks.paper.networks import deepened, one_stage
from revgraph.specs import build

pytestmark = pytest.mark.slow  # for what they look at takes long, and is made once for all of them

BUDGET = 320 * 2**10


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    """One stage of four channels instead of RevNet-38."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "deepened", lambda name, units: one_stage(units, 2, channels=4, side=16))
        experiment._graph.cache_clear()
        yield
    experiment._graph.cache_clear()


@pytest.fixture(scope="module")
def found(small: None) -> list[Limit]:
    return limits(BUDGET, units=1, batch=4, most_units=5)


def test_a_step_at_the_limit_takes_what_was_predicted_and_fits(found: list[Limit]) -> None:
    assert [each.way for each in found] == 2 * [ORDINARY, CHECKPOINTED, REVERSIBLE]
    for each in found:
        assert each.measured_bytes == each.predicted_bytes <= BUDGET


def test_one_more_does_not_fit(found: list[Limit]) -> None:
    for each in found:
        assert each.next_bytes is None or each.next_bytes > BUDGET


def test_reversible_fits_most_and_its_depth_has_no_limit(found: list[Limit]) -> None:
    for of in ("batch", "units"):
        most = [each.most for each in found if each.of == of]
        assert most == sorted(set(most))
    assert found[-1].most == 5 and found[-1].next_bytes is None


def test_the_page_and_the_chart_say_where_the_search_ended(found: list[Limit], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert "5 or more units" in page(found, BUDGET, 1, 4)
    draw(found, BUDGET, tmp_path / "limits.svg")
    assert ">5 or more</text>" in (tmp_path / "limits.svg").read_text()


@pytest.mark.parametrize("limit", [0, 1, 6, 7, 8, 63, 100])
@pytest.mark.parametrize("start", [1, 7, 80])
def test_the_largest_is_found_from_any_start(limit: int, start: int) -> None:
    assert largest(lambda number: number <= limit, start) == limit
    assert largest(lambda number: number <= limit, min(start, 50), most=50) == min(limit, 50)


def test_a_budget_that_cannot_be_read_or_met_is_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--budget", "much"]) == 2
    assert main(["--budget", "9 KiB"]) == 2
    assert "not even a batch of 1 fits 9.0 KiB" in capsys.readouterr().err


def test_more_units_deepen_every_stage() -> None:
    with torch.device("meta"):
        names = [name for name, _ in build(deepened("revnet-38", 4)).module.named_modules()]
        alone = [name for name, _ in build(deepened("revnet-38", 1)).module.named_modules()]
    for stage in ("stage1", "stage2", "stage3"):
        assert f"{stage}.unit3" in names and f"{stage}.unit4" not in names
        assert f"{stage}.unit0" in alone and f"{stage}.unit1" not in alone
