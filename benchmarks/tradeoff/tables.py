"""The figures as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.shared import markdown_table
from benchmarks.tradeoff.results import COMPILED, SHARE, Duel, PlannedPoint, Point, Result

MEANINGS = {
    "peak bytes": "the most activation bytes live at once in the step: storages without parameters, buffers, "
    "gradients of parameters and the inputs; outputs and loss count",
    "FLOPs": "floating-point operations of the step over ordinary autograd's, by torch's FlopCounterMode",
    "again": "matrix products and convolutions evaluated beyond ordinary autograd's",
    "predicted": "the plan's own peak, before anything ran; `=` where peak and held bytes are both measured "
    "exactly so",
    "verdict": "revgraph's measured FLOPs against the other's, within the other's measured peak",
}


def page(results: Sequence[Result], conditions: dict[str, Any]) -> str:
    """Three tables for each network, and what the columns mean."""
    meanings = "\n".join(f"- **{column}**: {text}" for column, text in MEANINGS.items())
    parts = [
        _conditions(conditions),
        _ahead(results),
        *map(section, results),
        "## What the columns mean",
        meanings,
    ]
    return "\n\n".join(parts) + "\n"


def _ahead(results: Sequence[Result]) -> str:
    """The points at which torch's memory budget takes fewer FLOPs, or fits where no plan does."""
    found: list[list[str]] = []
    count = 0
    for result in results:
        for duel in result.duels:
            if duel.other.contender != COMPILED:
                continue
            count += 1
            ours, theirs = duel.ours.measured.flops if duel.ours else None, duel.other.flops
            if ours is None or theirs is None:
                found.append([result.title, duel.other.setting, f"{duel.budget:,}", "no plan fits"])
            elif ours > theirs:
                more = f"{ours / theirs - 1:.1%} more FLOPs"
                found.append([result.title, duel.other.setting, f"{duel.budget:,}", more])
    if not found:
        return f"{COMPILED} is ahead at none of {count} points."
    table = markdown_table(["", "its setting", "its peak bytes", "revgraph"], found)
    return f"{COMPILED} is ahead at {len(found)} of {count} points:\n\n{table}"


def section(result: Result) -> str:
    """One network: revgraph's frontier, what torch offers, and revgraph within the peaks of that."""
    parts = [f"## {result.title}", _frontier(result), _others(result), _duels(result)]
    parts += [f"More than {_name(duel.other)}: {duel.reason}." for duel in result.duels if duel.reason]
    parts += [f"Not run: {_name(each)}. Reason: {each.problem}." for each in result.others if each.problem]
    parts += [f"No plan at {_name(duel.other)}: {duel.problem}" for duel in result.duels if duel.problem]
    if result.below is not None:
        parts.append(_below(result.below))
    return "\n\n".join(parts)


def _frontier(result: Result) -> str:
    head = ["revgraph's frontier", "predicted", "", "FLOPs", "again"]
    rows = [
        [
            f"{each.measured.peak_bytes:,}",
            f"{each.predicted_peak_bytes:,}",
            _equal(each),
            _flops(each.measured),
            str(each.measured.again),
        ]
        for each in result.frontier
    ]
    return markdown_table(head, rows)


def _others(result: Result) -> str:
    rows = [
        [_name(each), f"{each.peak_bytes:,}" if each.peak_bytes else "not run", _flops(each), _count(each)]
        for each in (result.plain, *result.others)
    ]
    return markdown_table(["", "peak bytes", "FLOPs", "again"], rows)


def _duels(result: Result) -> str:
    head = [
        "within the peak of",
        "budget",
        "peak bytes",
        "predicted",
        "",
        "FLOPs",
        "its",
        "again",
        "its",
        "verdict",
    ]
    rows = []
    for duel in result.duels:
        row = [_name(duel.other), f"{duel.budget:,}"]
        if duel.ours is None:
            rows.append([*row, "no plan", "", "", "", _flops(duel.other), "", _count(duel.other), "no plan"])
            continue
        ours = duel.ours.measured
        rows.append(
            [
                *row,
                f"{ours.peak_bytes:,}",
                f"{duel.ours.predicted_peak_bytes:,}",
                _equal(duel.ours),
                _flops(ours),
                _flops(duel.other),
                _count(ours),
                _count(duel.other),
                duel.verdict,
            ]
        )
    return markdown_table(head, rows)


def _below(duel: Duel) -> str:
    head = f"Within {SHARE} times the least peak of {COMPILED}, {duel.budget:,} bytes: "
    if duel.ours is None:
        return head + f"no plan. {duel.problem}"
    ours = duel.ours.measured
    return (
        head + f"a plan of {ours.peak_bytes:,} bytes and FLOPs {_flops(ours)}, {ours.again} products again."
    )


def _name(point: Point) -> str:
    return f"{point.contender} {point.setting}".strip()


def _equal(planned: PlannedPoint) -> str:
    return "=" if planned.equal else "differs"


def _flops(point: Point) -> str:
    return f"x{point.flops_ratio:.3f}" if point.flops_ratio is not None else ""


def _count(point: Point) -> str:
    return str(point.again) if point.again is not None else ""


def _conditions(conditions: dict[str, Any]) -> str:
    machine = conditions["machine"]
    return (
        f"{machine['cpu']}, {machine['cores']} cores; Python {machine['python']}, torch "
        f"{machine['libraries']['torch']}, revgraph {machine['libraries']['revgraph']}. Bytes, FLOPs and "
        "products are counted, not timed."
    )
