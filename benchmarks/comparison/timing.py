"""Seconds a step, taken in turns, so that a machine that slows down meanwhile slows everybody."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from benchmarks.comparison.running import Candidate
from benchmarks.comparison.steps import clear_gradients, take_step

# Rounds that do not count: the first allocates what later ones reuse, and in its first eight forwards under
# a plan revgraph compares every replay with its forward, afterwards one in sixteen.
WARM_UP = 10


@dataclass(frozen=True, slots=True)
class Times:
    """Medians over all rounds: of a step's seconds, and of their ratio to the first candidate's then."""

    seconds: float
    ratio: float


def time_steps(candidates: Sequence[Candidate], x: Tensor, rounds: int) -> list[Times]:
    """Each candidate's step, timed `rounds` times in turn with the others, who begin each in turn.

    Some rounds to warm up come before.
    """
    taken: list[list[float]] = [[] for _ in candidates]
    for number in range(WARM_UP + rounds):
        for position in range(len(candidates)):
            index = (number + position) % len(candidates)
            taken[index].append(_seconds(candidates[index], x))
    seconds = [times[WARM_UP:] for times in taken]
    return [
        Times(
            statistics.median(own),
            statistics.median(one / first for one, first in zip(own, seconds[0], strict=True)),
        )
        for own in seconds
    ]


def _seconds(candidate: Candidate, x: Tensor) -> float:
    clear_gradients(candidate, x)
    began = time.perf_counter()
    take_step(candidate, x)
    return time.perf_counter() - began
