"""Finding half-steps in traced arithmetic: sums `x + F(others)` and the like that can be undone.

Ordinary networks are full of sums that could be undone and gain nothing by it: the output of an attention
and the values around it, a bias on its scores, a condition inside a block. To take such a sum for a coupling
does harm, for a coupling keeps the modules around it open and ends the functions it lies in. So a sum is a
coupling only if its target lies on a *stream* (`on_streams`), and it can be undone (`_Search.half_step`).
Each of the two needs the other, so they take turns until nothing changes. At last those are given up that lie
inside another one's F (`_absorb`).

Everything here is linear in the number of nodes, but for functions inside functions.
"""

from __future__ import annotations

import operator
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property
from heapq import heapify, heappop, heappush
from typing import Any

import torch
from torch import Tensor, fx, nn

from revgraph.program import Law
from revgraph.tracing.find_couplings.readings import Reading, readings
from revgraph.tracing.proxies import holds_tensors
from revgraph.tracing.tracer import ModuleScope
from revgraph.tracing.wiring.recognize import is_wiring

COPIES = {"clone", torch.clone}
# Functions and torch's modules that draw random numbers.
RANDOM = re.compile(
    "drop|rand|bernoulli|normal|multinomial|poisson|uniform|exponential|rrelu|fractional|gumbel"
)
RANDOM_MODULES = (nn.modules.dropout._DropoutNd, nn.RReLU, nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)


@dataclass(frozen=True)
class HalfStep:
    """A traced call that is a coupling: `addition = target (+) terms`.

    `region` are the nodes, in order, that compute the terms and serve nothing else: the coupling's F.
    `others` are the values that F reads, `extra_results` those that it gives to others than this coupling: a
    module may have several. `spine` are the calls of the coupling's arithmetic before the last.
    """

    reading: Reading
    region: tuple[fx.Node, ...]
    others: tuple[fx.Node, ...]
    extra_results: tuple[fx.Node, ...]

    @property
    def addition(self) -> fx.Node:
        return self.reading.node

    @property
    def target(self) -> fx.Node:
        return self.reading.target

    @property
    def terms(self) -> tuple[fx.Node, ...]:
        return self.reading.terms

    @property
    def law(self) -> Law:
        return self.reading.law

    @property
    def spine(self) -> tuple[fx.Node, ...]:
        return self.reading.spine[:-1]


def find_half_steps(
    graph: fx.Graph,
    root: nn.Module,
    fakes: Mapping[fx.Node, Any],
    streams: set[fx.Node],
    scopes: list[ModuleScope],
    sums_only: bool = False,
) -> dict[fx.Node, HalfStep]:
    """The half-steps of a traced graph, by their additions.

    `streams` are values known to lie on a stream: what coupling modules return. With `sums_only`, no product
    is part of a half-step.
    """
    flow = Flow(graph, root, fakes, streams)
    search = _Search(flow)
    innermost = _innermost(scopes)
    possible = {
        node: found
        for node in graph.nodes
        if (
            found := [
                each
                for each in readings(node, fakes, sums_only)
                if all(innermost.get(call) is innermost.get(node) for call in each.spine)
            ]
        )
    }
    for found in possible.values():
        found.sort(key=lambda reading: flow.rank(reading, possible.keys()))
    possible = on_streams(flow, possible, counts_forks=False)
    while True:
        half_steps = search.half_steps(possible)
        worth = on_streams(flow, _chosen(half_steps), counts_forks=True)
        if worth == possible:
            break
        possible = worth
    for node in reversed(list(half_steps)):
        if node in half_steps:
            _absorb(search, half_steps, node, scopes)
    return _in_order(search, search.half_steps(_chosen(half_steps)))


def _innermost(scopes: list[ModuleScope]) -> dict[fx.Node, ModuleScope]:
    """The module call in which each node was made; what goes on in another one is not read along with it,
    or both would have to stay open."""
    found: dict[fx.Node, ModuleScope] = {}
    for scope in scopes:  # those inside come first
        for node in scope.nodes:
            found.setdefault(node, scope)
    return found


def refine_half_steps(
    graph: fx.Graph,
    root: nn.Module,
    fakes: Mapping[fx.Node, Any],
    streams: set[fx.Node],
    found: Mapping[fx.Node, HalfStep],
) -> dict[fx.Node, HalfStep]:
    """The same half-steps with their regions found anew in a graph whose modules were settled since."""
    search = _Search(Flow(graph, root, fakes, streams))
    again: dict[fx.Node, Sequence[Reading]] = {}
    for node, half_step in found.items():
        known = half_step.reading
        again[node] = [
            each for each in readings(node, fakes) if (each.law, each.places) == (known.law, known.places)
        ]
    return _in_order(search, search.half_steps(again))


