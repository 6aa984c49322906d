"""`revgraph list` and `show`: what there is, before anything runs."""

from __future__ import annotations

from revgraph.cli.options import Batch, Json, Net, Parameters, parameters_of
from revgraph.cli.shipped import networks
from revgraph.cli.showing import show_json, show_table


def list_(json: Json = False) -> None:
    """List the networks that come with revgraph.

    Settings are what --set changes in other commands.
    """
    from revgraph.reporting import Report

    found = networks()
    if json:
        show_json(found)
        return
    cells = tuple(
        (
            each["name"],
            f"{each['parameters']:,}",
            each["description"],
            ", ".join(f"{key}={value}" for key, value in each["settings"].items()),
        )
        for each in found
    )
    head = ("name", "parameters", "description", "settings")
    show_table(Report("networks that come with revgraph", head, cells, frozenset({"parameters"})))


def show(net: Net, batch: Batch = 100, set_: Parameters = None, json: Json = False) -> None:
    """Show a network's graph, node by node."""
    import revgraph as rg
    from revgraph.reporting import as_json, report

    graph = rg.load(net, batch=batch, **parameters_of(set_)).graph
    if json:
        show_json(as_json(graph))
    else:
        show_table(report(graph))
