"""Deriving: how a backward pass gets back the values that replays read, and when it lets them go."""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Set
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from revgraph.errors import ReplayError
from revgraph.runtime.script import Step

if TYPE_CHECKING:
    from revgraph.runtime.tape import Tape


class Slot:
    """Where a value of one forward is found in backward: stored here, or made by `maker`.

    `is_exact` says that what is stored is what the forward made, and was not rebuilt since.
    """

    __slots__ = ("__weakref__", "is_exact", "maker", "name", "released", "value", "version")

    def __init__(self, name: str) -> None:
        self.name = name
        self.value: Tensor | None = None
        self.version = 0
        self.maker: Replay | None = None
        self.released = False
        self.is_exact = True

    def store(self, value: Tensor) -> None:
        self.value = value.detach()
        self.version = value._version

    def release(self) -> None:
        """Let a stored value go: the graph of all that reads it is being freed."""
        self.value = None
        self.released = True

    def stored(self) -> Tensor:
        assert self.value is not None
        if self.value._version != self.version:
            raise ReplayError(
                f"value {self.name!r}, stored for the backward pass, was edited in place after the forward "
                f"(version {self.value._version}, stored at {self.version}). Edit a clone of it instead, or "
                "edit it after backward."
            )
        return self.value


class Replay(ABC):
    """What can be done again in backward, and `how` it is the source of values.

    `reads` and `makes` are names; `needs` are the slots it reads, `gives` those it may fill.
    """

    __slots__ = ("gives", "how", "is_ready", "makes", "needs", "reads", "step", "tape")

    how: Literal["inverted", "rewired", "wired", "recomputed"]
    step: Step
    tape: Tape
    is_ready: bool
    reads: tuple[str, ...]
    makes: tuple[str, ...]
    needs: tuple[Slot, ...]
    gives: dict[str, weakref.ref[Slot]]

    @abstractmethod
    def run(self, on: Pass, wanted: Set[str]) -> dict[str, Tensor]:
        """Do it again, and return the wanted ones of the values that it gives, by name."""


