"""Where each value comes from in the backward pass, and what must be stored for that."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from revgraph.errors import PlanError
from revgraph.graph import Graph, Node
from revgraph.planning.plans import Decision, Source


def needs(node: Node, decision: Decision) -> tuple[str, ...]:
    """The values that a node asks for when it is replayed."""
    if decision == "keep":
        return ()
    if decision == "invert":
        return (*node.others, node.outputs[0])
    return tuple(dict.fromkeys(node.others if node.additive else node.inputs))


def rule_needs(graph: Graph, source: Source) -> tuple[str, ...]:
    """The values that a source takes to give its own."""
    if source.how == "stored":
        return ()
    node = graph.node[source.node]
    if source.how == "inverted":
        return needs(node, "invert")
    return node.outputs if source.how == "rewired" else tuple(dict.fromkeys(node.inputs))


def sources_of(
    graph: Graph,
    decisions: Mapping[str, Decision],
    anchors: Iterable[str] = (),
    reruns: Iterable[str] = (),
) -> tuple[tuple[str, ...], dict[str, Source]]:
    """What to store, and how every value that a replay asks for comes back.

    In backward order, a value that cannot be rebuilt from what is stored already is stored: a value that
    inversion or wiring gives back never is, nor one that a node in `reruns` gives when it is run again.
    `anchors` are stored on top. The caller's inputs are always at hand.
    """
    reruns = frozenset(reruns)
    given = (*graph.inputs, *anchors)
    reach = _reach(graph, decisions, reruns, given)
    for node in reversed(graph.planned):
        for name in needs(node, decisions[node.name]):
            if name not in reach.sources:
                reach.add(_storing_place(graph, name))
                reach.rerun()
    reach = _pruned(graph, decisions, reruns, given, reach)
    if reruns:  # what was stored late may give by inversion or wiring what was rerun until then
        reach = _reach(graph, decisions, reruns, given, reach.stored)
    sources = _wanted(graph, decisions, reach.sources)
    stored = {*anchors, *(name for name, source in sources.items() if source.how == "stored")}
    stored.difference_update(graph.inputs)
    return tuple(value.name for value in graph.values if value.name in stored), sources


def sources_from(
    graph: Graph,
    decisions: Mapping[str, Decision],
    stored: Iterable[str],
    reruns: Iterable[str] = (),
    gone: Collection[str] = (),
) -> dict[str, Source]:
    """How every value that a replay asks for comes back when exactly the values `stored` are stored.

    Of the caller's inputs those in `gone` are not at hand.

    Raises:
        PlanError: a value cannot come back; the text names it and the node that asks for it.
    """
    reach = _Reach(graph, decisions, frozenset(reruns))
    reach.store((*(name for name in graph.inputs if name not in gone), *stored))
    reach.rerun()
    for node in reversed(graph.planned):
        for name in needs(node, decisions[node.name]):
            if name not in reach.sources:
                raise PlanError(
                    f"value {name!r} cannot come back for {node.name!r}, which is to be "
                    f"{'inverted' if decisions[node.name] == 'invert' else 'recomputed'}: it is not stored, "
                    f"and does not follow from what is. Store it, or rerun {graph.producer[name].name!r}, "
                    f"which makes it, or keep {node.name!r}."
                )
    return _wanted(graph, decisions, reach.sources)


@dataclass
class _Reach:
    """The values that can be rebuilt, kept up to date as more are stored: unit propagation over rules.

    What only a rerun gives waits until `rerun` is called, so that inversion and wiring go first.
    """

    graph: Graph
    decisions: Mapping[str, Decision]
    reruns: frozenset[str]
    sources: dict[str, Source] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rules: list[tuple[Source, tuple[str, ...]]] = []
        self.missing: list[int] = []
        self.watching: dict[str, list[int]] = defaultdict(list)
        self.waiting: deque[int] = deque()
        for index, (source, given, made) in enumerate(_rules(self.graph, self.decisions, self.reruns)):
            self.rules.append((source, made))
            self.missing.append(len(given))
            for name in given:
                self.watching[name].append(index)
        for index, count in enumerate(self.missing):
            if count == 0:
                pending: list[tuple[str, Source]] = []
                self._fire(index, pending)
                self._propagate(pending)

    @property
    def stored(self) -> list[str]:
        return [name for name, source in self.sources.items() if source.how == "stored"]

    def add(self, name: str) -> None:
        """Store a value, unless it can be rebuilt already."""
        self._propagate([(name, Source("stored"))])

    def store(self, names: Iterable[str]) -> None:
        """Store values, whether or not they could be rebuilt from each other."""
        names = [name for name in dict.fromkeys(names) if name not in self.sources]
        self.sources.update((name, Source("stored")) for name in names)
        for name in names:
            pending: list[tuple[str, Source]] = []
            self._follow(name, pending)
            self._propagate(pending)

    def rerun(self) -> None:
        """Add what reruns give, one at a time and each with all that follows from it."""
        while self.waiting:
            rule, made = self.rules[self.waiting.popleft()]
            self._propagate([(name, rule) for name in made])

    def has_other_source(self, name: str) -> bool:
        """Whether a rule whose values are all at hand gives this value too."""
        return any(
            count == 0 and name in made for (_, made), count in zip(self.rules, self.missing, strict=True)
        )

    def _propagate(self, pending: list[tuple[str, Source]]) -> None:
        while pending:
            name, source = pending.pop()
            if name not in self.sources:
                self.sources[name] = source
                self._follow(name, pending)

    def _follow(self, name: str, pending: list[tuple[str, Source]]) -> None:
        """Add to `pending` what rules give, now that this value is at hand too."""
        for index in self.watching.get(name, ()):
            self.missing[index] -= 1
            if self.missing[index] == 0:
                self._fire(index, pending)

    def _fire(self, index: int, pending: list[tuple[str, Source]]) -> None:
        rule, made = self.rules[index]
        if rule.how == "recomputed":
            self.waiting.append(index)
        else:
            for name in made:
                pending.append((name, rule))


def _reach(
    graph: Graph,
    decisions: Mapping[str, Decision],
    reruns: frozenset[str],
    given: Iterable[str],
    stored: Iterable[str] = (),
) -> _Reach:
    """What can be rebuilt from values that are given, and from those `stored` that do not follow from them.

    Anchors are given: they follow from others, and are stored because they would be far off then.
    """
    reach = _Reach(graph, decisions, reruns)
    reach.store(given)
    for name in stored:
        reach.add(name)
    reach.rerun()
    return reach


def _pruned(
    graph: Graph,
    decisions: Mapping[str, Decision],
    reruns: frozenset[str],
    given: tuple[str, ...],
    reach: _Reach,
) -> _Reach:
    """The reach without values that were stored early and follow from others stored later."""
    needed = {name for node in graph.planned for name in needs(node, decisions[node.name])}
    stored = [name for name in reach.stored if name not in given]
    for name in [name for name in stored if reach.has_other_source(name)]:
        rest = [each for each in stored if each != name]
        trial = _reach(graph, decisions, reruns, given, rest)
        if needed <= trial.sources.keys():
            reach, stored = trial, rest
    return reach


def _rules(
    graph: Graph, decisions: Mapping[str, Decision], reruns: frozenset[str]
) -> list[tuple[Source, tuple[str, ...], tuple[str, ...]]]:
    """How values follow from others: (source, the values it takes, the values it gives)."""
    rules: list[tuple[Source, tuple[str, ...], tuple[str, ...]]] = []
    for node in graph.nodes:
        inputs, outputs, name = (
            tuple(dict.fromkeys(node.inputs)),
            tuple(dict.fromkeys(node.outputs)),
            node.name,
        )
        if node.kind == "coupling" and decisions[name] == "invert":
            assert node.target is not None
            taken = tuple(dict.fromkeys(needs(node, "invert")))
            rules.append((Source("inverted", name), taken, (node.target,)))
        elif node.kind == "wiring":
            rules.append((Source("rewired", name), outputs, node.inputs))
            rules.append((Source("wired", name), inputs, node.outputs))
        if name in reruns:
            rules.append((Source("recomputed", name), inputs, node.outputs))
    return rules


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
) -> dict[str, Source]:
    """The sources of the values that replays ask for, directly or to rebuild another."""
    wanted: dict[str, Source] = {}
    pending = [name for node in graph.planned for name in needs(node, decisions[node.name])]
    while pending:
        name = pending.pop()
        if name not in wanted:
            wanted[name] = sources[name]
            pending += rule_needs(graph, sources[name])
    return wanted
