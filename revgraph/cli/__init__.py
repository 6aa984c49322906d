"""The command line; `main` is its entry point."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command that `sys.argv` names, and exit: 0 good, 1 the answer is no, 2 bad input."""
    try:
        from revgraph.cli.app import app
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("typer", "rich"):
            raise
        print(
            f"revgraph's command line needs {error.name}, which is not installed: "
            'pip install "revgraph[cli]"',
            file=sys.stderr,
        )
        raise SystemExit(2) from None
    app(prog_name="revgraph")