def _chosen(half_steps: Mapping[fx.Node, HalfStep]) -> dict[fx.Node, list[Reading]]:
    return {node: [half_step.reading] for node, half_step in half_steps.items()}


def _in_order(search: _Search, half_steps: dict[fx.Node, HalfStep]) -> dict[fx.Node, HalfStep]:
    """The half-steps without those that would draw random numbers in another order than the code does.

    A function runs where its sum stands. What it calls may stand before that, and other calls in between; and
    what reads its further results waits for it.
    """
    while True:
        late = _late(search, half_steps)
        if late is None:
            return half_steps
        rest = {node: each for node, each in half_steps.items() if each is not late}
        half_steps = search.half_steps(_chosen(rest))


def _late(search: _Search, half_steps: Mapping[fx.Node, HalfStep]) -> HalfStep | None:
    """A half-step by which random numbers are drawn later than others that the code draws after them."""
    order = search.flow.order
    owner = {node: each for each in half_steps.values() for node in each.region}
    # Where a call runs: at this place of the graph, before or after what else runs there; and by whose doing.
    places: dict[fx.Node, tuple[int, int]] = {
        each.addition: (order[each.addition], 0) for each in owner.values()
    }
    causes: dict[fx.Node, HalfStep] = {}
    while True:
        before = dict(places)
        for node in search.flow.graph.nodes:
            if node in owner:
                continue
            half_step = half_steps.get(node)
            reads = node.all_input_nodes if half_step is None else (half_step.target, *half_step.others)
            place = order[node], 0
            for each in reads:
                of = owner.get(each)
                waits = places.get(each, (0, 0)) if of is None else (places[of.addition][0], 1)
                if waits > place:
                    place, causes[node] = waits, causes[each] if of is None else of
            places[node] = place
        if places == before:
            break
    latest: fx.Node | None = None
    for node in search.flow.drawing:
        of = owner.get(node)
        places[node] = place = places[node] if of is None else places[of.addition]
        if latest is not None and place < places[latest]:
            return owner.get(latest) or causes[latest]
        latest = node
    return None


@dataclass
class Flow:
    """What is known of a traced graph's values: what they rest on, and who reads them.

    A value's *base* is what it is a view or a copy of: over wiring from one tensor to one tensor.
    """

    graph: fx.Graph
    root: nn.Module
    fakes: Mapping[fx.Node, Any]
    streams: set[fx.Node]
    kept_outside: set[fx.Node] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.order = {node: index for index, node in enumerate(self.graph.nodes)}
        self.base: dict[fx.Node, fx.Node] = {}
        self.readers: defaultdict[fx.Node, list[fx.Node]] = defaultdict(list)
        self.returned: set[fx.Node] = set()
        self.joined: set[fx.Node] = set()
        for node in self.graph.nodes:
            self._enter(node)

    def _enter(self, node: fx.Node) -> None:
        sources = [each for each in node.all_input_nodes if self.is_tensor(each)]
        wires = (
            bool(sources)
            and node not in self.streams
            and (node.target in COPIES or is_wiring(node, self.root))
        )
        self.base[node] = node
        if node.op == "output":
            self.returned.update(self.base[each] for each in sources)
        elif wires and len(sources) == 1 and self.is_tensor(node):
            self.base[node] = self.base[sources[0]]
        elif wires and len(sources) > 1:
            self.joined.update(self.base[each] for each in sources)
        if node.op == "output" or (self.makes_tensors(node) and self.base[node] is node):
            for each in sources:
                self.readers[self.base[each]].append(node)

    @cached_property
    def guard_calls(self) -> set[fx.Node]:
        """Calls that make no tensor and lead to none: guards, and what they ask for."""
        found: set[fx.Node] = set()
        for node in reversed(self.graph.nodes):
            if (
                node.op in ("call_function", "call_method", "get_attr")
                and not self.makes_tensors(node)
                and all(user in found for user in node.users)
            ):
                found.add(node)
        return found

    @cached_property
    def drawing(self) -> list[fx.Node]:
        """The calls that may draw random numbers, in order."""
        return [node for node in self.graph.nodes if self._may_draw(node)]

    def _may_draw(self, node: fx.Node) -> bool:
        if node.op != "call_module":
            name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
            return node.op in ("call_function", "call_method") and RANDOM.search(name) is not None
        return any(
            not type(each).__module__.startswith(("torch.nn.", "revgraph."))
            or isinstance(each, RANDOM_MODULES)
            or getattr(each, "dropout", 0.0) != 0.0
            for each in self.root.get_submodule(str(node.target)).modules()
        )

    def is_tensor(self, node: fx.Node) -> bool:
        return isinstance(self.fakes.get(node), Tensor)

    def makes_tensors(self, node: fx.Node) -> bool:
        return self.is_tensor(node) or holds_tensors(self.fakes.get(node))

    def is_part(self, node: fx.Node) -> bool:
        """Whether a value is a part of another: of a split, or a slice."""
        return node.target is operator.getitem and self.is_tensor(node)

    def rank(self, reading: Reading, sums: Set[fx.Node]) -> tuple[bool, bool, bool, bool, int, int]:
        """Smaller for the reading to prefer: the target begins a stream, is not read after its sum but is
        before, is a sum itself; then the older target, and few calls."""
        target = self.base[reading.target]
        is_sum = target in sums or target in self.streams
        is_read_once = len(self.readers[target]) < 2
        begins = target.op == "placeholder" or target in self.streams or self.is_part(target)
        lies_on = begins or (is_sum and not is_read_once)
        stays = any(self.order[each] > self.order[reading.node] for each in self.readers[target])
        return not lies_on, stays, is_read_once, not is_sum, self.order[target], len(reading.spine)


