"""Where each value comes from in the backward pass, and what must be stored for that."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import cast

from revgraph.errors import PlanError
from revgraph.graph import Graph, Node
from revgraph.planning.plans import DECISIONS, Decision, Source

STORED = 0  # the rule of what is stored


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
    for _, names in reach.rules.asked(decisions):
        for name in names:
            if name not in reach.by:
                reach.add(_storing_place(graph, name))
                reach.rerun()
    reach = _pruned(graph, decisions, reruns, given, reach)
    if reruns:  # what was stored late may give by inversion or wiring what was rerun until then
        reach = _reach(graph, decisions, reruns, given, reach.stored)
    sources = reach.wanted(decisions)
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
    reach = _Reach(graph.worked_out(Rules), decisions, frozenset(reruns))
    reach.store((*(name for name in graph.inputs if name not in gone), *stored))
    reach.rerun()
    try:
        return reach.wanted(decisions)
    except KeyError:
        node, name = next(
            (node, name)
            for node, names in reach.rules.asked(decisions)
            for name in names
            if name not in reach.by
        )
    raise PlanError(
        f"value {name!r} cannot come back for {node!r}, which is to be "
        f"{'inverted' if decisions[node] == 'invert' else 'recomputed'}: it is not stored, "
        f"and does not follow from what is. Store it, or rerun {graph.producer[name].name!r}, "
        f"which makes it, or keep {node!r}."
    )


class Rules:
    """How the values of a graph follow from others, made once for a graph and kept with it.

    They are all the rules that a plan may have, by numbers: a plan has the inversions of what it inverts and
    the runs of what it reruns. `needs` are for each decision the values that a node asks for under it.
    """

    def __init__(self, graph: Graph) -> None:
        self.sources = [Source("stored")]  # rule 0, which takes nothing and gives what it is told to
        self.takes: list[tuple[str, ...]] = [()]
        self.gives: list[tuple[str, ...]] = [()]
        self.inversions: dict[str, int] = {}
        self.runs: dict[str, int] = {}
        for node in graph.nodes:
            if node.kind == "coupling":
                assert node.target is not None
                self.inversions[node.name] = self._add(Source("inverted", node.name), (node.target,), graph)
            elif node.kind == "wiring":
                self._add(Source("rewired", node.name), node.inputs, graph)
                self._add(Source("wired", node.name), node.outputs, graph)
            self.runs[node.name] = self._add(Source("recomputed", node.name), node.outputs, graph)
        self.counts = [len(set(taken)) for taken in self.takes]
        # A rule that a plan has only if it decides so counts from below 0, and so never gets there.
        self.unless_decided = list(self.counts)
        for rule in (0, *self.inversions.values(), *self.runs.values()):
            self.unless_decided[rule] = -1
        self.from_nothing = [rule for rule, count in enumerate(self.counts) if count == 0]
        watching: defaultdict[str, list[int]] = defaultdict(list)
        for rule, taken in enumerate(self.takes):
            for name in dict.fromkeys(taken):
                watching[name].append(rule)
        self.watching = dict(watching)
        self.needs = {
            decision: {
                node.name: needs(node, cast("Decision", decision))
                for node in graph.planned
                if decision != "invert" or node.kind == "coupling"
            }
            for decision in DECISIONS
        }
        self.planned = tuple(node.name for node in graph.planned)

    def _add(self, source: Source, gives: tuple[str, ...], graph: Graph) -> int:
        self.sources.append(source)
        self.takes.append(rule_needs(graph, source))
        self.gives.append(gives)
        return len(self.sources) - 1

    def asked(self, decisions: Mapping[str, Decision]) -> Iterator[tuple[str, tuple[str, ...]]]:
        """In backward order, the nodes that a plan decides on and the values that each asks for."""
        for node in reversed(self.planned):
            yield node, self.needs[decisions[node]][node]


class _Reach:
    """The values that can be rebuilt, kept up to date as more are stored: unit propagation over rules.

    `by` is for each value the rule that gives it. What only a rerun gives waits until `rerun` is called, so
    that inversion and wiring go first.
    """

    def __init__(self, rules: Rules, decisions: Mapping[str, Decision], reruns: Collection[str]) -> None:
        self.rules = rules
        self.missing = list(rules.unless_decided)
        for node, rule in rules.inversions.items():
            if decisions[node] == "invert":
                self.missing[rule] = rules.counts[rule]
        for node in reruns:
            if node in rules.runs:
                self.missing[rules.runs[node]] = rules.counts[rules.runs[node]]
        self.by: dict[str, int] = {}
        self.waiting: deque[int] = deque()
        for rule in rules.from_nothing:
            if self.missing[rule] == 0:
                pending: list[tuple[str, int]] = []
                self._fire(rule, pending)
                self._propagate(pending)

    @property
    def stored(self) -> list[str]:
        return [name for name, rule in self.by.items() if rule == STORED]

    def add(self, name: str) -> None:
        """Store a value, unless it can be rebuilt already."""
        self._propagate([(name, STORED)])

    def store(self, names: Iterable[str]) -> None:
        """Store values, whether or not they could be rebuilt from each other."""
        names = [name for name in dict.fromkeys(names) if name not in self.by]
        self.by.update(dict.fromkeys(names, STORED))
        for name in names:
            pending: list[tuple[str, int]] = []
            self._follow(name, pending)
            self._propagate(pending)

    def rerun(self) -> None:
        """Add what reruns give, one at a time and each with all that follows from it."""
        while self.waiting:
            rule = self.waiting.popleft()
            self._propagate([(name, rule) for name in self.rules.gives[rule]])

    def has_other_source(self, name: str) -> bool:
        """Whether a rule whose values are all at hand gives this value too."""
        gives = self.rules.gives
        return any(count == 0 and name in gives[rule] for rule, count in enumerate(self.missing))

    def wanted(self, decisions: Mapping[str, Decision]) -> dict[str, Source]:
        """The sources of the values that replays ask for, directly or to rebuild another."""
        sources, takes = self.rules.sources, self.rules.takes
        wanted: dict[str, Source] = {}
        needs = self.rules.needs
        pending = [name for node in self.rules.planned for name in needs[decisions[node]][node]]
        while pending:
            name = pending.pop()
            if name not in wanted:
                rule = self.by[name]
                wanted[name] = sources[rule]
                pending += takes[rule]
        return wanted

    def _propagate(self, pending: list[tuple[str, int]]) -> None:
        while pending:
            name, rule = pending.pop()
            if name not in self.by:
                self.by[name] = rule
                self._follow(name, pending)

    def _follow(self, name: str, pending: list[tuple[str, int]]) -> None:
        """Add to `pending` what rules give, now that this value is at hand too."""
        missing = self.missing
        for rule in self.rules.watching.get(name, ()):
            missing[rule] -= 1
            if missing[rule] == 0:
                self._fire(rule, pending)

    def _fire(self, rule: int, pending: list[tuple[str, int]]) -> None:
        if self.rules.sources[rule].how == "recomputed":
            self.waiting.append(rule)
        else:
            pending += [(name, rule) for name in self.rules.gives[rule]]


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
    reach = _Reach(graph.worked_out(Rules), decisions, reruns)
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
    needed = {name for _, names in reach.rules.asked(decisions) for name in names}
    stored = [name for name in reach.stored if name not in given]
    for name in [name for name in stored if reach.has_other_source(name)]:
        rest = [each for each in stored if each != name]
        trial = _reach(graph, decisions, reruns, given, rest)
        if needed <= trial.by.keys():
            reach, stored = trial, rest
    return reach


def _storing_place(graph: Graph, name: str) -> str:
    """The value to store for `name`: where streams end in a concatenation, the result that is read on."""
    for reader in graph.readers[name]:
        if reader.kind == "wiring" and len(reader.outputs) == 1:
            joined = reader.outputs[0]
            if any(after.kind in ("boundary", "output") for after in graph.readers[joined]):
                return joined
    return name
