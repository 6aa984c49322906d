"""Chains: a state that passes through one node after another, and the best schedule of its training step.

The dynamic programme is Rotor's (Beaumont et al. 2021, "Optimal checkpointing for heterogeneous chains"),
with inversion: where a node can be undone, its input need not be stored or recomputed, the nodes after it
hand it back. Checkpointing of what is not invertible and inversion of what is are thus one recursion.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

from revgraph.planning.curves import Curve, added, lowest, moved, step


@dataclass(frozen=True, slots=True)
class Way:
    """One way to take a node forward and, later, back.

    `held` bytes stay from the one to the other; `shared` of them are the input state's. To go back it
    `needs` the node's input, its output (then it gives the input), or nothing more than what it holds, and
    computes `flops`. Peaks are the most on top of the state that goes in and whatever else is alive when
    forward or backward begins. `option` names it.
    """

    needs: Literal["nothing", "input", "output"]
    held: int = 0
    flops: int = 0
    forward_peak: int = 0
    backward_peak: int = 0
    option: int = 0
    shared: int = 0
    values: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ChainNode:
    """One node: its state's bytes, the FLOPs to run it again, and the ways to treat it.

    `first` are the ways in the forward pass, `again` those when it is run again in the backward pass, of
    which those that hold nothing also take the node back from a state that is there. `gradient` bytes are
    alive in its backward stage. A plain run takes at most `run_peak` bytes on top of its input in the
    forward pass, `rerun_peak` in the backward pass.
    """

    state: int
    flops: int
    first: tuple[Way, ...]
    again: tuple[Way, ...]
    gradient: int = 0
    run_peak: int = 0
    rerun_peak: int = 0


@dataclass(frozen=True)
class Chain:
    """Nodes in order; the input of the first is always there and takes no bytes.

    `results` bytes are held from the forward of node `results_from` (counted from 1) to the end, `loss` bytes
    at the turn besides.
    """

    nodes: tuple[ChainNode, ...]
    loss: int = 0
    results: int = 0
    results_from: int = 1 << 30

    @cached_property
    def first_flops(self) -> int:
        """What the forward pass computes in any case."""
        return sum(node.flops for node in self.nodes)


ABSENT, OTHERS, OURS = 0, 1, 2


class Key(NamedTuple):
    """The task to turn the gradient after node `j` into the one before node `i`, in the design's letters.

    `p`: the input of i is absent, someone else's, or ours to drop. `r`: the output of j is there at the
    start. `d`: the input of i must be there at the end. With j one past the last node, the forward pass and
    the turn are still to come.
    """

    i: int
    j: int
    p: int
    r: bool = False
    d: bool = False


class Choice(NamedTuple):
    """One way to do a task: `cost` FLOPs, at least `least` bytes, and tasks left with so much less to use."""

    how: Literal["turn", "way", "back", "jump", "drop output", "drop input"]
    cost: int
    least: int
    parts: tuple[tuple[Key, int], ...] = ()
    way: Way | None = None
    to: int = 0


class ChainProgramme:
    """The least cost of every task of a chain within every number of bytes.

    Exact where `points` is None; else each curve is thinned out to that many steps, so that what is found
    is possible but perhaps not the least.
    """

    def __init__(self, chain: Chain, points: int | None = None) -> None:
        self.chain = chain
        self.points = points
        self.last = len(chain.nodes)
        self.curves: dict[Key, Curve] = {}
        self.state = [0, *(node.state for node in chain.nodes)]

    @cached_property
    def whole(self) -> Curve:
        """FLOPs computed again in the training step, by bytes."""
        for length in range(self.last + 2):
            for i in range(1, min(self.last + 1, self.last + 2 - length) + 1):
                self._curve(Key(i, i + length - 1, OURS))
        found = self._curve(Key(1, self.last + 1, OTHERS))
        return moved(found, 0, -self.chain.first_flops, 0)

    def _curve(self, key: Key) -> Curve:
        known = self.curves.get(key)
        if known is None:
            known = lowest([self._value(choice) for choice in self.choices(key)], self.points)
            self.curves[key] = known
        return known

    def _value(self, choice: Choice) -> Curve:
        if not choice.parts:
            return step(choice.least, choice.cost)
        (key, shift), *others = choice.parts
        if others:
            both = added(self._curve(key), shift, self._curve(others[0][0]))
            return moved(both, 0, choice.cost, choice.least)
        return moved(self._curve(key), shift, choice.cost, choice.least)

    def best(self, key: Key, size: int) -> Choice:
        """The choice that does a task at least cost within `size` bytes."""
        found: tuple[int, Choice] | None = None
        for choice in self.choices(key):
            cost = self._cost_within(choice, size)
            if cost is not None and (found is None or cost < found[0]):
                found = cost, choice
        assert found is not None, "the task is not possible within these bytes"
        return found[1]

    def _cost_within(self, choice: Choice, size: int) -> int | None:
        if size < choice.least:
            return None
        cost = choice.cost
        for key, shift in choice.parts:
            part = self._curve(key).at(size - shift)
            if part is None:
                return None
            cost += part
        return cost

    def choices(self, key: Key) -> Iterator[Choice]:
        """Every way to do a task, each with the peak of its own steps."""
        if key.r:
            yield from self._from_output(key)
        elif key.i > min(key.j, self.last):
            yield self._nothing_left(key)
        else:
            if key.j <= self.last and key.i == key.j:
                yield from self._back(key)
            yield from self._ways(key)
            yield from self._jumps(key)

    def _nothing_left(self, key: Key) -> Choice:
        own = self._own(key)
        if key.j > self.last:
            return Choice("turn", 0, own + self.chain.results + self.chain.loss)
        return Choice("turn", 0, own + self._gradient(key.j))

    def _from_output(self, key: Key) -> Iterator[Choice]:
        i, j, p, _, d = key
        if p != ABSENT:
            yield Choice("drop output", 0, 0, ((Key(i, j, p, d=d), 0),))
        if p == OURS:
            yield Choice("drop input", 0, 0, ((Key(i, j, ABSENT, r=True), 0),))
        for way in self.chain.nodes[j - 1].again:
            if way.needs == "output" and not way.held:
                least = self._own(key) + self.state[j] + self._gradient(j) + way.backward_peak
                parts = ((Key(i, j - 1, p, r=True, d=d), 0),) if i < j else ()
                yield Choice("back", way.flops, least, parts, way)

    def _back(self, key: Key) -> Iterator[Choice]:
        for way in self.chain.nodes[key.j - 1].again:
            if way.needs == "input":
                least = self._own(key) + self._gradient(key.j) + way.backward_peak
                yield Choice("back", way.flops, least, (), way)

    def _ways(self, key: Key) -> Iterator[Choice]:
        """The first node goes forward in one of its ways, then comes the rest, then its own backward."""
        i, j, d = key.i, key.j, key.d
        node, own, beside = self.chain.nodes[i - 1], self._own(key), self._beside(i, j)
        for way in node.first if j > self.last else node.again:
            if way.needs == "input":
                continue  # a jump by one
            if way.needs == "nothing" and i == j:
                continue  # a replay, which holds its input to the end of its stage
            stays = own if way.needs == "nothing" and d else 0
            stays = max(0, stays - way.shared)
            back = stays + way.held + self._gradient(i) + way.backward_peak
            back += self.state[i] if way.needs == "output" else 0
            rest = Key(i + 1, j, OURS, d=way.needs == "output")
            least = max(own + beside + way.forward_peak, back)
            yield Choice("way", node.flops + way.flops, least, ((rest, way.held + stays),), way)

    def _jumps(self, key: Key) -> Iterator[Choice]:
        """Plain runs up to node `to`, whose input stays until all after it is done."""
        i, j, p, _, d = key
        own, cost, least = self._own(key), 0, 0
        for k in range(i + 1, self.last + 2 if j > self.last else j + 1):
            node = self.chain.nodes[k - 2]
            cost += node.flops
            before = self.state[k - 2] if k - 1 > i else 0
            run = node.run_peak if j > self.last else node.rerun_peak
            least = max(least, own + before + self._beside(k - 1, j) + run)
            for handed in (False, True):
                if handed and not any(way.needs == "output" and not way.held for way in node.again):
                    continue
                rest, then = Key(k, j, OURS, d=handed), Key(i, k - 1, p, r=handed, d=d)
                yield Choice("jump", cost, least, ((rest, own), (then, 0)), to=k)

    def _own(self, key: Key) -> int:
        return self.state[key.i - 1] if key.p == OURS else 0

    def _gradient(self, j: int) -> int:
        return self.chain.results + self.chain.nodes[j - 1].gradient

    def _beside(self, i: int, j: int) -> int:
        """What else is alive while node i goes forward in the stage of node j."""
        if j > self.last:
            return self.chain.results if i > self.chain.results_from else 0
        return self._gradient(j)
