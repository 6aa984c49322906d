"""Many random cases of one kind, each weighed: what they ended in, counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy
from trust.weighing import SECONDS, Outcome, Tally, peak, peak_from_here


def fuzzed(check: Callable[[Any], Outcome], cases: SearchStrategy[Any], count: int, start: int = 0) -> Tally:
    """`check` of `count` random cases, the same at every run with this `start`; and what they came to.

    Its memory is the most that all of them together take. A case that takes more than `SECONDS`, or an error
    that `check` lets through, is this function's error, with the least such case that was found.
    """
    tally = Tally()

    @seed(start)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(cases)
    def run(case: Any) -> None:
        outcome = check(case)
        tally.add(outcome)
        assert outcome.kind == "done" or outcome.text
        assert outcome.seconds < SECONDS, f"{outcome.seconds:.2f} s for {case!r}"

    before = peak_from_here()
    run()
    tally.kilobytes = max(tally.kilobytes, peak() - before)
    return tally
