"""The tables of `make gpu`, and docs/gpu.md around them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.shared import markdown_table

GIB = 2**30
NOT_RUN = "**Not run.**"
HEAD = """\
# Measured on a GPU

`make gpu` writes this page on a machine with an NVIDIA GPU. It runs the GPU variants of the tests behind
[the promises](trust.md), times and weighs training steps of RevNet-104 and of a reversible transformer,
eager and compiled, and searches for the largest batch and the greatest depth that fit in {limit}. The
environment that `GPU_PYTHON` names has to have a CUDA build of torch, pytest, and the packages that revgraph
stands on; nothing is downloaded:

```sh
make gpu GPU_PYTHON=/path/to/python
make gpu GPU_OPTIONS="--only tests"
```

The second runs one part; `--only steps` and `--only limits` are the others.

"""
UNTRIED = """\
{not_run} No part of revgraph has been run on a GPU so far, so nothing on this page is measured. What can be
tested without one is: the same tests with the CPU as their device, the search for limits, and this page with
made-up figures.
"""
READING = """\
Bytes are `torch.cuda.max_memory_allocated` in a step less what was allocated before it (parameters, their
gradients, inputs), beside those that the plan predicts. Seconds are medians of steps taken in turns.
"""


def page(results: dict[str, Any] | None, limit: int) -> str:
    """The page; without results it says that nothing was run."""
    head = HEAD.format(limit=f"{limit / GIB:g} GiB")
    if results is None:
        return head + UNTRIED.format(not_run=NOT_RUN)
    return head + tables(results)


def tables(results: dict[str, Any] | None) -> str:
    """What was measured, and of each part that was not, that it was not."""
    if results is None:
        return f"{NOT_RUN}\n"
    parts = [
        _machine(results["machine"]),
        f"## Promises\n\n{_tests(results.get('tests'))}",
        f"## Steps\n\n{_steps(results.get('steps', {}))}",
        f"## What fits\n\n{_limits(results.get('limits', {}))}",
    ]
    return "\n".join(parts)


def _machine(told: dict[str, Any]) -> str:
    gpu = told["gpu"]
    libraries = ", ".join(f"{name} {version}" for name, version in told["libraries"].items() if version)
    return (
        f"{gpu['name']}, {gpu['bytes'] / GIB:.1f} GiB, driver {gpu['driver']}, CUDA {gpu['cuda']}, cuDNN "
        f"{gpu['cudnn']}; {told['cpu']}; Python {told['python']}, {libraries}.\n"
    )


def _tests(found: dict[str, Any] | None) -> str:
    if found is None:
        return f"{NOT_RUN}\n"
    if "problem" in found:
        return f"The tests ended early: {found['problem']}\n"
    rows = [[text, _counted(counts)] for text, counts in found["promises"].items()]
    text = f"{_counted(found['total'])} in all.\n\n{markdown_table(['Promise', 'Tests on the GPU'], rows)}\n"
    if found["failed"]:
        text += "\nFailed: " + ", ".join(f"`{each}`" for each in found["failed"]) + ".\n"
    if found["left_out"]:
        text += "\nLeft out, for hypothesis is not installed: "
        text += ", ".join(f"`{each}`" for each in found["left_out"]) + ".\n"
    return text


def _counted(counts: dict[str, int]) -> str:
    parts = [f"{counts[each]} {each}" for each in ("failed", "passed", "skipped") if counts.get(each)]
    return ", ".join(parts) or "none ran"


def _steps(found: dict[str, dict[str, Any]]) -> str:
    if not found:
        return f"{NOT_RUN}\n"
    return READING + "".join(f"\n### {each['title']}\n\n{_step_table(each)}" for each in found.values())


def _step_table(found: dict[str, Any]) -> str:
    plain = next((row.get("seconds") for row in found["rows"] if row["way"] == "plain, eager"), None)
    rows = [_step_row(row, plain) for row in found["rows"]]
    head = [
        "step",
        "ms",
        "of plain",
        "predicted, MB",
        "measured, MB",
        "measured / predicted",
        "first step, s",
    ]
    text = f"{markdown_table(head, rows)}\n" if rows else ""
    problems = [f"{row['way']}: {row['problem']}" for row in found["rows"] if "problem" in row]
    problems += [f"The process ended early: {found['problem']}"] if found.get("problem") else []
    return text + "".join(f"\n{each}\n" for each in problems)


def _step_row(row: dict[str, Any], plain: float | None) -> Sequence[str]:
    if "problem" in row:
        return [row["way"], *["failed"] * 6]
    predicted = row["predicted_bytes"]
    return [
        row["way"],
        f"{row['seconds'] * 1e3:.1f}",
        f"{row['seconds'] / plain:.2f}" if plain else "-",
        f"{predicted / 1e6:.1f}" if predicted else "-",
        f"{row['peak_bytes'] / 1e6:.1f}",
        f"{row['peak_bytes'] / predicted:.3f}" if predicted else "-",
        f"{row['first_step_seconds']:.1f}",
    ]


def _limits(found: dict[str, dict[str, Any]]) -> str:
    if not found:
        return f"{NOT_RUN}\n"
    rows = [_limit_row(row) for row in found.values()]
    head = ["network", "", "most", "always, MB", "predicted, MB", "measured, MB"]
    text = (
        "The most with which a step fits, by bisection: steps are tried, and run out of memory or not. "
        "*Always* are parameters, gradients, buffers and inputs, which are there during the whole step; "
        f"besides, libraries take workspaces.\n\n{markdown_table(head, rows, left=2)}\n"
    )
    problems = [
        f"{row['network']}, {row['of']}, {row['way']}: {row['problem']}"
        for row in found.values()
        if row.get("problem")
    ]
    return text + "".join(f"\n{each}\n" for each in problems)


def _limit_row(row: dict[str, Any]) -> Sequence[str]:
    name, way = f"{row['network']}, {row['of']}", row["way"]
    if "most" not in row:
        return [name, way, *["failed"] * 4]
    most = f"{row['most']:,}"
    if not row["most"]:
        return [name, way, most, *["-"] * 3]
    return [
        f"{name} ({row['deep']})" if row["of"] == "depth" else name,
        way,
        most,
        *(f"{row[key] / 1e6:,.1f}" for key in ("always_bytes", "predicted_bytes", "peak_bytes")),
    ]
