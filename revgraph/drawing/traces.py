"""Traces: a training step in the trace event format, which Perfetto and Chrome's tracing page open.

One process is the predicted step. Its thread has slices that nest: the forward and the backward pass, in it a
stage for each node that is replayed, in that the steps of the schedule. Its counters are the live bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import accumulate, groupby
from typing import Any

from revgraph.drawing.axis import turn_of
from revgraph.drawing.lettering import clean
from revgraph.drawing.telling import what, why
from revgraph.planning.composing import PARTS, Composition, compose
from revgraph.planning.plans import Plan

LEAST_NANOSECONDS = 10
"""What a step takes of which no time is predicted, so that it can be seen and its bytes have a time."""

PROCESS, THREAD = 1, 1
Event = dict[str, Any]


def trace(plan: Plan, measured: Sequence[tuple[int, int]] = (), budget: int | None = None) -> bytes:
    """The trace of a training step under a plan, as JSON.

    The counter "live bytes" has the most that is live during each step, "held after the step" what is live
    afterwards by what holds it. `measured` bytes, as `rg.track` gives them, are a counter of their own, and
    so is the `budget`. Times are those that the plan's device profile estimates.

    Raises:
        PlanError: the plan cannot be carried out.
    """
    composed = compose(plan)
    took = [max(each.moment.nanoseconds, LEAST_NANOSECONDS) for each in composed]
    at = list(accumulate(took, initial=0))
    events = [
        *_slices(plan, composed, at),
        *_counters(composed, at),
        *_lines(at, measured, budget),
    ]
    events.sort(key=lambda event: event["ts"])  # stable: what encloses others stays before them
    name = clean(plan.graph.name) or "a network"
    data = {
        "traceEvents": [*_names(name), *events],
        "displayTimeUnit": "ns",
        "otherData": {
            "network": name,
            "what": "a training step as revgraph predicts it",
            "peak_bytes": plan.peak_bytes,
            "held_bytes": plan.held_bytes,
            "ordinary_bytes": plan.ordinary_bytes,
            "flops_ratio": plan.flops_ratio,
            "time_ratio": plan.time_ratio,
            "profile": plan.profile.name,
        },
    }
    return json.dumps(data, separators=(",", ":")).encode()


def _names(network: str) -> Iterator[Event]:
    for what_, text in (("process_name", f"{network}, predicted"), ("thread_name", "training step")):
        yield {"ph": "M", "name": what_, "pid": PROCESS, "tid": THREAD, "ts": 0, "args": {"name": text}}


def _slices(plan: Plan, composed: Sequence[Composition], at: Sequence[int]) -> Iterator[Event]:
    """The slices, each before those inside it."""
    steps = [each.moment.step for each in composed]
    turn = turn_of(steps)
    for name, first, last in (("forward", 0, turn), ("backward", turn, len(steps))):
        if first == last:
            continue
        yield _slice(name, name, at[first], at[last], {})
        for stage, indices in groupby(range(first, last), key=lambda index: steps[index].stage):
            inside = list(indices)
            if stage and len(inside) > 1:
                decided = {"decision": plan.decided(stage)} if stage in plan.decisions else {}
                yield _slice(stage, "stage", at[inside[0]], at[inside[-1] + 1], decided)
            for index in inside:
                told = _arguments(plan, composed[index], index)
                yield _slice(what(steps[index]), steps[index].action, at[index], at[index + 1], told)


def _slice(name: str, category: str, start: int, end: int, arguments: Event) -> Event:
    return {
        "ph": "X",
        "name": clean(name),
        "cat": category,
        "pid": PROCESS,
        "tid": THREAD,
        "ts": _microseconds(start),
        "dur": _microseconds(end - start),
        "args": arguments,
    }


def _arguments(plan: Plan, each: Composition, index: int) -> Event:
    moment, step = each.moment, each.moment.step
    told: Event = {
        "step": index + 1,
        "node": step.node,
        "most bytes during it": moment.peak_bytes,
        "bytes after it": moment.live_bytes,
        "FLOPs": moment.flops,
        "predicted nanoseconds": moment.nanoseconds,
    }
    lists = {"reads": step.reads, "makes": step.makes, "stores": step.stores, "frees": step.frees}
    told |= {key: list(names) for key, names in lists.items() if names}
    told["why"] = why(step, plan)
    return told


def _counters(composed: Sequence[Composition], at: Sequence[int]) -> Iterator[Event]:
    for index, each in enumerate(composed):
        yield _counter("live bytes", at[index], {"bytes": each.moment.peak_bytes})
        yield _counter("held after the step", at[index], {part: each.parts[part] for part in PARTS})
    if composed:
        yield _counter("live bytes", at[-1], {"bytes": composed[-1].moment.live_bytes})


def _lines(at: Sequence[int], measured: Sequence[tuple[int, int]], budget: int | None) -> Iterator[Event]:
    """What is drawn beside the prediction: measured bytes, each from its step to the next one's; a budget."""
    for index, count in sorted(measured):
        yield _counter("measured live bytes", at[index], {"bytes": count})
    if budget is not None:
        for time in (at[0], at[-1]):
            yield _counter("budget", time, {"bytes": budget})


def _counter(name: str, time: int, values: dict[str, int]) -> Event:
    return {"ph": "C", "name": name, "pid": PROCESS, "ts": _microseconds(time), "args": values}


def _microseconds(nanoseconds: int) -> float:
    return nanoseconds / 1000
