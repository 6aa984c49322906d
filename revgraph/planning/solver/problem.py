"""The planning problem: a graph's bytes and costs as plain numbers, and what a solution of it says.

Costs are whole numbers of one unit, FLOPs or nanoseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class Option:
    """One way to treat a node; names are the plan's decisions, `results` the operator results kept besides.

    `held_bytes` and the storages of `pinned` are held from the node's forward to its backward. Its replay
    reads the values `needs`, gives the values `gives` and costs `cost`; what it captures takes
    `captured_bytes` from the replay to the end of the node's backward. Peaks are the most that is held at
    once beyond what was alive when forward or backward (with the replay) began.
    """

    name: Literal["keep", "invert", "recompute"]
    results: tuple[int, ...] = ()
    held_bytes: int = 0
    pinned: tuple[int, ...] = ()
    needs: tuple[int, ...] = ()
    gives: tuple[int, ...] = ()
    cost: int = 0
    captured_bytes: int = 0
    forward_peak: int = 0
    backward_peak: int = 0


@dataclass(frozen=True, slots=True)
class Item:
    """A node as numbers: a coupling or boundary with options, or wiring, which has none.

    Wiring gives its inputs back from its outputs, and its outputs again from its inputs, for nothing. Any
    other node can be run again in the backward pass (`rerun_cost`, `rerun_peak`), which gives its outputs
    from its inputs; a rerun that captures leaves `captured_bytes` of internals for the node's own backward,
    which then replays nothing. `gradient_bytes` are alive when the node's backward begins. Items of one
    `look` differ only in the values they read and make.
    """

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: tuple[Option, ...] = ()
    rerun_cost: int = 0
    rerun_peak: int = 0
    captured_bytes: int = 0
    gradient_bytes: int = 0
    look: int = 0


@dataclass(frozen=True, slots=True)
class Problem:
    """Items in program order; values by index with the index of the storage they lie in.

    `storage_bytes` gives each storage's size, 0 for what the caller holds anyway (its inputs). The caller
    holds the storages of `results` from when they are made to the end. `loss_bytes` is what the loss takes
    at the turn, beyond what is held. `plain_cost` is that of a step of ordinary autograd.
    """

    items: tuple[Item, ...]
    storage_of: tuple[int, ...]
    storage_bytes: tuple[int, ...]
    given: tuple[int, ...]
    results: tuple[int, ...]
    loss_bytes: int
    plain_cost: int


@dataclass(frozen=True, slots=True)
class Solution:
    """For each item the index of its option (-1 for wiring), and the values stored at the turn.

    `reruns` are the items whose outputs come back by running them again; of these, `holds` gives the item in
    whose stage a rerun captures (an item that is not in it is rerun without capturing). `drops` gives the
    values that go at the end of an item's stage although a later stage reads them: they are then rebuilt
    once more. A judge tells the true `peak_bytes` and `cost` (of what is computed again), how many runs of
    functions are `repeats`, and how often one runs at most (`most_runs`).
    """

    options: tuple[int, ...]
    stored: frozenset[int]
    reruns: frozenset[int] = frozenset()
    holds: Mapping[int, int] = field(default_factory=dict)
    drops: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    peak_bytes: int = 0
    cost: int = 0
    repeats: int = 0
    most_runs: int = 0

    @property
    def rank(self) -> tuple[int, int]:
        """What is to be small: the cost, and at equal cost the functions that run again."""
        return self.cost, self.repeats

    def decisions(self) -> Hashable:
        """What the solution decides, and nothing that is known of it."""
        return (
            self.options,
            self.stored,
            self.reruns,
            frozenset(self.holds.items()),
            frozenset(self.drops.items()),
        )


Judging = Callable[[Solution], Solution | None]
"""The solution as it is carried out, with its true peak and cost; None where it cannot be."""
