"""All contenders on one network: points measured, and revgraph's plan at the peak of each of the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import revgraph as rg
from benchmarks.tradeoff.contenders import Run, every_root, partitioned, per_block
from benchmarks.tradeoff.networks import Network
from benchmarks.tradeoff.steps import Step, measure_step

PLAIN, PER_BLOCK, EVERY_ROOT, COMPILED, OURS = (
    "ordinary autograd",
    "checkpoint per block",
    "checkpoint every sqrt(n) blocks",
    "torch's memory budget",
    "revgraph",
)
# Of the least peak that torch's partitioner reaches.
SHARE = 0.55


@dataclass(frozen=True, slots=True)
class Point:
    """One setting of a contender, measured; figures are None where it could not run, and `problem` says why.

    `again` are the products evaluated beyond ordinary autograd's, `flops_ratio` is over its FLOPs.
    """

    contender: str
    setting: str
    peak_bytes: int | None = None
    held_bytes: int | None = None
    flops: int | None = None
    flops_ratio: float | None = None
    again: int | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class PlannedPoint:
    """A plan of revgraph's: predicted and measured."""

    measured: Point
    predicted_peak_bytes: int
    predicted_held_bytes: int
    predicted_flops_ratio: float
    peak_at: str = ""

    @property
    def equal(self) -> bool:
        """Whether both bytes were predicted exactly."""
        found = self.measured
        return (found.peak_bytes, found.held_bytes) == (self.predicted_peak_bytes, self.predicted_held_bytes)


@dataclass(frozen=True, slots=True)
class Duel:
    """revgraph's plan within the measured peak of another's point; without one, `problem` says why.

    `verdict` is on the measured FLOPs: "no more" or "more", and then `reason` says what is known of why.
    """

    other: Point
    budget: int
    ours: PlannedPoint | None = None
    verdict: str = ""
    reason: str = ""
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """One network: all points, the duels, and revgraph within `SHARE` of the partitioner's least peak."""

    network: str
    title: str
    nodes: int
    plain: Point
    frontier: tuple[PlannedPoint, ...]
    others: tuple[Point, ...]
    duels: tuple[Duel, ...]
    below: Duel | None

    def as_data(self) -> dict[str, Any]:
        """Plain data for JSON, each plan with whether it was predicted to the byte."""
        data = asdict(self)
        for one, planned in zip(data["frontier"], self.frontier, strict=True):
            one["equal"] = planned.equal
        for one, duel in zip([*data["duels"], data["below"] or {}], [*self.duels, self.below], strict=True):
            if duel is not None and duel.ours is not None:
                one["ours"]["equal"] = duel.ours.equal
        return data


def study(network: Network, budgets: Sequence[float], tell: Callable[[str], None]) -> Result:
    """Everything on one network. `tell` is told what is being measured."""
    tell(f"{network.name}: {PLAIN}")
    base = measure_step(network.model, network.model, network.inputs)
    plain = _point(PLAIN, "", base, base)
    tell(f"{network.name}: revgraph's frontier")
    plans = rg.frontier(network.net.graph, cost="flops")
    frontier = tuple(_planned(network, plan, base) for plan in plans)
    others = []
    for contender, setting, build in _others(network, budgets):
        tell(f"{network.name}: {contender} {setting}")
        others.append(_attempt(contender, setting, build, network, base))
    tell(f"{network.name}: revgraph within the others' peaks")
    duels = tuple(_duel(network, each, each.peak_bytes, base) for each in others if each.peak_bytes)
    compiled = [each for each in others if each.contender == COMPILED and each.peak_bytes]
    least = min(compiled, key=lambda each: each.peak_bytes or 0, default=None)
    below = None
    if least is not None and least.peak_bytes is not None:
        below = _duel(network, least, int(SHARE * least.peak_bytes), base)
    return Result(
        network.name,
        network.title,
        len(network.net.graph.planned),
        plain,
        frontier,
        tuple(others),
        duels,
        below,
    )


def _others(network: Network, budgets: Sequence[float]) -> Iterator[tuple[str, str, Callable[[], Run]]]:
    yield PER_BLOCK, "", lambda: per_block(network.model)
    yield EVERY_ROOT, "", lambda: every_root(network.model)
    for budget in budgets:
        yield COMPILED, f"{budget:.1f}", lambda budget=budget: partitioned(network.model, budget)


def _attempt(contender: str, setting: str, build: Callable[[], Run], network: Network, base: Step) -> Point:
    """A point, or the reason why there is none. The first step, which compiles, is not measured."""
    try:
        run = build()
        measure_step(run, network.model, network.inputs)
        return _point(contender, setting, measure_step(run, network.model, network.inputs), base)
    except Exception as problem:
        return Point(contender, setting, problem=_reason(problem))


def _point(contender: str, setting: str, step: Step, base: Step) -> Point:
    return Point(
        contender,
        setting,
        step.peak_bytes,
        step.held_bytes,
        step.flops,
        step.flops / base.flops,
        step.products - base.products,
    )


def _planned(network: Network, plan: rg.Plan, base: Step) -> PlannedPoint:
    network.net.plan = plan
    step = measure_step(network.net, network.net, network.inputs)
    return PlannedPoint(
        _point(OURS, "", step, base),
        plan.peak_bytes,
        plan.held_bytes,
        plan.flops_ratio,
        plan.peak_at,
    )


def _duel(network: Network, other: Point, budget: int, base: Step) -> Duel:
    try:
        plan = rg.plan(network.net.graph, budget=budget, cost="flops")
    except rg.BudgetError as error:
        return Duel(other, budget, problem=_reason(error))
    ours = _planned(network, plan, base)
    duel = Duel(other, budget, ours)
    flops, theirs = ours.measured.flops or 0, other.flops or 0
    if flops <= theirs:
        return replace(duel, verdict="no more")
    return replace(duel, verdict="more", reason=f"{flops - theirs:,} FLOPs more")


def _reason(problem: Exception) -> str:
    first, *_ = str(problem).splitlines() or [""]
    return f"{type(problem).__name__}: {first}"
