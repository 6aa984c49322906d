"""`revgraph check`: whether a network's gradients agree with those from stored activations."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from revgraph.cli.guarding import NO
from revgraph.cli.options import BATCH, Exact, Json, Net, Parameters, PlanFile, example_for, parameters_of
from revgraph.cli.plan_files import read_plan
from revgraph.cli.showing import messages, show_json, show_table

if TYPE_CHECKING:
    from revgraph.checking import GradientReport


def check(
    net: Net,
    batch: Annotated[int, typer.Option("--batch", min=1, help=BATCH)] = 8,
    max_angle: Annotated[
        float, typer.Option("--max-angle", min=0, help="Degrees between the gradients that are still good.")
    ] = 1.0,
    max_drift: Annotated[
        float,
        typer.Option("--max-drift", min=0, help="Relative error of a rebuilt value that is still good."),
    ] = 1e-2,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the weights and the output's gradient.")] = 0,
    chart: Annotated[
        Path | None, typer.Option("--chart", metavar="FILE", help="Draw the drift into an .svg or .png.")
    ] = None,
    plan: PlanFile = None,
    exact: Exact = False,
    set_: Parameters = None,
    json: Json = False,
) -> None:
    """Compare gradients with ordinary training's.

    The network has new weights, and the input is random. Exit status 1 if the gradients or a rebuilt value
    are further from the stored ones than allowed, or drift flipped a choice.
    """
    import torch

    import revgraph as rg
    from revgraph.reporting import as_json, report

    parameters = parameters_of(set_)
    inputs = example_for(net, batch, parameters)
    torch.manual_seed(seed)
    network = rg.load(net, batch=batch, exact=exact or None, **parameters)
    if plan is not None:
        network.plan = read_plan(plan, network.graph)
    found = rg.check(network, *inputs, seed=seed)
    drift = max(found.drift.values(), default=0.0)
    # Written so that nan, which is below nothing, is not good.
    good = found.angle_degrees <= max_angle and drift <= max_drift and math.isfinite(found.max_relative_error)
    good = good and found.verdict != "flipped"
    if json:
        limits = {"max_angle": max_angle, "max_drift": max_drift}
        show_json({"network": network.graph.name, "batch": batch, "good": good, **limits, **as_json(found)})
    else:
        show_table(report(found))
    if chart is not None and found.drift:
        from revgraph.drawing.charts import chart_drift

        chart_drift(found.drift, chart, limit=max_drift)
    if not good:
        messages().print(_advice(network.graph.name, found, max_drift), soft_wrap=True)
        raise typer.Exit(NO)


def _advice(name: str, found: GradientReport, max_drift: float) -> str:
    """What is wrong, where it is worst, and what to do."""
    text = f"{name}: the gradients are too far from those of stored activations."
    worst = max(found.drift, key=found.drift.__getitem__, default=None)
    if found.verdict == "flipped":
        text += f" {found.advice} Here exact mode is --exact."
    elif worst is not None and not found.drift[worst] <= max_drift:
        text += (
            f" Value {worst!r} comes back with an error of {found.drift[worst]:.2g} of its size. Use exact "
            "mode (--exact, or `exact: true` in the specification), or bound the drift with anchors "
            "(revgraph.estimate_drift, then revgraph.plan(net.graph, max_drift=...))."
        )
    return text