class Pass:
    """One backward pass: values rebuilt so far, how often each is yet to be read, and captured tensors.

    Each node's own replay reads its needs once, and each wiring what it is run from; reruns come on top, and
    before the node's own replay. A rebuilt value goes with its last reader. A pass that keeps the graph
    leaves the stored values. One that frees it lets them go likewise, and what it has rebuilt but not used
    up takes their place.

    `inexact` are the rebuilt values that may differ from the forward's by rounding errors: the targets of
    inverted couplings, and what is derived from them.

    `clients` are, for each value that may be read more often than it is counted, the values derived from
    it. `drops` are the values to drop after stages, by step and latest first.
    """

    __slots__ = (
        "__weakref__",
        "captured",
        "clients",
        "counted",
        "drops",
        "frees_graph",
        "inexact",
        "passed",
        "slots",
        "stage",
        "uses",
        "values",
    )

    def __init__(
        self,
        uses: Mapping[str, int],
        frees_graph: bool,
        clients: Mapping[str, tuple[str, ...]] | None = None,
        drops: tuple[tuple[int, frozenset[str]], ...] = (),
    ) -> None:
        self.values: dict[str, Tensor] = {}
        self.slots: dict[str, weakref.ref[Slot]] = {}
        self.uses = dict(uses)
        self.inexact: set[str] = set()
        self.counted: set[tuple[int, str]] = set()
        self.captured: dict[int, list[Tensor | None]] = {}
        self.frees_graph = frees_graph
        self.clients = clients or {}
        self.drops = drops
        self.passed = 0
        self.stage = ""

    def has(self, slot: Slot) -> bool:
        return slot.value is not None or slot.name in self.values

    def get(self, slot: Slot) -> Tensor:
        return slot.stored() if slot.value is not None else self.values[slot.name]

    def is_exact(self, slot: Slot) -> bool:
        """Whether a value is the forward's to the bit."""
        return slot.is_exact if slot.value is not None else slot.name not in self.inexact

    def count(self, index: int, how: str, names: Iterable[str]) -> None:
        """Note that step `index` has read these values; only its first time counts."""
        if (index, how) not in self.counted:
            self.counted.add((index, how))
            for name in names:
                self.uses[name] = self.uses.get(name, 0) - 1

    def replay(self, replay: Replay) -> None:
        """Run a node's own replay: its stage, in which all that it reads is derived first."""
        step = replay.step
        self._drop_passed(step.index)
        self.stage = step.node
        order = _order(self, replay)
        last_read = {slot.name: place for place, each in enumerate(order) for slot in each.needs}
        derived: set[str] = set()
        for place, each in enumerate(order):
            wanted = {
                name
                for name, slot in each.gives.items()
                if last_read.get(name, -1) > place or (name not in step.drops and self.uses.get(name, 0) > 0)
                if not self._is_there(slot)
            }
            if wanted:
                exact = each.how != "inverted" and all([self.is_exact(slot) for slot in each.needs])
                (self.inexact.difference_update if exact else self.inexact.update)(wanted)
            self.values.update(each.run(self, wanted))
            self.slots.update((name, each.gives[name]) for name in wanted)
            derived |= wanted
            for slot in each.needs:
                if last_read[slot.name] == place:
                    if self.uses.get(slot.name, 0) <= 0:
                        self._let_go(slot)
                    elif slot.name in derived and slot.name in step.drops:
                        self.values.pop(slot.name, None)
        for name in step.drops:
            self.values.pop(name, None)

    def close(self) -> None:
        """At the end of a pass that freed the graph, what is left takes the place of what was released."""
        if self.frees_graph:
            for name, value in self.values.items():
                slot = self.slots[name]()
                if slot is not None and slot.value is None:
                    slot.store(value)
                    slot.is_exact = name not in self.inexact

    def _is_there(self, reference: weakref.ref[Slot]) -> bool:
        """Whether a value is at hand, or is beyond the reach of any replay."""
        slot = reference()
        return slot is None or self.has(slot)

    def _drop_passed(self, index: int) -> None:
        """Drop what was to go in stages that had nothing to replay."""
        while self.passed < len(self.drops) and self.drops[self.passed][0] > index:
            for name in self.drops[self.passed][1]:
                self.values.pop(name, None)
            self.passed += 1

    def _let_go(self, slot: Slot) -> None:
        """Forget a value that no counted reader is left for, and where it was stored release it."""
        self.values.pop(slot.name, None)
        if self.frees_graph:
            if slot.name not in self.clients:
                if slot.value is not None:
                    slot.release()
            else:
                for each in _stored_below(slot):
                    if self.uses.get(each.name, 0) <= 0 and not self._is_derived_from(each.name):
                        each.release()

    def _is_derived_from(self, name: str) -> bool:
        """Whether a value that is yet to be read may have to be derived from this one, however often."""
        seen = {name}
        pending = [name]
        while pending:
            for made in self.clients[pending.pop()]:
                if made in seen:
                    continue
                seen.add(made)
                lasts = made not in self.clients and made in self.values
                if self.uses.get(made, 0) > 0 and not lasts:
                    return True
                if made in self.clients:
                    pending.append(made)
        return False


def _order(on: Pass, replay: Replay) -> list[Replay]:
    """What to run so that the replay finds all it needs, itself at the end; a list instead of recursion."""
    order: list[Replay] = []
    placed: set[int] = set()
    pending = [replay]
    while pending:
        each = pending[-1]
        makers = [_maker(slot) for slot in each.needs if not on.has(slot)]
        missing = [maker for maker in makers if id(maker) not in placed]
        if missing:
            pending += missing
            continue
        pending.pop()
        if id(each) not in placed:
            placed.add(id(each))
            order.append(each)
    return order


def _maker(slot: Slot) -> Replay:
    if slot.maker is not None:
        return slot.maker
    if slot.released:
        raise ReplayError(
            f"value {slot.name!r} went with the graph that an earlier backward freed. Call that backward "
            "with retain_graph=True, as several backward passes through one graph need."
        )
    raise ReplayError(f"value {slot.name!r} is neither stored nor can it be rebuilt")


def _stored_below(slot: Slot) -> list[Slot]:
    """The stored slots that a slot's value is derived from, or itself."""
    found: list[Slot] = []
    seen: set[str] = set()
    pending = [slot]
    while pending:
        each = pending.pop()
        if each.name not in seen:
            seen.add(each.name)
            if each.value is not None:
                found.append(each)
            elif each.maker is not None:
                pending += each.maker.needs
    return found
