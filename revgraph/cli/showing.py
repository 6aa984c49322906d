"""What commands write: tables and JSON on standard output, messages on standard error."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:
    from revgraph.planning import Plan
    from revgraph.reporting import Report


def process() -> int:
    """The rank of this process among those launched together (torchrun's RANK); 0 is the main one."""
    return int(os.environ.get("RANK") or 0)


def messages(quiet: bool = False) -> Console:
    """The console for progress and errors."""
    return Console(stderr=True, highlight=False, quiet=quiet)


def terminal_width() -> float:
    """How many columns the terminal has; elsewhere lines may have any length."""
    console = Console()
    return console.width if console.is_terminal else float("inf")


def show_json(data: Any) -> None:
    """Write `data` as JSON."""
    json.dump(data, sys.stdout, indent=1, allow_nan=False)
    sys.stdout.write("\n")


def show_plan(plan: Plan, every_node: bool = False) -> None:
    """Write a plan in words, as wide as the terminal or as COLUMNS says; with every node if asked.

    Elsewhere it has 80 columns.
    """
    from revgraph.planning.wording import WIDTH, summary, text

    console = Console(highlight=False)
    width = max(WIDTH, console.width) if console.is_terminal or "COLUMNS" in os.environ else WIDTH
    if every_node:
        sys.stdout.write(f"{summary(plan, width)}\n\n")
        show_table(plan.table())
    else:
        sys.stdout.write(f"{text(plan, width)}\n")


def show_table(made: Report) -> None:
    """Write a table as plain aligned text; rows too wide for a terminal are written as lists."""
    sys.stdout.write(f"{made.within(terminal_width())}\n")
