"""How often replays read each value in one backward pass, which says when it may go."""

from __future__ import annotations

from collections import Counter, defaultdict
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
    replayed, wirings, _ = _closure(graph, decisions, sources, silent)
    uses: Counter[str] = Counter()
    for name in replayed:
        uses.update(needs(graph.node[name], decisions[name]))
    for how, name in wirings:
        uses.update(graph.node[name].outputs if how == "rewired" else graph.node[name].inputs)
    return uses


def clients_of(
    graph: Graph, sources: Mapping[str, Source], drops: Mapping[str, tuple[str, ...]]
) -> dict[str, tuple[str, ...]]:
    """For each value that may be read more often than `uses_of` counts, the values derived from it.

    These are the values that others are rerun from, and those that dropped values are derived from again.
    """
    derived = defaultdict[str, list[str]](list)
    for name, source in sources.items():
        for other in rule_needs(graph, source):
            derived[other].append(name)
    again = {name for name, source in sources.items() if source.how == "recomputed"}
    pending = [*again, *(name for names in drops.values() for name in names if name in sources)]
    found: dict[str, tuple[str, ...]] = {}
    while pending:
        name = pending.pop()
        if name not in found:
            found[name] = tuple(derived[name])
            pending += rule_needs(graph, sources[name])
    return found


def reached_from(
    graph: Graph,
    decisions: Mapping[str, Decision],
    sources: Mapping[str, Source],
    silent: Collection[str] = (),
) -> set[str]:
    """The values that replays of nodes that are not silent read, or that these are derived from."""
    return _closure(graph, decisions, sources, silent)[2]


def _closure(
    graph: Graph, decisions: Mapping[str, Decision], sources: Mapping[str, Source], silent: Collection[str]
) -> tuple[set[str], set[tuple[str, str]], set[str]]:
    """The nodes that are replayed, the wirings that run again, and the values that all these read."""
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
    return replayed, wirings, seen
