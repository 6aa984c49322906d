"""The table of clients, and the page around it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.shared import markdown_table

STAGES = ("trace", "gradients", "training", "bytes", "full")
HEAD = (
    "client", "nodes", "couplings", "gradient error", "plain", "own checkpoints", "revgraph, equal FLOPs",
    "revgraph, default", "full size: nodes", "trace", "plan", "ordinary", "planned",
)  # fmt: skip


def failures(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What went wrong with clients that are expected to work, a line each."""
    return [f"{row['client']}: {problem}" for row in rows if not row["obstacle"] for problem in problems(row)]


def problems(row: dict[str, Any]) -> list[str]:
    """What went wrong in a row."""
    found = [f"{stage}: {row[stage]['problem']}" for stage in STAGES if "problem" in row.get(stage, {})]
    return found + ([row["problem"]] if row.get("problem") else [])


def page(results: dict[str, Any]) -> str:
    return table(results["clients"])


def table(rows: Sequence[dict[str, Any]]) -> str:
    return markdown_table(HEAD, [_cells(row) for row in rows])


def _cells(row: dict[str, Any]) -> list[str]:
    traced, bytes_, full = (_of(row, stage) for stage in ("trace", "bytes", "full"))
    return [
        f"{row['library']} {row['client']}",
        _number(traced.get("nodes")),
        _number(traced.get("couplings")),
        _error(_of(row, "gradients").get("error")),
        _weight(bytes_.get("plain")),
        _weight(bytes_.get("own")),
        _weight(bytes_.get("equal_flops")),
        _weight(bytes_.get("default")),
        _number(full.get("nodes")),
        _seconds(full.get("trace_seconds")),
        _seconds(full.get("plan_seconds")),
        _mebibytes(full.get("ordinary_bytes")),
        f"{_mebibytes(full['peak_bytes'])} x{full['flops_ratio']:.2f}" if full else "",
    ]


def _of(row: dict[str, Any], stage: str) -> dict[str, Any]:
    """What a stage found; nothing where it failed."""
    found = row.get(stage, {})
    return {} if "problem" in found else found


def _number(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _error(value: float | None) -> str:
    return "" if value is None else f"{value:.0e}"


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} s"


def _weight(value: dict[str, Any] | None) -> str:
    return "" if value is None else f"{value['peak_bytes'] / 1024:,.0f} KiB x{value['flops_ratio']:.2f}"


def _mebibytes(value: int | None) -> str:
    return "" if value is None else f"{value / 2**20:,.0f} MiB"
