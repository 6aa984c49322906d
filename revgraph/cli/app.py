"""The commands, put together."""

from __future__ import annotations

import importlib.metadata
import sys
from typing import Annotated

import typer

from revgraph.cli.checking import check
from revgraph.cli.guarding import guarded
from revgraph.cli.inspecting import list_, show
from revgraph.cli.planning import plan
from revgraph.cli.training import train

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
    # Helps are as wide as the terminal, up to what can still be read.
    context_settings={"help_option_names": ["--help", "-h"], "max_content_width": 110},
    epilog="Exit status: 0 good, 1 the answer is no, 2 bad input, 130 interrupted.",
)
app.command("list")(guarded(list_))
app.command("show")(guarded(show))
app.command("plan")(guarded(plan))
app.command("check")(guarded(check))
app.command("train")(guarded(train))


def _version(asked: bool) -> None:
    if not asked:
        return
    try:
        version = importlib.metadata.version("revgraph")
    except importlib.metadata.PackageNotFoundError:
        version = "(not installed, run from its source)"
    sys.stdout.write(f"revgraph {version}\n")
    raise typer.Exit


@app.callback()
def revgraph(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Reversible neural networks as graphs: plan which activations to store, invert or recompute."""
