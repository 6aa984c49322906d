"""The search: a pool of judged solutions, whose content hangs on the problem and the effort alone.

All limits are counts: segments, slots, solutions judged, nodes of branch and bound. So a problem has one
pool, whatever else the machine is at, and every budget is served from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal, get_args

import numpy as np

from revgraph.planning.solver.filling import BudgetFilling
from revgraph.planning.solver.improver import Improver
from revgraph.planning.solver.line import Line
from revgraph.planning.solver.neighbours import Neighbours
from revgraph.planning.solver.once_programme import OnceProgramme, Stretches, stretches_of
from revgraph.planning.solver.pool import Pool, thinned
from revgraph.planning.solver.problem import Judging, Problem, Solution
from revgraph.planning.solver.segment_programme import SegmentProgramme
from revgraph.planning.solver.segments import Segment, cuts_of, segments_of
from revgraph.planning.solver.textbook import keep_all, textbook_segments
from revgraph.planning.solver.unrolling import Unrolling

Effort = Literal["quick", "normal", "thorough"]
EFFORTS: tuple[Effort, ...] = get_args(Effort)


@dataclass(frozen=True, slots=True)
class Limits:
    """What an effort comes to.

    `once` are the programmes without repeated reruns: the share of ordinary autograd's peak that each counts
    to, and in how many slots. `segments` are those with: into how many segments the line is cut, the share,
    and the slots. Of the schedules of each kind half of `judged` are judged first; then, at each of `budgets`
    from the least peak to ordinary autograd, those of as many programmes as `aims` that foresee the least for
    it come close below it. Then the improver looks for less, with so many `branches`, at the least peak in
    lines of at most `largest` nodes, and at up to `improved` budgets in those of at most `improving`: where
    its formulation has at most `formulated` entries, for the time of a solve goes with these. Lines
    of at most `stepping` nodes are gone on from by single steps, with as many trials as go over `trials`
    nodes. Lines of more than `large` nodes have fewer schedules judged, in proportion, but `fewest`.
    """

    once: tuple[tuple[float, int], ...]
    segments: tuple[tuple[int, float, int], ...]
    judged: int
    budgets: int
    aims: int
    largest: int
    improving: int
    improved: int
    formulated: int
    branches: int
    stepping: int
    trials: int
    large: int = 100
    fewest: int = 10


LIMITS: dict[Effort, Limits] = {
    "quick": Limits(
        once=((1.0, 3000),),
        segments=((60, 1.0, 300), (32, 0.5, 200), (24, 0.1, 300)),
        judged=24,
        budgets=6,
        aims=1,
        largest=0,
        improving=0,
        improved=0,
        formulated=0,
        branches=1,
        stepping=0,
        trials=0,
    ),
    "normal": Limits(
        once=((1.0, 3000), (0.3, 1500)),
        segments=((60, 1.0, 300), (60, 0.35, 300), (60, 0.12, 300), (100, 0.1, 300), (24, 0.1, 300)),
        judged=65,
        budgets=20,
        aims=2,
        largest=60,
        improving=8,
        improved=8,
        formulated=1_200_000,
        branches=1,
        stepping=30,
        trials=2500,
    ),
    "thorough": Limits(
        once=((1.0, 6000), (1.0, 3000), (0.3, 3000), (0.3, 1500)),
        segments=(
            *((60, 1.0, 300), (60, 0.35, 300), (60, 0.12, 300), (100, 0.1, 300), (24, 0.1, 300)),
            *((120, 0.5, 600), (120, 0.12, 600)),
        ),
        judged=400,
        budgets=40,
        aims=4,
        largest=250,
        improving=250,
        improved=24,
        formulated=100_000_000,
        branches=20,
        stepping=60,
        trials=60_000,
    ),
}
# Schedules this much dearer than another programme's in the same bytes, as a share of a step, are not judged.
CLOSE = 0.01
# Chains of more nodes are not improved: the programmes have found what there is.
SHORT = 6
# The default plan may take this much more than the least peak without repeated reruns, as a share.
TOLERANCE = 0.1
# Of programmes over the same segments, whose shares differ by no more than this share, one is enough.
ALIKE = 0.2
# How often a schedule of other size is tried to come close to a budget.
STEPS = 2


def search(
    problem: Problem, judge: Judging, effort: Effort = "normal", by_hand: Iterable[Solution] = ()
) -> Pool:
    """The pool of a problem, with ordinary autograd in it and the solutions made by hand."""
    pool, line = Pool(judge), Line(problem)
    kept = pool.add(keep_all(problem))
    assert kept is not None
    if line.count:
        for solution in (*by_hand, *textbook_segments(line)):
            pool.add(solution)
        programmes = _Programmes(line, kept.peak_bytes)
        for each in EFFORTS[: EFFORTS.index(effort) + 1]:  # so that more effort is never worse
            _Search(programmes, pool, LIMITS[each]).run()
    return pool


class _Programmes:
    """The programmes over a line, each made when it is first asked for: efforts have some in common."""

    def __init__(self, line: Line, top: int) -> None:
        self.line = line
        self.top = top
        self.made: dict[tuple[int, float, int], _Schedules] = {}
        self.nodes: list[Segment] = []
        self.stretches: list[Stretches] = []

    def once(self, limits: Limits, *, returning: bool) -> list[_Schedules]:
        """Programmes without repeated reruns."""
        line = self.line
        if not self.nodes:
            self.nodes = segments_of(line, range(line.count + 1))
            self.stretches = stretches_of(line, self.nodes)
        found: list[_Schedules] = []
        for share, slots in limits.once:
            key = int(returning) - 1, share, slots
            if key not in self.made:
                programme = OnceProgramme(
                    line, self.nodes, self.stretches, self._bytes(share), slots, returning=returning
                )
                self.made[key] = _Schedules(line, self.nodes, programme)
            found.append(self.made[key])
        return found

    def nested(self, limits: Limits) -> list[_Schedules]:
        """Programmes with reruns within reruns; short lines are cut alike by several limits."""
        line, chosen = self.line, list[tuple[int, float, int]]()
        for most, share, slots in limits.segments:
            count = min(most, line.count)
            alike = (
                count == other and slots <= finer and abs(share - scale) < ALIKE * scale
                for other, scale, finer in chosen
            )
            if any(alike):
                continue
            chosen.append((count, share, slots))
            if (count, share, slots) not in self.made:
                segments = segments_of(line, cuts_of(line, count))
                programme = SegmentProgramme(line, segments, self._bytes(share), slots)
                self.made[count, share, slots] = _Schedules(line, segments, programme)
        return [self.made[each] for each in chosen]

    def _bytes(self, share: float) -> float:
        return share * max(1, self.top - self.line.results_bytes)


class _Search:
    """What is done with a line within an effort's limits; whatever it judges goes to the pool."""

    def __init__(self, programmes: _Programmes, pool: Pool, limits: Limits) -> None:
        self.line = programmes.line
        self.problem = self.line.problem
        self.limits = limits
        self.pool = pool
        self.top = programmes.top
        # Programmes of one kind, and the solutions that theirs are measured against.
        self.kinds = [
            (programmes.once(limits, returning=False), pool.once),
            (programmes.nested(limits), pool.every),
        ]
        if self.line.comes_back:
            self.kinds.append((programmes.once(limits, returning=True), pool.once))

    def run(self) -> None:
        limits = self.limits
        share = min(1.0, limits.large / self.line.count)
        self._spread(max(limits.fewest, round(limits.judged * share)) // 2)
        self._refine(max(limits.fewest, round(limits.budgets * share)))
        self._improve()
        self._descend()

    def _spread(self, count: int) -> None:
        """Judge so many schedules of each kind, of every size, of those that foresee the least for it."""
        close = CLOSE * self.problem.plain_cost
        for ours, _ in self.kinds:
            foreseen = sorted(
                (size, cost, n, slots) for n, each in enumerate(ours) for size, cost, slots in each.falls()
            )
            best, chosen = float("inf"), []
            for _, cost, n, slots in foreseen:
                best = min(best, cost)
                if cost <= best + close:
                    chosen.append((n, slots))
            for n, slots in thinned(chosen, count):
                self.pool.add(ours[n].solution(slots))

    def _refine(self, count: int) -> None:
        """Come close below budgets on a fixed grid, from low to high."""
        low = self.pool.every.least.peak_bytes
        shares = np.arange(1, count) / count
        often = {low, self._default_budget()}
        budgets = often | {int(share * self.top) for share in shares}
        budgets |= {int(low * (self.top / low) ** share) for share in shares} if low else set()
        close = CLOSE * self.problem.plain_cost
        filling = BudgetFilling(self.line, self.pool)
        for budget in sorted(each for each in budgets if each >= low):
            aims = None if budget in often else self.limits.aims
            for ours, front in self.kinds:
                for schedules in sorted(ours, key=lambda each: each.foreseen(budget))[:aims]:
                    known = front.within(budget)
                    if aims is None or known is None or schedules.foreseen(budget) <= known.cost + close:
                        schedules.aim(budget, self.pool.add)
            filling.fill(budget)

    def _improve(self) -> None:
        """Look for less where it matters most first: at the least peak, by default, at half, in between."""
        limits = self.limits
        if self.line.count > (min(limits.largest, SHORT) if self.line.is_chain else limits.largest):
            return
        improver = Improver(self.line.merged, self.pool, self.top, limits.branches)
        if improver.entries > limits.formulated:
            return
        improver.improve(self.pool.every.least.peak_bytes)
        if self.line.count > limits.improving:
            return
        improver.improve(self._default_budget())
        improver.shrink()
        for share in islice(halvings(), limits.improved):
            improver.improve(int(share * self.top))

    def _descend(self) -> None:
        """Look around the best of each budget for single decisions that are better."""
        if self.line.count > self.limits.stepping:
            return
        neighbours = Neighbours(self.problem, self.pool, self.limits.trials // self.line.count)
        neighbours.descend(self.pool.every.least.peak_bytes)
        neighbours.descend(self._default_budget())
        for share in islice(halvings(), self.limits.budgets):
            neighbours.descend(int(share * self.top))
        neighbours.spread()

    def _default_budget(self) -> int:
        """The most that the default plan may take."""
        front = self.pool.once if self.pool.once.solutions else self.pool.every
        return int(front.least.peak_bytes * (1 + TOLERANCE))


def halvings() -> Iterator[float]:
    """1/2, then 1/4 and 3/4, then the odd eighths, and so on."""
    parts = 2
    while True:
        yield from (part / parts for part in range(1, parts, 2))
        parts *= 2


class _Schedules:
    """A programme's schedules as solutions."""

    def __init__(
        self, line: Line, segments: list[Segment], programme: SegmentProgramme | OnceProgramme
    ) -> None:
        self.line = line
        self.programme = programme
        self.unrolling = Unrolling(line, segments)
        self.found: dict[int, Solution] = {}

    def falls(self) -> Iterator[tuple[float, float, int]]:
        """Every number of slots at which the cost falls: bytes foreseen, cost, slots."""
        costs, before = self.programme.costs, float("inf")
        for slots, cost in enumerate(costs.tolist()):
            if cost < before:
                yield slots * self.programme.unit + self.line.results_bytes, cost, slots
                before = cost

    def solution(self, slots: int) -> Solution:
        if slots not in self.found:
            self.found[slots] = self.unrolling.solution(self.programme.schedule(slots))
        return self.found[slots]

    def foreseen(self, budget: int) -> float:
        """The least cost within a budget, by what the programme foresees."""
        slots = int((budget - self.line.results_bytes) / self.programme.unit)
        return float(self.programme.costs[min(slots, self.programme.slots)]) if slots >= 0 else float("inf")

    def aim(self, budget: int, add: Callable[[Solution], Solution | None]) -> None:
        """Add a few solutions whose true peaks come closer and closer to a budget from below."""
        unit, costs = self.programme.unit, self.programme.costs
        if not np.isfinite(costs[-1]):
            return
        # What is foreseen may be more than what is true: the least schedule is tried below that, too.
        fewest = int(np.argmax(np.isfinite(costs)))
        slots = max(fewest, int((budget - self.line.results_bytes) / unit))
        for _ in range(STEPS):
            slots = min(slots, self.programme.slots)
            if slots < fewest:
                return
            first = int(np.argmax(costs == costs[slots]))  # the fewest slots that foresee the same
            judged = add(self.solution(first))
            if judged is None:
                slots = first - 1
                continue
            off = int(np.floor((budget - judged.peak_bytes) / unit))
            if 0 <= off < 1:
                return
            slots += off or -1
