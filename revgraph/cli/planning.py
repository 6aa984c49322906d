"""`revgraph plan`: what a training step keeps, inverts and recomputes within a budget."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated, Any

import typer

from revgraph.cli.guarding import NO, refusal
from revgraph.cli.options import Batch, Budget, Json, Net, Parameters, parameters_of
from revgraph.cli.showing import messages, show_json, show_table
from revgraph.errors import BudgetError
from revgraph.reporting import as_json, report


def plan(
    net: Net,
    batch: Batch = 100,
    budget: Budget = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Draw the plan into this file: .svg, .png, .html or .dot.")
    ] = None,
    frontier: Annotated[
        bool, typer.Option("--frontier", help="Show plans from the least memory to the least computing too.")
    ] = False,
    chart: Annotated[
        Path | None, typer.Option("--chart", help="Draw that frontier into this file: .svg or .png.")
    ] = None,
    set_: Parameters = None,
    json: Json = False,
) -> None:
    """Plan what a training step keeps, inverts and recomputes.

    The plan computes the least again within the budget; without one it has the least peak of activation
    memory. Bytes and FLOPs are predicted, for the batch size given. Exit status 1 if no plan fits.

    The chart has ordinary autograd and torch's checkpoint around each block besides, predicted as well.
    """
    import revgraph as rg
    from revgraph import charting, drawing
    from revgraph.cli.baselines import checkpoint_blocks
    from revgraph.planning import parse_bytes

    _check_suffix("--out", out, drawing.SUFFIXES)
    _check_suffix("--chart", chart, charting.SUFFIXES)
    if chart is not None:
        importlib.import_module("matplotlib")  # where it is missing, that is said before anything takes long
    limit = None if budget is None else parse_bytes(budget)
    parameters = parameters_of(set_)
    with messages().status(f"{net}: reading the graph and its costs"):
        graph = rg.load(net, batch=batch, **parameters).graph
    about: dict[str, Any] = {"batch": batch, "budget_bytes": limit}
    try:
        with messages().status(f"{net}: planning"):
            chosen = rg.plan(graph, budget=limit)
    except BudgetError as error:
        if json:
            found = {"fits": False, "least_bytes": error.least_bytes, "node": error.node}
            show_json({"network": graph.name, **about, **found})
        raise refusal(str(error), NO) from error
    if json:
        about["fits"] = True
    else:
        show_table(report(chosen))
    if frontier or chart is not None:
        with messages().status(f"{net}: planning for budgets from the least to ordinary autograd's"):
            plans = rg.frontier(graph)
            baselines = {
                "ordinary autograd": rg.keep_all(graph),
                "torch's checkpoint per block": checkpoint_blocks(graph),
            }
        if json:
            about["frontier"] = as_json(plans)
            about["baselines"] = {name: _point(each) for name, each in baselines.items()}
        elif frontier:
            show_table(report(plans))
        if chart is not None:
            charting.chart(plans, chart, chosen=chosen, budget=limit, baselines=baselines)
            messages().print(f"drawn: {chart}", soft_wrap=True, markup=False)
    if json:
        show_json({**as_json(chosen), **about})
    if out is not None:
        rg.draw(chosen, out)
        messages().print(f"drawn: {out}", soft_wrap=True, markup=False)


def _point(plan: Any) -> dict[str, Any]:
    return {name: getattr(plan, name) for name in ("peak_bytes", "held_bytes", "flops_ratio")}


def _check_suffix(option: str, path: Path | None, suffixes: tuple[str, ...]) -> None:
    if path is not None and path.suffix.lower() not in suffixes:
        raise typer.BadParameter(f"{option} {path}: the name ends in one of {', '.join(suffixes)}")
