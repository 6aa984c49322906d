"""What benchmarks share: the machine described, processes, Markdown tables, files written whole or not."""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CPUINFO = Path("/proc/cpuinfo")
LIBRARIES = ("revgraph", "torch", "numpy", "scipy", "networkx")


def machine(*libraries: str) -> dict[str, Any]:
    """What figures depend on: `cpu`, `cores`, `system`, `python`, and the versions in `libraries`.

    The versions are those of revgraph and what it stands on, and of the distributions named; None marks one
    that is not installed.
    """
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "libraries": {name: version(name) for name in dict.fromkeys((*LIBRARIES, *libraries))},
    }


def loop_seconds() -> float:
    """CPU seconds of ten million additions in a loop: how fast Python is where the figures were made."""
    began, total = time.process_time(), 0
    for number in range(10_000_000):
        total += number
    return round(time.process_time() - began, 2)


def told_by(command: Sequence[str], limit: int) -> tuple[list[dict[str, Any]], str | None]:
    """What a Python process of its own, on one thread, prints as lines of JSON, and why it ended early.

    `command` is what follows `python`. What it told before it failed or was stopped after `limit` seconds
    counts; the reason is the last line of its errors, or None.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    problem = None
    try:
        done = subprocess.run(
            [sys.executable, *command],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=limit,
            check=False,
        )
        output = done.stdout
        if done.returncode:
            problem = (done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"])[-1]
    except subprocess.TimeoutExpired as error:
        output = error.stdout.decode() if isinstance(error.stdout, bytes) else error.stdout or ""
        problem = f"stopped after {limit} s"
    told: list[dict[str, Any]] = []
    for line in output.splitlines():
        with suppress(json.JSONDecodeError):  # others' prints, and the cut last line of a stopped process
            found = json.loads(line)
            told += [found] if isinstance(found, dict) else []
    return told, problem


def cpu_seconds() -> float:
    """CPU time of this process and, on Linux, of the one in which plans' programmes are solved."""
    from revgraph.planning.solver import milp_process

    solver = milp_process._process
    status = Path(f"/proc/{solver.pid}/stat") if solver is not None else None
    ticks = 0
    if status is not None and status.exists():
        user, system = status.read_text().rpartition(")")[2].split()[11:13]
        ticks = int(user) + int(system)
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def version(distribution: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A Markdown table, also straight as plain text: so many columns flush left, the others right.

    Example:
        >>> print(markdown_table(["", "bytes"], [["plain", "303,108"]]))
        |       |   bytes |
        |:------|--------:|
        | plain | 303,108 |
    """
    table = [[_cell(text) for text in row] for row in (head, *rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(head))]
    lines = ["| " + " | ".join(_padded(row, widths, left)) + " |" for row in table]
    rules = [":" + "-" * (width + 1) for width in widths[:left]]
    rules += ["-" * (width + 1) + ":" for width in widths[left:]]
    return "\n".join([lines[0], "|" + "|".join(rules) + "|", *lines[1:]])


def write_text(path: Path, text: str) -> None:
    """Write a file under a temporary name beside `path` and rename it, so that `path` is old or new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def svg_of(figure: Any, title: str) -> str:
    """A matplotlib figure as SVG: with `title` for those who hear it, no date, on a transparent ground.

    Its letters in the ink of revgraph's charts can be read on light and on dark.
    """
    from revgraph.drawing.charts import legible

    svg = io.StringIO()
    figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None, "Title": title})
    return legible(svg.getvalue())


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, as `write_text` does; infinity and what is no number are errors."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows with the same keys as a CSV file, as `write_text` does; None is an empty cell."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def _cpu() -> str:
    if CPUINFO.exists():
        for line in CPUINFO.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or "unknown"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _padded(row: Sequence[str], widths: Sequence[int], left: int) -> list[str]:
    sized = list(zip(row, widths, strict=True))
    return [
        *(text.ljust(size) for text, size in sized[:left]),
        *(text.rjust(size) for text, size in sized[left:]),
    ]
