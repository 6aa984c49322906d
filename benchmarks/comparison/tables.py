"""The figures as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.comparison.results import Result, Row
from benchmarks.shared import markdown_table

CALLS, FLOPS, HELD, PEAK, ERROR64, ERROR32, DOUBLED, TIME, NORMS = (
    "F a step",
    "FLOPs",
    "held bytes",
    "peak bytes",
    "error, float64",
    "error, float32",
    "the same, doubled",
    "time",
    "BatchNorm",
)
MEANINGS = {
    CALLS: "how often each function F and G of the reversible blocks ran in one step, on average",
    FLOPS: "floating-point operations of the step over plain autograd's, by torch's FlopCounterMode",
    HELD: "live storages between the forward and the backward pass, without parameters, buffers, "
    "gradients of parameters and the input; the output and the loss count",
    PEAK: "the same at the worst moment of the step",
    ERROR64: "of the gradients of a step in float64 against plain autograd's in float64: the largest error "
    "of an element over the largest element of its tensor; median and worst of several initializations",
    ERROR32: "the same of a step in float32, still against float64: plain autograd has such errors too",
    DOUBLED: "the same with every parameter doubled; inf where something was no number",
    TIME: "seconds of the step over plain autograd's: the median of interleaved rounds in one process",
    NORMS: "steps that each BatchNorm in F and G counted",
}


def page(results: Sequence[Result], conditions: dict[str, Any]) -> str:
    """One table for each network, and what the columns mean."""
    parts = [describe(conditions)]
    for result in results:
        parts += [f"## {_title(result)}", table(result)]
        parts += [_predicted(row) for row in result.rows if row.predicted_peak_bytes is not None]
        parts += [f"Not run: {row.contender}. Reason: {row.problem}." for row in result.rows if row.problem]
    shown = {column for result in results for column in _columns(result)}
    meanings = "\n".join(f"- **{column}**: {text}" for column, text in MEANINGS.items() if column in shown)
    return "\n\n".join([*parts, "## What the columns mean", meanings]) + "\n"


def table(result: Result) -> str:
    """A row for each contender."""
    columns = _columns(result)
    return markdown_table(
        ["", *columns], [[_name(row), *_cells(row, result, columns)] for row in result.rows]
    )


def describe(conditions: dict[str, Any]) -> str:
    """A sentence on the machine, the versions, the threads and the load."""
    machine = conditions["machine"]
    before, after = conditions["load_average"]
    return (
        f"{machine['cpu']}, {_counted(machine['cores'], 'core')}; Python {machine['python']}, torch "
        f"{machine['libraries']['torch']} on {_counted(conditions['threads'], 'thread')}; load average "
        f"{before:.2f} at the beginning, {after:.2f} at the end."
    )


def _columns(result: Result) -> list[str]:
    return [column for column in MEANINGS if column != NORMS or _has_norms(result)]


def _cells(row: Row, result: Result, columns: Sequence[str]) -> list[str]:
    plain = result.rows[0].step
    if row.step is None or plain is None:
        return ["not run", *[""] * (len(columns) - 1)]
    cells = {
        CALLS: _number(row.step.evaluations),
        FLOPS: f"x{row.step.flops / plain.flops:.3f}",
        HELD: f"{row.step.held_bytes:,}",
        PEAK: f"{row.step.peak_bytes:,}",
        ERROR64: _error(row.errors_float64),
        ERROR32: _error(row.errors_float32),
        DOUBLED: _error(row.errors_float32_doubled),
        TIME: f"x{row.times.ratio:.2f}" if row.times is not None else "",
        NORMS: _number(row.step.batch_norm_steps) if row.step.batch_norm_steps is not None else "",
    }
    return [cells[column] for column in columns]


def _has_norms(result: Result) -> bool:
    return any(row.step is not None and row.step.batch_norm_steps is not None for row in result.rows)


def _name(row: Row) -> str:
    return f"{row.contender} {row.version}" if row.version is not None else row.contender


def _title(result: Result) -> str:
    name = f"Chain of {_counted(result.depth, 'block')}" if result.network == "chain" else result.network
    return f"{name}, batch {result.batch}"


def _predicted(row: Row) -> str:
    return (
        f"Predicted by {row.contender}'s plan: {row.predicted_held_bytes:,} bytes held, "
        f"{row.predicted_peak_bytes:,} at the peak."
    )


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _error(values: Sequence[float]) -> str:
    """The median and the worst."""
    return " / ".join(f"{value:.1e}" if value else "0" for value in (statistics.median(values), max(values)))
