"""`revgraph plan`: what a training step keeps, inverts and recomputes within a budget."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated, Any

import typer

from revgraph.cli.guarding import NO, refusal
from revgraph.cli.options import (
    Batch,
    Budget,
    Cost,
    Effort,
    Exact,
    Json,
    Net,
    Parameters,
    PlanFile,
    example_for,
    parameters_of,
)
from revgraph.cli.plan_files import read_plan, save_plan
from revgraph.cli.showing import messages, show_json, show_plan, show_table
from revgraph.errors import BudgetError
from revgraph.progress import Progress


def plan(
    net: Net,
    batch: Batch = 100,
    budget: Budget = None,
    effort: Effort = "normal",
    cost: Cost = "time",
    saved: PlanFile = None,
    save: Annotated[
        Path | None,
        typer.Option(
            "--save", metavar="FILE", help="Write the plan into this file, as JSON for --plan of any command."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Draw the plan into this file: .svg, .png, .html or .dot; or write its step for other "
            "tools: .trace.json for Perfetto, .pickle for PyTorch's memory viewer.",
        ),
    ] = None,
    frontier: Annotated[
        bool, typer.Option("--frontier", help="Show plans from the least memory to the least computing too.")
    ] = False,
    chart: Annotated[
        Path | None, typer.Option("--chart", help="Draw that frontier into this file: .svg or .png.")
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Run one training step too: tell and draw the bytes it takes.")
    ] = False,
    exact: Exact = False,
    set_: Parameters = None,
    table: Annotated[
        bool, typer.Option("--table", help="Show every node, with what it holds and the reason for it.")
    ] = False,
    json: Json = False,
) -> None:
    """Plan what a step keeps and computes again.

    The plan takes the least time within the budget: bytes, as "300 MiB"; a share of ordinary training, as
    "50%"; or the least. Without one it is the cheapest within a tenth of the least peak at which no function
    runs more than once again. Bytes and FLOPs are predicted for the batch size given, and time is estimated.
    Exit status 1 if no plan fits.

    A summary comes first. In the table below it repeated blocks are one row, and the bytes that are held
    between forward and backward add up; --table shows every node.

    With --save the plan is kept in a file, and --plan of this and other commands takes it from there, for the
    same network with the same batch and settings. What the file says is checked.

    The chart has ordinary autograd and torch's checkpoint around each block besides, predicted as well; an
    .html has the chart, too, if the frontier is asked for.
    """
    import revgraph as rg
    from revgraph import drawing
    from revgraph.cli.baselines import checkpoint_blocks
    from revgraph.planning import budget_bytes, check_budget, check_effort, profile_of
    from revgraph.reporting import as_json, report

    if saved is not None and budget is not None:
        raise typer.BadParameter("give --plan or --budget, not both")
    _check_suffix("--out", out, drawing.SUFFIXES)
    _check_suffix("--chart", chart, drawing.CHART_SUFFIXES)
    reported = out is not None and out.suffix.lower() == ".html"
    if chart is not None or (frontier and reported):
        importlib.import_module("matplotlib")  # where it is missing, that is said before anything takes long
    if budget is not None:
        check_budget(budget)
    tried = check_effort(effort)
    profile_of(cost)
    parameters = parameters_of(set_)
    with Progress(f"{net}: reading the graph and its costs"):
        network = rg.load(net, batch=batch, exact=exact or None, **parameters)
    graph = network.graph
    limit = None if budget is None else budget_bytes(graph, budget)
    about: dict[str, Any] = {"batch": batch, "budget_bytes": limit}
    try:
        read = None if saved is None else read_plan(saved, graph)
        chosen = read or rg.plan(graph, budget=budget, effort=tried, cost=cost)  # says what it is at
    except BudgetError as error:
        if json:
            found = {"fits": False, "least_bytes": error.least_bytes, "node": error.node}
            show_json({"network": graph.name, **about, **found})
        raise refusal(str(error), NO) from error
    if json:
        about["fits"] = True
    else:
        show_plan(chosen, table)
    if save is not None:
        save_plan(chosen, save)
        messages().print(f"saved: {save}", soft_wrap=True, markup=False)
    drawn: dict[str, Any] = {"budget": limit}
    if measure:
        with Progress(f"{net}: running a training step"):
            network.plan = chosen
            drawn["measured"] = rg.track(network, *example_for(net, batch, parameters))
        most = max(live for _, live in drawn["measured"])
        about["measured_peak_bytes"] = most
        said = f"measured in one step: {most:,} bytes at the peak, where {chosen.peak_bytes:,} are predicted"
        messages().print(said, soft_wrap=True, highlight=False)
    if frontier or chart is not None:
        with Progress(f"{net}: planning for budgets from the least to ordinary autograd's"):
            plans = rg.frontier(graph, effort=tried, cost=cost)
            baselines = {
                "ordinary autograd": rg.keep_all(graph),
                "torch's checkpoint per block": checkpoint_blocks(graph),
            }
        if json:
            about["frontier"] = as_json(plans)
            about["baselines"] = {name: _point(each) for name, each in baselines.items()}
        elif frontier:
            show_table(report(plans, chosen))
            if chosen.made == "default":
                messages().print(
                    "chosen, without a budget: of the plans that run no function more than twice, the "
                    "cheapest within a tenth of their least peak",
                    soft_wrap=True,
                )
        if chart is not None:
            marked = {"the plan chosen": chosen, **baselines}
            _say_drawn(rg.draw(plans, chart, budget=limit, beside=marked))
        if frontier and reported:
            drawn |= {"frontier": plans, "beside": baselines}
    if json:
        show_json({**as_json(chosen), **about})
    if out is not None:
        _say_drawn(rg.draw(chosen, out, **drawn))


def _say_drawn(path: Path) -> None:
    messages().print(f"drawn: {path}", soft_wrap=True, markup=False)


def _point(plan: Any) -> dict[str, Any]:
    return {name: getattr(plan, name) for name in ("peak_bytes", "held_bytes", "flops_ratio", "time_ratio")}


def _check_suffix(option: str, path: Path | None, suffixes: tuple[str, ...]) -> None:
    from revgraph.drawing import suffix_of

    if path is not None and suffix_of(path) not in suffixes:
        raise typer.BadParameter(f"{option} {path}: the name ends in one of {', '.join(suffixes)}")
