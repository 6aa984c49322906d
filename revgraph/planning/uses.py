"""How often replays read each value in one backward pass, which says when it may go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

from revgraph.graph import Graph
from revgraph.planning.plans import Decision, Source
from revgraph.planning.sources import needs, rule_needs


def uses_of(
    graph: Graph,
    decisions: Mapping[str, Decision],
    sources: Mapping[str, Source],
    silent: Collection[str] = (),
) -> Counter[str]:
    """How often each value is read by replays, where the nodes `silent` ask for none of their own.

    A node replays once, for its own backward or, as an inverted coupling, to give its target back; a wiring
    runs once. What only a silent node would read is not counted.
    """
    replayed = {name for name, decision in decisions.items() if decision != "keep" and name not in silent}
    wirings: set[tuple[str, str]] = set()
    seen: set[str] = set()
    pending = [name for node in replayed for name in needs(graph.node[node], decisions[node])]
    while pending:
        name = pending.pop()
        if name in seen:
            continue
        seen.add(name)
        source = sources[name]
        pending += rule_needs(graph, source)
        if source.how == "inverted":
            replayed.add(source.node)
        elif source.how in ("rewired", "wired"):
            wirings.add((source.how, source.node))
    uses: Counter[str] = Counter()
    for name in replayed:
        uses.update(needs(graph.node[name], decisions[name]))
    for how, name in wirings:
        uses.update(graph.node[name].outputs if how == "rewired" else graph.node[name].inputs)
    return uses