def on_streams(
    flow: Flow, possible: Mapping[fx.Node, Sequence[Reading]], counts_forks: bool
) -> dict[fx.Node, list[Reading]]:
    """Those of the readings that gain something: the value undone is needed, and not at hand otherwise.

    A target begins a stream if it is an input or comes out of a coupling module, if it is one of the parts
    that a tensor was split into, or if it is read elsewhere before its sum, as x2 is by the F of x1, or if
    the sum is returned. From there a stream leads on over sums, and from there back to where it began. Where
    several sums have one target, only those count that lead on, and the last on a stream that ends there.
    """
    targets: defaultdict[fx.Node, set[fx.Node]] = defaultdict(set)
    for node, found in possible.items():
        for reading in found:
            targets[flow.base[reading.target]].add(node)

    def leads_on(node: fx.Node) -> bool:
        return node in flow.returned or node in flow.joined or bool(targets.get(node))

    def begins(reading: Reading) -> bool:
        node, target = reading.node, flow.base[reading.target]
        if target.op == "placeholder" or target in flow.streams:
            return True
        others = [each for each in flow.readers[target] if each.op != "output" and each not in reading.spine]
        if flow.is_part(target):
            return bool(others) or leads_on(node)
        is_last = all(flow.order[each] < flow.order[node] for each in others)
        is_end = node in flow.returned and target not in possible and flow.fakes[node].numel() > 1
        return is_last and (bool(others) or is_end)

    def is_fork(reading: Reading) -> bool:
        target = flow.base[reading.target]
        if not counts_forks or len(targets[target]) < 2 or leads_on(reading.node):
            return False
        return target not in possible or reading.node is not max(targets[target], key=flow.order.__getitem__)

    worth: dict[fx.Node, list[Reading]] = {}
    open_readings = [reading for found in possible.values() for reading in found if not is_fork(reading)]
    after: defaultdict[fx.Node, list[Reading]] = defaultdict(list)
    at: defaultdict[fx.Node, list[Reading]] = defaultdict(list)
    for reading in open_readings:
        after[flow.base[reading.target]].append(reading)
        at[reading.node].append(reading)
    taken: set[int] = set()
    pending = [reading for reading in open_readings if begins(reading)]
    while pending:
        reading = pending.pop()
        if id(reading) in taken:
            continue
        taken.add(id(reading))
        pending += after.get(reading.node, ())
        pending += at.get(flow.base[reading.target], ())
    for reading in open_readings:
        if id(reading) in taken:
            worth.setdefault(reading.node, []).append(reading)
    return worth


