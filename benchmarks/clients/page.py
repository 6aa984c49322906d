"""The page of clients: what ran, what was planned, and what did not go in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.shared import markdown_table
from revgraph.planning import human_bytes

STAGES = ("trace", "gradients", "training", "bytes", "full")
RUN = (
    "", "nodes", "couplings", "gradients off by", "losses off by", "ordinary", "own checkpoints",
    "equal FLOPs", "equal bytes", "default plan",
)  # fmt: skip
PLANNED = (
    "", "parameters", "nodes", "couplings", "trace", "plan", "ordinary", "own checkpoints", "equal FLOPs",
    "default plan",
)  # fmt: skip
PAGE = """\
# Models of other libraries

`make clients` installs the libraries below into an environment of their own, gives a model of each to
`rg.trace` as it is, in one call, and writes this page: {right} of {count} models trace, train right and are
planned at full size. Each has a process of its own, on one thread.

## What runs

Tiny configurations. The net is compared with ordinary autograd on a deep copy of the model, in float64, with
the same random numbers: the largest error of a gradient under the default plan and the one of the least peak
(relative to the largest element of its tensor, or to a millionth of the model's largest where that is more),
and the largest relative error of a loss over ten steps of AdamW, after which all weights and buffers are
compared too.

Bytes are those at the peak of a training step in float32, without parameters, their gradients and inputs,
measured; beside them are the FLOPs measured over those of ordinary training. *Own checkpoints* is the
library's own way to save memory, where it has one. *Equal FLOPs* is the net under the plan of the least peak
among those that compute no more than that, *equal bytes* the cheapest plan within its bytes.

{run}

## What is planned

Full-size configurations on fake tensors, which take no memory: CPU seconds to trace the model and to plan it,
and bytes and FLOPs as above, measured in steps without memory. Plans are chosen by what they are predicted to
take under a loss of all outputs, the logits of a language model too. Where a model returns a loss of its own,
which is all that is differentiated here, a step takes something else than that, and the order of two plans
may be another one.

{planned}

## What does not go in

{obstacles}

{machine}
"""


def failures(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What went wrong with clients that are expected to work, a line each."""
    return [f"{_name(row)}: {problem}" for row in rows if not row["obstacle"] for problem in problems(row)]


def problems(row: dict[str, Any]) -> list[str]:
    """What went wrong in a row."""
    found = [f"{stage}: {row[stage]['problem']}" for stage in STAGES if "problem" in row.get(stage, {})]
    return found + ([row["problem"]] if row.get("problem") else [])


def page(results: dict[str, Any]) -> str:
    rows, machine = results["clients"], results["machine"]
    obstacles = [
        f"- {_name(row)}: {row['obstacle'] or 'not expected to fail'}. {' '.join(problems(row))}".strip()
        for row in rows
        if problems(row) or row["obstacle"]
    ]
    versions = ", ".join(f"{name} {version}" for name, version in machine["libraries"].items() if version)
    return PAGE.format(
        right=sum(not problems(row) for row in rows),
        count=len(rows),
        run=run_table(rows),
        planned=planned_table(rows),
        obstacles="\n".join(obstacles) or "Nothing of these.",
        machine=f"Made on {machine['cpu']}, Python {machine['python']}, with {versions}.",
    )


def run_table(rows: Sequence[dict[str, Any]]) -> str:
    return markdown_table(RUN, [_run_cells(row) for row in rows])


def planned_table(rows: Sequence[dict[str, Any]]) -> str:
    return markdown_table(PLANNED, [_planned_cells(row) for row in rows if "full" in row])


def _run_cells(row: dict[str, Any]) -> list[str]:
    traced, weights = _of(row, "trace"), _of(row, "bytes")
    return [
        _name(row),
        _number(traced.get("nodes")),
        _number(traced.get("couplings")),
        *(_error(_of(row, stage).get("error")) for stage in ("gradients", "training")),
        *(_weight(weights.get(each)) for each in ("plain", "own", "equal_flops", "equal_bytes", "default")),
    ]


def _planned_cells(row: dict[str, Any]) -> list[str]:
    full = _of(row, "full")
    return [
        _name(row),
        *(_number(full.get(each)) for each in ("parameters", "nodes", "couplings")),
        *(f"{full[each]:.1f} s" if full else "-" for each in ("trace_seconds", "plan_seconds")),
        *(_weight(full.get(each)) for each in ("plain", "own", "equal_flops", "default")),
    ]


def _name(row: dict[str, Any]) -> str:
    return f"{row['library']} {row['client']}"


def _of(row: dict[str, Any], stage: str) -> dict[str, Any]:
    """What a stage found; nothing where it failed."""
    found = row.get(stage, {})
    return {} if "problem" in found else found


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _error(value: float | None) -> str:
    return "-" if value is None else f"{value:.0e}" if value else "0"


def _weight(value: dict[str, Any] | None) -> str:
    return "-" if value is None else f"{human_bytes(value['peak_bytes'])} x{value['flops_ratio']:.2f}"
