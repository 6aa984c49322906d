"""The search for half-steps: for a sum read as `y = x (+) terms`, the function F that computes the terms.

What makes a reading a half-step:

- F is closed. Its *region* is grown from the terms backwards and takes a node in once all readers of the node
  are inside; so nothing of F is read elsewhere, and F can be run again, alone, from what it reads.
- F does not depend on the target, or only over other couplings. Otherwise x could not be had back from y:
  F(x) would be needed to compute it. Over couplings it may, for these are undone on the way back, before x is
  needed.

Guards (`guard` in `proxies.py`, and the sizes and flags that they ask for) make no tensors. They go with the
values that they ask about, into a region or not, and stay outside where two regions would share one.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from torch import fx

from revgraph.program import Law
from revgraph.tracing.find_couplings.flow import Flow
from revgraph.tracing.find_couplings.readings import Reading
from revgraph.tracing.proxies import holds_tensors


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


@dataclass
class HalfStepSearch:
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


def readings_of(half_steps: Mapping[fx.Node, HalfStep]) -> dict[fx.Node, list[Reading]]:
    """The readings to look for these half-steps again."""
    return {node: [half_step.reading] for node, half_step in half_steps.items()}