@dataclass
class _Search:
    """Looks for half-steps that can be undone, given the calls already known as couplings."""

    flow: Flow

    def half_steps(self, possible: Mapping[fx.Node, Sequence[Reading]]) -> dict[fx.Node, HalfStep]:
        """The half-steps among these readings, of each node the first that can be undone."""
        begun = {self.flow.base[each.target] for found in possible.values() for each in found}
        while True:
            found: dict[fx.Node, HalfStep] = {}
            for node in self.flow.graph.nodes:
                for reading in possible.get(node, ()):
                    # A sum that this one goes on from is part of it.
                    lower = {call: found.pop(call) for call in reading.spine if call in found}
                    half_step = self.half_step(reading, found.keys(), begun)
                    if half_step is not None:
                        found[node] = half_step
                        break
                    found.update(lower)
            split = self._split_guards(found.values())
            if not split:
                return found
            self.flow.kept_outside |= split

    def _split_guards(self, found: Iterable[HalfStep]) -> set[fx.Node]:
        """Guards inside one region that read numbers inside another one's: they have to stay outside."""
        owner = {node: each.addition for each in found for node in each.region}
        return {
            node
            for node, addition in owner.items()
            if node in self.flow.guard_calls
            for other in node.all_input_nodes
            if owner.get(other, addition) is not addition
        }

    def half_step(self, reading: Reading, couplings: Set[fx.Node], begun: Set[fx.Node]) -> HalfStep | None:
        """The half-step of a reading; None where its target cannot be had from the rest.

        What streams begin with can be had from the couplings behind.
        """
        target, terms = reading.target, reading.terms
        if any(call in couplings or call in self.flow.streams for call in reading.spine[:-1]):
            return None
        if not all(self.flow.is_tensor(term) for term in terms):
            return None
        region, others, extra_results = self._function(reading, couplings, shares=True)
        if target in region or (extra_results and self._follows((*others, target), extra_results)):
            region, others, extra_results = self._function(reading, couplings, shares=False)
        if target in others or self._depends(others, target, couplings, begun):
            return None
        own = self.region(reading.spine, (target,), couplings)
        if own and set(self.inputs(own)) & set(others):
            return None
        return HalfStep(reading, region, others, extra_results)

    def _function(
        self, reading: Reading, couplings: Set[fx.Node], shares: bool
    ) -> tuple[tuple[fx.Node, ...], tuple[fx.Node, ...], tuple[fx.Node, ...]]:
        """The region of a reading, what it reads from outside, and what it gives to others."""
        region = self.region(reading.spine, reading.terms, couplings, shares)
        inside = {*region, *reading.spine}
        outside = [term for term in reading.terms if term not in inside and term.op != "get_attr"]
        others = tuple(dict.fromkeys((*self.inputs(region), *outside)))
        extra_results = tuple(
            node
            for node in region
            if any(user not in inside and not self._is_free_guard(user) for user in node.users)
        )
        return region, others, extra_results

    def _follows(self, nodes: Sequence[fx.Node], from_: Sequence[fx.Node]) -> bool:
        """Whether one of the nodes is computed from one of the others."""
        earliest = min(self.flow.order[node] for node in from_)
        seen: set[fx.Node] = set()
        pending = list(nodes)
        while pending:
            node = pending.pop()
            if node in from_:
                return True
            if node not in seen and self.flow.order[node] > earliest:
                seen.add(node)
                pending += node.all_input_nodes
        return False

    def region(
        self,
        spine: Sequence[fx.Node],
        terms: Sequence[fx.Node],
        couplings: Set[fx.Node],
        shares: bool = False,
    ) -> tuple[fx.Node, ...]:
        """The nodes that lead to the terms and, through them, to the spine alone, in order.

        Couplings and inputs stop it. Numbers that are asked of values outside stay outside with these, and
        guards on values inside come in. If it `shares`, a module of which a term is one result comes in
        although others read its further results.
        """
        order = self.flow.order
        inside: set[fx.Node] = set()
        spined = set(spine)
        pending = [(-order[term], term) for term in terms]
        heapify(pending)
        queued = set(terms)
        while pending:
            _, node = heappop(pending)
            fixed = node.op in ("placeholder", "get_attr") or node in couplings or node in self.flow.streams
            if fixed or node in spined:
                continue
            users = [user for user in node.users if not self._is_free_guard(user)]
            outside = [
                user for user in users if user not in inside and not (user in spined and node in terms)
            ]
            if outside:
                items = self._further_results(node, outside) if shares else []
                if not items:
                    continue
                inside.update(items)
            inside.add(node)
            for other in node.all_input_nodes:
                if other not in queued:
                    queued.add(other)
                    heappush(pending, (-order[other], other))
        self._leave_outside(inside)
        self._take_guards(inside)
        return tuple(sorted(inside, key=order.__getitem__))

    def _further_results(self, node: fx.Node, users: Sequence[fx.Node]) -> list[fx.Node]:
        """These users of a module call with the items that they take of it; none where one does more."""
        if node.op != "call_module" or len(users) == len(node.users):
            return []
        items: list[fx.Node] = []
        pending = list(users)
        while pending:
            item = pending.pop()
            if item.target is not operator.getitem or not self.flow.makes_tensors(item):
                return []
            items.append(item)
            pending += () if self.flow.is_tensor(item) else item.users
        return items

    def _is_free_guard(self, node: fx.Node) -> bool:
        return node in self.flow.guard_calls and node not in self.flow.kept_outside

    def _leave_outside(self, inside: set[fx.Node]) -> None:
        """Only tensors and plain numbers may enter a region: items stay outside with their containers, and
        numbers with the values that they are asked of."""
        for node in sorted(inside, key=self.flow.order.__getitem__):
            outside = [
                other for other in node.all_input_nodes if other not in inside and other.op != "get_attr"
            ]
            if any(holds_tensors(self.flow.fakes.get(other)) for other in outside) or (
                node.op != "call_module"  # one may return an object with tensors in it
                and not self.flow.makes_tensors(node)
                and any(self.flow.is_tensor(other) for other in outside)
            ):
                inside.discard(node)

    def _take_guards(self, inside: set[fx.Node]) -> None:
        """Bring in the guards on values inside, with what they ask for."""
        pending = [user for node in inside for user in node.users if self._is_free_guard(user)]
        while pending:
            node = pending.pop()
            if node not in inside:
                inside.add(node)
                pending += node.users

    def inputs(self, region: Sequence[fx.Node]) -> tuple[fx.Node, ...]:
        """What a region reads from outside, parameters and buffers left out."""
        inside = set(region)
        return tuple(
            dict.fromkeys(
                other
                for node in region
                for other in node.all_input_nodes
                if other not in inside and other.op != "get_attr"
            )
        )

    def _depends(
        self, nodes: Sequence[fx.Node], target: fx.Node, couplings: Set[fx.Node], begun: Set[fx.Node]
    ) -> bool:
        """Whether a node is computed from the numbers in the target by anything but streams."""
        order = self.flow.order
        earliest, own = order[target], self.flow.base[target]
        seen: set[fx.Node] = set()
        pending = list(nodes)
        while pending:
            node = pending.pop()
            if node is target:
                return True
            if node in seen or node in couplings or node in self.flow.streams or order[node] < earliest:
                continue
            if (base := self.flow.base[node]) in begun and base is not own:
                continue
            seen.add(node)
            if self.flow.makes_tensors(node):  # sizes and flags are remembered
                if target in node.all_input_nodes:
                    return True
                pending += node.all_input_nodes
        return False


