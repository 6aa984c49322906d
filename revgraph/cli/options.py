"""Arguments and options that several commands share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from revgraph.errors import SpecError

if TYPE_CHECKING:
    from torch import Tensor

Net = Annotated[
    str, typer.Argument(metavar="NET", help="A shipped network's name (see `revgraph list`) or a YAML file.")
]
Json = Annotated[bool, typer.Option("--json", help="Write JSON instead of a table.")]
BATCH = "Samples in a batch: images, sequences, or whatever the network takes several of."
Batch = Annotated[int, typer.Option("--batch", min=1, help=BATCH)]
Budget = Annotated[
    str | None,
    typer.Option(
        "--budget",
        metavar="BYTES",
        help="Activation bytes that a step may take at most: a number, or text such as '300 MiB', '50%' of "
        "ordinary training, or 'least'.",
    ),
]
Effort = Annotated[
    str,
    typer.Option("--effort", help="How many plans are tried: quick, normal or thorough."),
]
Cost = Annotated[
    str,
    typer.Option(
        "--cost",
        help="What is to be small: time (estimated), flops, or time on one of revgraph.PROFILES (a100 ...).",
    ),
]
PlanFile = Annotated[
    Path | None,
    typer.Option(
        "--plan",
        metavar="FILE",
        help="Take the plan in this file, which `revgraph plan --save` wrote for this network and batch.",
    ),
]
Exact = Annotated[
    bool,
    typer.Option(
        "--exact", help="Exact mode: streams on a fixed-point grid, which inversion gives back bit for bit."
    ),
]
Parameters = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE", help="Give a parameter of the network, for example classes=100."
    ),
]


def parameters_of(texts: list[str] | None) -> dict[str, Any]:
    """The parameters that `NAME=VALUE` texts give; a value that is no number, true or false is a string.

    Raises:
        SpecError: a text has another form.

    Example:
        >>> parameters_of(["classes=100", "activation=relu"])
        {'classes': 100, 'activation': 'relu'}
    """
    parameters: dict[str, Any] = {}
    for text in texts or ():
        name, sign, value = text.partition("=")
        if not sign or not name.isidentifier():
            raise SpecError(f"--set {text}: give a parameter as NAME=VALUE, for example --set classes=100")
        try:
            parameters[name] = json.loads(value)
        except ValueError:
            parameters[name] = value
    return parameters


def example_for(net: str, batch: int, parameters: dict[str, Any]) -> tuple[Tensor, ...]:
    """Inputs for a network of this name or file, always the same."""
    import torch

    from revgraph import specs

    with torch.device("meta"):
        built = specs.build(net, batch=batch, **parameters)
    return specs.example_inputs(built, "cpu")
