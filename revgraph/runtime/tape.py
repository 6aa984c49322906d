"""The tape: the values that a forward stores for its backward passes, and what each pass rebuilds."""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from revgraph.errors import ReplayError
from revgraph.runtime.context import RandomStream, autocast_state
from revgraph.runtime.probe import Probe


class Slot:
    """Where a value of one forward is found in backward: stored here, or made by `maker`."""

    __slots__ = ("__weakref__", "maker", "name", "released", "value", "version")

    def __init__(self, name: str) -> None:
        self.name = name
        self.value: Tensor | None = None
        self.version = 0
        self.maker: Replay | None = None
        self.released = False

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
    """What can be done again in backward: `needs` are the slots it reads; `made` those it may give."""

    __slots__ = ("is_ready", "made", "needs")

    is_ready: bool
    needs: tuple[Slot, ...]
    made: dict[str, weakref.ref[Slot]]

    @abstractmethod
    def run(self, on: Pass) -> None:
        """Do it again, and put what it makes on the pass."""


class Tape:
    """What one forward leaves for its backward passes; held alive by autograd's graph alone."""

    __slots__ = ("autocast", "net", "passes", "probe", "random", "uses")

    def __init__(self, net: nn.Module, inputs: Sequence[Any], probe: Probe | None) -> None:
        self.net = net
        self.probe = probe
        self.autocast = autocast_state()
        self.random = RandomStream(inputs)
        self.uses: dict[str, int] = {}
        self.passes: weakref.WeakValueDictionary[int, Pass] = weakref.WeakValueDictionary()

    def current_pass(self) -> Pass:
        """The state of the backward pass that is running."""
        task = torch._C._current_graph_task_id()
        if task == -1:  # asked for outside of any backward: nothing to share with
            return Pass(self.uses, frees_graph=False)
        running = self.passes.get(task)
        if running is None:
            autograd: Any = torch._C._autograd  # pyright: ignore[reportAttributeAccessIssue]
            frees_graph = not autograd._get_current_graph_task_keep_graph()
            running = self.passes[task] = Pass(self.uses, frees_graph)
            # The callback alone keeps the pass, so that it ends with the task even where that fails.
            torch.autograd.Variable._execution_engine.queue_callback(running.close)
        return running


class Pass:
    """One backward pass: values rebuilt so far, how often each is yet to be read, and captured tensors.

    A pass that keeps the graph starts from the stored values and leaves them. One that frees the graph lets
    stored values go with their last reader, and what it has rebuilt but not used up takes their place.
    """

    __slots__ = ("__weakref__", "captured", "frees_graph", "slots", "uses", "values", "wanted")

    def __init__(self, uses: dict[str, int], frees_graph: bool) -> None:
        self.values: dict[str, Tensor] = {}
        self.slots: dict[str, weakref.ref[Slot]] = {}
        self.uses = dict(uses)
        self.captured: dict[int, list[Tensor | None]] = {}
        self.wanted = ""
        self.frees_graph = frees_graph

    def has(self, slot: Slot) -> bool:
        return slot.value is not None or slot.name in self.values

    def get(self, slot: Slot) -> Tensor:
        return slot.stored() if slot.value is not None else self.values[slot.name]

    def put(self, name: str, value: Tensor, replay: Replay) -> None:
        if self.uses.get(name, 0) > 0 or name == self.wanted:
            self.values[name] = value
            if name in replay.made:
                self.slots[name] = replay.made[name]

    def replay(self, replay: Replay) -> None:
        """Run a replay once all it needs is there; rebuilding that takes a list, not recursion."""
        pending = list(replay.needs)
        while pending:
            slot = pending[-1]
            if self.has(slot):
                pending.pop()
                continue
            if slot.maker is None:
                raise _lost(slot)
            missing = [need for need in slot.maker.needs if not self.has(need)]
            if missing:
                pending += missing
                continue
            self._run(slot.maker, slot.name)
        self._run(replay, "")

    def close(self) -> None:
        """At the end of a pass that freed the graph, what is left takes the place of what was released."""
        if self.frees_graph:
            for name, value in self.values.items():
                slot = self.slots[name]() if name in self.slots else None
                if slot is not None and slot.value is None:
                    slot.store(value)

    def _run(self, replay: Replay, wanted: str) -> None:
        self.wanted = wanted
        replay.run(self)
        for slot in replay.needs:
            left = self.uses.get(slot.name, 0) - 1
            self.uses[slot.name] = left
            if left <= 0:
                self.values.pop(slot.name, None)
                if self.frees_graph and slot.value is not None:
                    slot.release()


def _lost(slot: Slot) -> ReplayError:
    if slot.released:
        return ReplayError(
            f"value {slot.name!r} went with the graph that an earlier backward freed. Call that backward "
            "with retain_graph=True, as several backward passes through one graph need."
        )
    return ReplayError(f"value {slot.name!r} is neither stored nor can it be rebuilt")
