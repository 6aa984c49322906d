"""Exit statuses, and errors as one message."""

from __future__ import annotations

import functools
import io
import os
import sys
from collections.abc import Callable
from typing import ParamSpec

import typer
from rich.text import Text

from revgraph.cli.showing import messages, process
from revgraph.errors import BudgetError, RevgraphError
from revgraph.training.errors import Elsewhere

NO = 1
BAD_INPUT = 2
INTERRUPTED = 130
# What a missing package is for, and the extra that brings it.
EXTRAS = {
    **dict.fromkeys(("accelerate", "safetensors", "sklearn"), ("training needs", "train")),
    "matplotlib": ("drawing a chart needs", "draw"),
}

P = ParamSpec("P")


def guarded(command: Callable[P, None]) -> Callable[P, None]:
    """`command`, which exits with a message instead of a traceback where the input is at fault.

    Status 1 for a budget that no plan fits; 2 for any other error of revgraph or of the file system, and for
    a missing extra; 130 for Ctrl-C.
    """

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            # A character that the terminal's encoding lacks is written as its number.
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            command(*args, **kwargs)
            sys.stdout.flush()
        except BudgetError as error:
            raise refusal(str(error), NO) from error
        except Elsewhere as error:
            raise typer.Exit(BAD_INPUT) from error
        except RevgraphError as error:
            raise refusal(str(error)) from error
        except ModuleNotFoundError as error:
            name = (error.name or "").partition(".")[0]
            if name not in EXTRAS:
                raise
            what, extra = EXTRAS[name]
            raise refusal(
                f'{what} {name}, which is not installed: pip install "revgraph[{extra}]"'
            ) from error
        except BrokenPipeError:
            forget_output()  # whoever read the output has gone
            raise typer.Exit(NO) from None
        except OSError as error:
            if unwritten():
                forget_output()
            raise refusal(
                f"{error.strerror or error}: {error.filename}" if error.filename else str(error)
            ) from error
        except KeyboardInterrupt:
            messages().print("Interrupted.")
            raise typer.Exit(INTERRUPTED) from None

    return run


def unwritten() -> bool:
    """Whether standard output still holds text that cannot be written, as on a full disk."""
    try:
        sys.stdout.flush()
    except OSError:
        return True
    return False


def forget_output() -> None:
    """Sends what standard output still holds nowhere, or Python would fail again as it flushes at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def refusal(text: str, status: int = BAD_INPUT) -> typer.Exit:
    """The exit to raise, once `text` has been written as an error."""
    where = f"error in process {process()}: " if process() else "error: "
    messages().print(Text.assemble((where, "bold red"), text), soft_wrap=True)
    return typer.Exit(status)
