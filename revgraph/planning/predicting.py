"""Predicting a plan's activation bytes and FLOPs from the costs of its nodes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from revgraph.graph import Graph, Node
from revgraph.planning.plans import Decision, Source
from revgraph.planning.sources import needs

# A mean of squares, differentiated, holds this many tensors of the outputs' size at once.
LOSS_TENSORS = 4


@dataclass(frozen=True, slots=True)
class Prediction:
    """Activation bytes at the peak (and where that is) and at the turn; FLOPs over ordinary autograd's."""

    peak_bytes: int
    held_bytes: int
    peak_at: str
    flops_ratio: float


def predict(
    graph: Graph, decisions: Mapping[str, Decision], stored: tuple[str, ...], sources: Mapping[str, Source]
) -> Prediction:
    """What a training step under these decisions holds and computes.

    A walk over the nodes, forward and back, that counts what is alive: values, internals, gradients and
    rebuilt values; the caller holds the outputs throughout. Storages that several values share count once.
    """
    walk = _Walk(graph, decisions, stored, sources)
    walk.forward()
    held = walk.live
    walk.loss()
    walk.backward()
    planned = graph.planned
    plain = sum(node.cost.flops + node.cost.backward_flops for node in planned)
    again = sum(node.cost.flops for node in planned if decisions[node.name] != "keep")
    return Prediction(walk.peak, held, walk.peak_at, 1 + again / plain if plain else 1.0)


class _Walk:
    """A training step's live bytes, node by node."""

    def __init__(
        self,
        graph: Graph,
        decisions: Mapping[str, Decision],
        stored: tuple[str, ...],
        sources: Mapping[str, Source],
    ) -> None:
        self.graph = graph
        self.decisions = decisions
        self.stored = set(stored)
        self.sources = sources
        self.live = 0
        self.peak = 0
        self.peak_at = ""
        self.holders: Counter[str] = Counter()
        self.free = {graph.value[name].storage for name in graph.inputs}
        self.sizes = {value.name: _bytes_of(graph, value.name) for value in graph.values}

    def forward(self) -> None:
        last = {name: node.name for node in self.graph.nodes for name in node.inputs}
        for node in self.graph.nodes:
            for name in node.outputs:
                storage = self.graph.value[name].storage
                self._hold(storage)
                if name in self.stored:
                    self._hold(storage)
            self._note(f"forward of {node.name}", node.cost.peak_bytes)
            if self.decisions.get(node.name) == "keep":
                self.live += node.cost.saved_bytes
                for storage in node.cost.saved_values:
                    self._hold(storage)
            dead = [name for name in dict.fromkeys(node.inputs) if last[name] == node.name]
            dead += [name for name in node.outputs if name not in last]
            if node.kind != "output":
                for name in dead:
                    self._release(self.graph.value[name].storage)

    def loss(self) -> None:
        outputs = sum(self.sizes[name] for name in self.graph.outputs)
        self._note("the loss", LOSS_TENSORS * outputs)

    def backward(self) -> None:
        uses = Counter(name for node in self.graph.planned for name in needs(node, self.decisions[node.name]))
        gradients: set[str] = set()
        rebuilt: set[str] = set()
        for node in reversed(self.graph.nodes):
            where = f"backward of {node.name}"
            decision = self.decisions.get(node.name)
            if decision in ("invert", "recompute"):
                self._replay(node, where, uses, rebuilt)
            self._note(where, node.cost.backward_bytes)
            if decision is not None:
                self.live -= node.cost.saved_bytes
                if decision == "keep":
                    for storage in node.cost.saved_values:
                        self._release(storage)
            self._pass_gradients(node, gradients, where)

    def _replay(self, node: Node, where: str, uses: Counter[str], rebuilt: set[str]) -> None:
        """Needs rebuilt, the function evaluated, its target put back; then what has no further use goes."""
        wanted = needs(node, self.decisions[node.name])
        for name in (*wanted, node.target) if node.target is not None else wanted:
            source = self.sources.get(name)
            if source is not None and source.how in ("inverted", "recomputed") and name not in rebuilt:
                rebuilt.add(name)
                self.live += self.sizes[name]
        self._note(where, node.cost.peak_bytes)
        for name in wanted:
            uses[name] -= 1
            if not uses[name] and name in rebuilt:
                rebuilt.discard(name)
                self.live -= self.sizes[name]
            elif not uses[name] and name in self.stored:
                self._release(self.graph.value[name].storage)
        self.live += node.cost.saved_bytes

    def _pass_gradients(self, node: Node, gradients: set[str], where: str) -> None:
        """Gradients of the outputs end, those of the inputs begin or are added to what readers gave."""
        adding = 0
        for name in node.outputs:
            if name in gradients:
                gradients.discard(name)
                self.live -= self.sizes[name]
        for name in dict.fromkeys(node.inputs):
            if name in self.graph.inputs:
                continue
            if name in gradients:
                adding = max(adding, 2 * self.sizes[name])
            else:
                gradients.add(name)
                self.live += self.sizes[name]
        self._note(where, adding)

    def _hold(self, storage: str) -> None:
        if storage not in self.free:
            self.holders[storage] += 1
            if self.holders[storage] == 1:
                self.live += self.graph.value[storage].nbytes

    def _release(self, storage: str) -> None:
        if storage not in self.free:
            self.holders[storage] -= 1
            if self.holders[storage] == 0:
                self.live -= self.graph.value[storage].nbytes

    def _note(self, where: str, extra: int) -> None:
        if self.live + extra > self.peak:
            self.peak, self.peak_at = self.live + extra, where


def _bytes_of(graph: Graph, name: str) -> int:
    """The bytes of a value's own elements, which a view has fewer of than its storage."""
    value, whole = graph.value[name], graph.value[graph.value[name].storage]
    count = math.prod(whole.shape)
    return min(value.nbytes, value.nbytes * math.prod(value.shape) // count) if count else 0
