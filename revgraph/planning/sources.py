"""Where each value comes from in the backward pass, and what must be stored for that."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from revgraph.graph import Graph, Node
from revgraph.planning.plans import Decision, Source


def needs(node: Node, decision: Decision) -> tuple[str, ...]:
    """The values that a node asks for when it is replayed."""
    if decision == "keep":
        return ()
    if decision == "invert":
        return (*node.others, *node.outputs)
    return tuple(dict.fromkeys(node.inputs))


def sources_of(
    graph: Graph, decisions: Mapping[str, Decision], anchors: tuple[str, ...] = ()
) -> tuple[tuple[str, ...], dict[str, Source]]:
    """What to store, and how every value that a replay asks for comes back.

    In backward order, a value that cannot be rebuilt from what is stored already is stored: a value that
    inversion or wiring gives back never is. `anchors` are stored on top. The caller's inputs are always at
    hand.
    """
    reach = _Reach(graph, decisions)
    for name in (*graph.inputs, *anchors):
        reach.add(name, Source("stored"))
    for node in reversed(graph.planned):
        for name in needs(node, decisions[node.name]):
            if name not in reach.sources:
                reach.add(_storing_place(graph, name), Source("stored"))
    reach = _pruned(graph, decisions, anchors, reach)
    wanted = _wanted(graph, decisions, reach.sources)
    sources = {name: reach.sources[name] for name in wanted}
    stored = tuple(
        value.name
        for value in graph.values
        if value.name in anchors or (value.name in sources and sources[value.name].how == "stored")
    )
    return tuple(name for name in stored if name not in graph.inputs), sources


def _pruned(
    graph: Graph, decisions: Mapping[str, Decision], anchors: tuple[str, ...], reach: _Reach
) -> _Reach:
    """The reach without values that were stored early and follow from others stored later."""
    needed = {name for node in graph.planned for name in needs(node, decisions[node.name])}
    given = {*graph.inputs, *anchors}
    stored = [name for name, source in reach.sources.items() if source.how == "stored" and name not in given]
    for name in [name for name in stored if reach.has_other_source(name)]:
        trial = _Reach(graph, decisions)
        for other in (*given, *(each for each in stored if each != name)):
            trial.add(other, Source("stored"))
        if needed <= trial.sources.keys():
            reach, stored = trial, [each for each in stored if each != name]
    return reach


@dataclass
class _Reach:
    """The values that can be rebuilt, kept up to date as more are stored: unit propagation over rules."""

    graph: Graph
    decisions: Mapping[str, Decision]
    sources: dict[str, Source] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rules: list[tuple[Source, tuple[str, ...]]] = []
        self.missing: list[int] = []
        self.watching: dict[str, list[int]] = defaultdict(list)
        for source, given, made in _rules(self.graph, self.decisions):
            index = len(self.rules)
            self.rules.append((source, made))
            self.missing.append(len(given))
            for name in given:
                self.watching[name].append(index)
        for index, count in enumerate(self.missing):
            if count == 0:
                for name in self.rules[index][1]:
                    self.add(name, self.rules[index][0])

    def add(self, name: str, source: Source) -> None:
        pending = [(name, source)]
        while pending:
            name, source = pending.pop()
            if name in self.sources:
                continue
            self.sources[name] = source
            for index in self.watching[name]:
                self.missing[index] -= 1
                if self.missing[index] == 0:
                    rule, made = self.rules[index]
                    pending += [(each, rule) for each in made]

    def has_other_source(self, name: str) -> bool:
        """Whether a rule whose values are all at hand gives this value too."""
        return any(
            count == 0 and name in made for (_, made), count in zip(self.rules, self.missing, strict=True)
        )


def _rules(
    graph: Graph, decisions: Mapping[str, Decision]
) -> Iterator[tuple[Source, tuple[str, ...], tuple[str, ...]]]:
    """How values follow from others: (source, the values it takes, the values it gives)."""
    for node in graph.nodes:
        if node.kind == "coupling" and decisions[node.name] == "invert":
            assert node.target is not None
            given = tuple(dict.fromkeys((*node.others, *node.outputs)))
            yield Source("inverted", node.name), given, (node.target,)
        elif node.kind == "wiring":
            yield Source("rewired", node.name), node.outputs, node.inputs
            yield Source("wired", node.name), node.inputs, node.outputs


def _storing_place(graph: Graph, name: str) -> str:
    """The value to store for `name`: where streams end in a concatenation, the result that is read on."""
    for reader in graph.readers[name]:
        if reader.kind == "wiring" and len(reader.outputs) == 1:
            joined = reader.outputs[0]
            if any(after.kind in ("boundary", "output") for after in graph.readers[joined]):
                return joined
    return name


def _wanted(
    graph: Graph, decisions: Mapping[str, Decision], sources: Mapping[str, Source]
) -> dict[str, None]:
    """The values that replays ask for, directly or to rebuild another."""
    wanted: dict[str, None] = {}
    pending = [name for node in graph.planned for name in needs(node, decisions[node.name])]
    while pending:
        name = pending.pop()
        if name in wanted:
            continue
        wanted[name] = None
        pending += rule_needs(graph, sources[name])
    return wanted


def rule_needs(graph: Graph, source: Source) -> tuple[str, ...]:
    """The values that a source takes to give its own."""
    if source.how == "stored":
        return ()
    node = graph.node[source.node]
    if source.how == "inverted":
        return needs(node, "invert")
    return node.outputs if source.how == "rewired" else node.inputs
