"""The tape: what one forward of a net leaves for its backward passes."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from revgraph.runtime.context import RandomStream, autocast_state
from revgraph.runtime.deriving import Pass, Replay, Slot
from revgraph.runtime.probe import Probe
from revgraph.runtime.script import Script

__all__ = ["Pass", "Replay", "Slot", "Tape"]


class Tape:
    """What one forward leaves for its backward passes; held alive by autograd's graph alone."""

<<<<<<< dev/revgraph/runtime/tape.py
    __slots__ = ("autocast", "net", "passes", "probe", "random", "script", "uses")
=======
    __slots__ = ("autocast", "net", "passes", "probe", "random", "stored", "uses")
>>>>>>> next/revgraph/runtime/tape.py

    def __init__(self, net: nn.Module, inputs: Sequence[Any], script: Script, probe: Probe | None) -> None:
        self.net = net
        self.probe = probe
        self.autocast = autocast_state()
        self.random = RandomStream(inputs)
<<<<<<< dev/revgraph/runtime/tape.py
        self.script = script
        self.uses = script.uses(frozenset())
=======
        self.stored: frozenset[str] = frozenset()
        self.uses: dict[str, int] = {}
>>>>>>> next/revgraph/runtime/tape.py
        self.passes: weakref.WeakValueDictionary[int, Pass] = weakref.WeakValueDictionary()

    def current_pass(self) -> Pass:
        """The state of the backward pass that is running."""
        task = torch._C._current_graph_task_id()
        if task == -1:  # asked for outside of any backward: nothing to share with
<<<<<<< dev/revgraph/runtime/tape.py
            return self._new_pass(frees_graph=False)
=======
            return Pass(self.uses, frees_graph=False, stored=self.stored)
>>>>>>> next/revgraph/runtime/tape.py
        running = self.passes.get(task)
        if running is None:
            autograd: Any = torch._C._autograd  # pyright: ignore[reportAttributeAccessIssue]
            frees_graph = not autograd._get_current_graph_task_keep_graph()
<<<<<<< dev/revgraph/runtime/tape.py
            running = self.passes[task] = self._new_pass(frees_graph)
=======
            running = self.passes[task] = Pass(self.uses, frees_graph, self.stored)
>>>>>>> next/revgraph/runtime/tape.py
            # The callback alone keeps the pass, so that it ends with the task even where that fails.
            torch.autograd.Variable._execution_engine.queue_callback(running.close)
        return running

<<<<<<< dev/revgraph/runtime/tape.py
    def _new_pass(self, frees_graph: bool) -> Pass:
        return Pass(self.uses, frees_graph, self.script.clients, self.script.drops)
=======

class Pass:
    """One backward pass: values rebuilt so far, how often each is yet to be read, and captured tensors.

    A pass that keeps the graph starts from the stored values and leaves them. One that frees the graph lets
    stored values go with their last reader, and what it has rebuilt but not used up takes their place.
    """

    __slots__ = ("__weakref__", "captured", "frees_graph", "slots", "stored", "uses", "values", "wanted")

    def __init__(self, uses: dict[str, int], frees_graph: bool, stored: frozenset[str] = frozenset()) -> None:
        self.stored = stored
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
        if name not in self.stored and (self.uses.get(name, 0) > 0 or name == self.wanted):
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
>>>>>>> next/revgraph/runtime/tape.py
