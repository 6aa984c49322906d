"""Plans as files of the command line: read from a path, and written whole or not at all."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import TYPE_CHECKING

from revgraph.errors import PlanError
from revgraph.training.durable import new_file

if TYPE_CHECKING:
    from revgraph.graph import Graph
    from revgraph.planning import Plan

# Far above any plan: that of a thousand layers has 1 MiB.
LARGEST = 2**26


def read_plan(path: Path, graph: Graph) -> Plan:
    """The plan in a file, which is for this graph.

    Raises:
        PlanError: the file cannot be read, or holds no plan, or one for another graph.
    """
    try:
        # Opening a pipe would wait for a writer, and a device may never end: look before opening.
        if not stat.S_ISREG(path.stat().st_mode):
            raise PlanError(f"{path} is not a file. Give one that `revgraph plan NET --save FILE` wrote.")
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise PlanError(f"the plan {path} cannot be read: {error.strerror or error}") from error
    if len(content) > LARGEST:
        raise PlanError(f"{path}: the file is larger than the {LARGEST:,} bytes that a plan may have")
    from revgraph.planning import Plan

    try:
        return Plan.from_json(content.decode(), graph)
    except UnicodeDecodeError as error:
        raise PlanError(f"{path}: the file is not UTF-8 text (at byte {error.start:,})") from error
    except PlanError as error:
        raise PlanError(f"{path}: {error}") from error


def save_plan(plan: Plan, path: Path) -> None:
    """Write a plan into a file, in place of what it holds; missing folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path) as unfinished:
        unfinished.write_text(plan.to_json() + "\n", encoding="utf-8")