def _absorb(
    search: _Search, found: dict[fx.Node, HalfStep], node: fx.Node, scopes: list[ModuleScope]
) -> None:
    """Give up half-steps that lie inside the F of the half-step at `node` and lead nowhere else."""
    flow = search.flow
    while True:
        half_step = found[node]
        inside = {*half_step.region, *half_step.reading.spine}
        near = {other for other in half_step.others if other in found and _serves(flow, other, inside)}
        if not near:
            return
        reading = half_step.reading
        everything = set(search.region(reading.spine, reading.terms, set()))
        begun = {flow.base[each.target] for each in found.values()}
        for given_up in _inner(flow, found, node, everything, near, scopes):
            wider = search.half_step(reading, found.keys() - given_up, begun) if given_up else None
            if wider is not None and set(wider.region) >= given_up:
                break
        else:
            return
        found[node] = wider
        for other in given_up:
            del found[other]


def _serves(flow: Flow, node: fx.Node, inside: set[fx.Node]) -> bool:
    return all(user in inside or user in flow.guard_calls for user in node.users)


def _inner(
    flow: Flow,
    found: Mapping[fx.Node, HalfStep],
    node: fx.Node,
    everything: set[fx.Node],
    near: set[fx.Node],
    scopes: list[ModuleScope],
) -> Iterator[set[fx.Node]]:
    """What to give up among `everything`: all of it, what modules compute by themselves, what is `near`.

    Half-steps that move a stream on in the open stay: such a one reads its target last of all. In a module
    that is an F as a whole it is given up all the same.
    """
    inner = {other for other in everything if other in found}
    open_ones = {other for other in inner if _is_last_reader(flow, found[other])}
    in_modules: set[fx.Node] = set()
    for scope in scopes:
        if not near.isdisjoint(scope.nodes):
            nodes = set(scope.nodes)
            computing = {each for each in nodes if flow.is_tensor(each) and each.op != "get_attr"}
            if node not in nodes and computing <= everything:
                in_modules |= inner & nodes
    yield (inner - open_ones) | in_modules
    yield in_modules
    yield near - open_ones


def _is_last_reader(flow: Flow, half_step: HalfStep) -> bool:
    place = flow.order[half_step.addition]
    return all(flow.order[each] <= place for each in flow.readers[flow.base[half_step.target]])
