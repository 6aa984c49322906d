"""Finding half-steps in traced arithmetic: additions `x + F(others)` that can be undone."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from revgraph.program import Difference, Law, Sum
from revgraph.tracing.shadows import holds_tensors
from revgraph.tracing.tracer import Scope
from revgraph.tracing.wirings import is_wiring

ADDITIONS = {operator.add, torch.add, "add"}
SUBTRACTIONS = {operator.sub, torch.sub, torch.subtract, "sub", "subtract"}


@dataclass(frozen=True)
class HalfStep:
    """An addition that is a coupling: `addition = target (+) term`.

    `region` are the nodes, in order, that compute the term and serve nothing else: the coupling's F.
    `others` are the values that F reads.
    """

    addition: fx.Node
    target: fx.Node
    term: fx.Node
    law: Law
    region: tuple[fx.Node, ...]
    others: tuple[fx.Node, ...]


def find(
    graph: fx.Graph,
    root: nn.Module,
    shadows: Mapping[fx.Node, Any],
    streams: set[fx.Node],
    scopes: list[Scope],
) -> dict[fx.Node, HalfStep]:
    """The half-steps of a traced graph, by their additions.

    `streams` are values known to lie on a stream: what coupling modules return. An addition inside a
    function that serves as another half-step's F is left inside it.
    """
    search = _Search(graph, root, shadows, streams)
    found: dict[fx.Node, HalfStep] = {}
    for node in graph.nodes:
        if half_step := search.half_step(node, found.keys()):
            found[node] = half_step
    for node in reversed(list(found)):
        if node in found:
            _absorb(search, found, node, scopes)
    return refine(graph, root, shadows, streams, found)


def refine(
    graph: fx.Graph,
    root: nn.Module,
    shadows: Mapping[fx.Node, Any],
    streams: set[fx.Node],
    found: Mapping[fx.Node, HalfStep],
) -> dict[fx.Node, HalfStep]:
    """The same half-steps with their regions found anew, once it is settled which additions are couplings."""
    search = _Search(graph, root, shadows, streams)
    refined: dict[fx.Node, HalfStep] = {}
    for node in found:
        half_step = search.half_step(node, found.keys())
        if half_step is not None:
            refined[node] = half_step
    return refined


@dataclass
class _Search:
    graph: fx.Graph
    root: nn.Module
    shadows: Mapping[fx.Node, Any]
    streams: set[fx.Node]

    def __post_init__(self) -> None:
        self.order = {node: index for index, node in enumerate(self.graph.nodes)}

    def half_step(self, node: fx.Node, couplings: Set[fx.Node]) -> HalfStep | None:
        """The half-step that this node is, given the additions already known as couplings."""
        options = [
            option
            for target, term, law in _readings(node)
            if self._keeps_form(target, node) and (option := self._option(node, target, term, law, couplings))
        ]
        return max(options, key=lambda option: self._preference(option, couplings), default=None)

    def _option(
        self, node: fx.Node, target: fx.Node, term: fx.Node, law: Law, couplings: Set[fx.Node]
    ) -> HalfStep | None:
        if target is term or not isinstance(self.shadows.get(term), Tensor):
            return None
        region = self.region(node, term, couplings)
        others = self.inputs(region or (term,)) if region or term.op == "get_attr" else (term,)
        if target.op == "get_attr" or target in others or self._depends(others, target, couplings):
            return None
        own = self.region(node, target, couplings)
        if own and set(self.inputs(own)) & set(others):
            return None
        return HalfStep(node, target, term, law, region, others)

    def _keeps_form(self, target: fx.Node, node: fx.Node) -> bool:
        before, after = self.shadows.get(target), self.shadows.get(node)
        return (
            isinstance(before, Tensor)
            and isinstance(after, Tensor)
            and before.shape == after.shape
            and before.dtype == after.dtype
            and (before.is_floating_point() or before.is_complex())
        )

    def _preference(self, option: HalfStep, couplings: Set[fx.Node]) -> tuple[bool, int]:
        """The reading whose target lies on a stream, then the one with more work in F."""
        return self._on_stream(option.target, couplings), sum(
            node.op == "call_module" for node in option.region
        )

    def _on_stream(self, node: fx.Node, couplings: Set[fx.Node]) -> bool:
        return (
            node.op == "placeholder"
            or node in couplings
            or node in self.streams
            or is_wiring(node, self.root)
        )

    def region(self, root: fx.Node, term: fx.Node, couplings: Set[fx.Node]) -> tuple[fx.Node, ...]:
        """The nodes that lead to `term` and, through it, to `root` alone; couplings and inputs stop it."""
        inside: set[fx.Node] = set()
        pending = [term]
        while pending:
            node = max(pending, key=self.order.__getitem__)
            pending = [other for other in pending if other is not node]
            fixed = node.op in ("placeholder", "get_attr") or node in couplings or node in self.streams
            if fixed or any(user is not root and user not in inside for user in node.users):
                continue
            if node is not term and root in node.users:
                continue
            inside.add(node)
            pending += [other for other in node.all_input_nodes if other not in pending]
        self._leave_items_to_their_containers(inside)
        return tuple(sorted(inside, key=self.order.__getitem__))

    def _leave_items_to_their_containers(self, inside: set[fx.Node]) -> None:
        """Only tensors and plain numbers may enter a region: an item stays outside with its container."""
        for node in sorted(inside, key=self.order.__getitem__):
            if any(
                other not in inside and holds_tensors(self.shadows.get(other))
                for other in node.all_input_nodes
            ):
                inside.discard(node)

    def inputs(self, region: tuple[fx.Node, ...]) -> tuple[fx.Node, ...]:
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

    def _depends(self, nodes: tuple[fx.Node, ...], target: fx.Node, couplings: Set[fx.Node]) -> bool:
        """Whether a node is computed from the target by anything but couplings."""
        seen: set[fx.Node] = set()
        pending = list(nodes)
        earliest = self.order[target]
        while pending:
            node = pending.pop()
            if node is target:
                return True
            if node in seen or node in couplings or node in self.streams or self.order[node] < earliest:
                continue
            seen.add(node)
            pending += node.all_input_nodes
        return False


def _readings(node: fx.Node) -> Iterator[tuple[fx.Node, fx.Node, Law]]:
    """The ways to read a node as target, term and law."""
    if node.op not in ("call_function", "call_method") or len(node.args) != 2 or set(node.kwargs) - {"alpha"}:
        return
    first, second = node.args
    alpha = node.kwargs.get("alpha", 1)
    if not isinstance(first, fx.Node) or not isinstance(second, fx.Node) or isinstance(alpha, fx.Node):
        return
    scale: Any = alpha
    if node.target in ADDITIONS:
        yield first, second, Sum(scale)
        if alpha == 1:
            yield second, first, Sum()
    elif node.target in SUBTRACTIONS:
        yield first, second, Sum(-scale)
        if alpha == 1:
            yield second, first, Difference()


def _absorb(search: _Search, found: dict[fx.Node, HalfStep], node: fx.Node, scopes: list[Scope]) -> None:
    """Give up half-steps that a module computes inside the F of the half-step at `node`."""
    half_step = found[node]
    if not any(other in found for other in half_step.others):
        return
    others = set(found) - {node}
    everything = set(search.region(node, half_step.term, set()))
    given_up = set()
    for scope in scopes:
        nodes = set(scope.nodes)
        if node not in nodes and nodes & others and _computing(search, nodes) <= everything:
            given_up |= nodes & others
    if not given_up:
        return
    wider = search.half_step(node, others - given_up)
    if wider is not None and wider.target is half_step.target and set(wider.region) >= given_up:
        found[node] = wider
        for other in given_up:
            del found[other]


def _computing(search: _Search, nodes: set[fx.Node]) -> set[fx.Node]:
    return {node for node in nodes if isinstance(search.shadows.get(node), Tensor) and node.op != "get_attr"}
