"""`revgraph list` and `show`: what there is, before anything runs."""

from __future__ import annotations

from revgraph.cli.options import Batch, Json, Net, Parameters, parameters_of
from revgraph.cli.showing import show_json, show_table


def list_(json: Json = False) -> None:
    """List the networks that come with revgraph, with the settings that --set changes."""
    import torch

    from revgraph import specs
    from revgraph.reporting import Report

    with torch.device("meta"):
        found = [specs.build(name) for name in specs.shipped()]
    rows = [
        (
            built.name,
            sum(weight.numel() for weight in built.module.parameters()),
            built.description,
            dict(built.parameters),
        )
        for built in found
    ]
    head = ("name", "parameters", "description", "settings")
    if json:
        show_json([dict(zip(head, row, strict=True)) for row in rows])
    else:
        cells = tuple(
            (name, f"{count:,}", description, ", ".join(f"{key}={value}" for key, value in settings.items()))
            for name, count, description, settings in rows
        )
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
