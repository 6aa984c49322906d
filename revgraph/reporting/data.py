"""Reports as data, for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast, overload

from revgraph.graph import Graph
from revgraph.planning import Moment, Plan, knee
from revgraph.reporting.kinds import Compared, Held, Many, Measured, One, Reportable, all_are, unknown


@overload
def as_json(reportable: One) -> dict[str, Any]: ...
@overload
def as_json(reportable: Many) -> list[dict[str, Any]]: ...
def as_json(reportable: Reportable) -> dict[str, Any] | list[dict[str, Any]]:
    """What a report says, in types that `json` writes; numbers that JSON lacks (nan, inf) are None.

    - Graph: the content of `graph.to_json()`: `revgraph` (the format's number), `name`, `nodes`, `values`.
    - Plan: `network`, `decisions` (node to word), `stored` (names), `peak_bytes`, `peak_at`, `held_bytes`,
      `ordinary_bytes`, `flops_ratio`, `time_ratio`, `cost` ("time" or "flops"), `profile` (of a device),
      `reasons` (node to text), `results` (node to indices, the term -1), `holds` (node to node),
      `drops` (node to names), `sources` (value to its `how` and `node`).
    - A list of plans, a frontier: a list of what is above, and of each whether it is the `knee`.
    - A list of moments, a simulation: a list of `action`, `node`, `stage`, `reads`, `makes`, `stores`,
      `frees` (names), `live_bytes`, `peak_bytes`, `flops`, `nanoseconds`.
    - Measurement: `peak_bytes`, `held_bytes`, `flops`, `flops_ratio`, `calls` (node to number), and `seconds`
      where they were measured.
    - GradientReport: `verdict` ("good", "flipped", "drifted" or "wrong"), `begins_at` (a node, or null),
      `max_relative_error`, `angle_degrees`, `drift` (value to number), `flips` (node to number).
    - SavedTable: `held_bytes`, `parameter_bytes`, `input_bytes`, `planned_bytes`, `freed`, `unseen` (operator
      to number), `paths`, and `rows`: a list of what a SavedRow says.
    - A mapping of names to measurements: the same names to what is above.

    Keys may be added in later versions; none of these goes away or changes its meaning.

    Raises:
        TypeError: it is none of these.
    """
    if isinstance(reportable, Graph):
        return json.loads(reportable.to_json())
    if isinstance(reportable, Plan):
        return _finite(_plan_json(reportable))
    if isinstance(reportable, Mapping):
        return {name: as_json(each) for name, each in reportable.items()}
    if all_are(Plan, reportable):
        plans = cast("Sequence[Plan]", reportable)
        turn = knee(plans)
        return [{**as_json(plan), "knee": plan is turn} for plan in plans]
    if all_are(Moment, reportable):
        return [_moment_json(moment) for moment in cast("Sequence[Moment]", reportable)]
    if isinstance(reportable, Held):
        return reportable.data()
    if isinstance(reportable, Measured):
        names = ("peak_bytes", "held_bytes", "flops", "flops_ratio", "calls")
    elif isinstance(reportable, Compared):
        names = ("verdict", "begins_at", "max_relative_error", "angle_degrees", "drift", "flips")
    else:
        raise TypeError(unknown(reportable))
    seconds = getattr(reportable, "seconds", None)
    data = {name: getattr(reportable, name) for name in names}
    return _finite(data if seconds is None else {**data, "seconds": seconds})


def _plan_json(plan: Plan) -> dict[str, Any]:
    return {
        "network": plan.graph.name,
        "decisions": dict(plan.decisions),
        "stored": list(plan.stored),
        "peak_bytes": plan.peak_bytes,
        "peak_at": plan.peak_at,
        "held_bytes": plan.held_bytes,
        "ordinary_bytes": plan.ordinary_bytes,
        "flops_ratio": plan.flops_ratio,
        "time_ratio": plan.time_ratio,
        "cost": plan.cost,
        "profile": plan.profile.as_json(),
        "reasons": dict(plan.reasons),
        "results": {name: list(indices) for name, indices in plan.results.items()},
        "holds": dict(plan.holds),
        "drops": {name: list(names) for name, names in plan.drops.items()},
        "sources": {name: {"how": source.how, "node": source.node} for name, source in plan.sources.items()},
    }


def _moment_json(moment: Moment) -> dict[str, Any]:
    step = moment.step
    return {
        "action": step.action,
        "node": step.node,
        "stage": step.stage,
        **{name: list(getattr(step, name)) for name in ("reads", "makes", "stores", "frees")},
        "live_bytes": moment.live_bytes,
        "peak_bytes": moment.peak_bytes,
        "flops": moment.flops,
        "nanoseconds": moment.nanoseconds,
    }


def _finite(data: Any) -> Any:
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, Mapping):
        return {str(key): _finite(value) for key, value in data.items()}
    return [_finite(value) for value in data] if isinstance(data, list) else data
