"""`revgraph list` and `show`: what there is, before anything runs."""

from __future__ import annotations

import re

from revgraph.cli.options import Batch, Json, Net, Parameters, parameters_of
from revgraph.cli.shipped import networks
from revgraph.cli.showing import show_json, show_table, terminal_width

# Columns that the whole list takes; with fewer each network would be many lines.
ROOM = 160
# What a description says behind its first part, which ends at a comma or a semicolon outside of parentheses.
DETAILS = re.compile(r"[,;](?![^(]*\)).*")


def list_(json: Json = False) -> None:
    """List the networks that come with revgraph.

    Settings are what --set changes in other commands. A terminal that has no room for them gets none.
    """
    from revgraph.reporting import Report

    found = networks()
    if json:
        show_json(found)
        return
    narrow = terminal_width() < ROOM
    columns = 3 if narrow else 4  # without the settings, or with them
    cells = tuple(
        (
            each["name"],
            f"{each['parameters']:,}",
            DETAILS.sub(".", each["description"]) if narrow else each["description"],
            ", ".join(f"{key}={value}" for key, value in each["settings"].items()),
        )[:columns]
        for each in found
    )
    head = ("name", "parameters", "description", "settings")[:columns]
    show_table(Report("networks that come with revgraph", head, cells, frozenset({"parameters"})))
    if narrow:
        print("Their settings: revgraph list --json, or in a wider terminal.")


def show(net: Net, batch: Batch = 100, set_: Parameters = None, json: Json = False) -> None:
    """Show a network's graph, node by node."""
    import revgraph as rg
    from revgraph.reporting import as_json, report

    graph = rg.load(net, batch=batch, **parameters_of(set_)).graph
    if json:
        show_json(as_json(graph))
    else:
        show_table(report(graph))
