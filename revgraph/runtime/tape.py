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
from revgraph.runtime.sharding import shards_of
from revgraph.runtime.turns import turn

__all__ = ["Pass", "Replay", "Slot", "Tape"]


class Tape:
    """What one forward leaves for its backward passes; held alive by autograd's graph alone.

    `compares` says whether replays are compared with it by samples.
    """

    __slots__ = (
        "autocast",
        "compares",
        "net",
        "passes",
        "probe",
        "random",
        "script",
        "shards",
        "turn",
        "uses",
    )

    def __init__(
        self, net: nn.Module, inputs: Sequence[Any], script: Script, probe: Probe | None, compares: bool
    ) -> None:
        self.net = net
        self.compares = compares
        self.probe = probe
        self.autocast = autocast_state()
        self.random = RandomStream(inputs)
        self.turn = turn(self.random.devices)
        self.script = script
        self.shards = shards_of(net)
        self.uses = script.uses(frozenset())
        self.passes: weakref.WeakValueDictionary[int, Pass] = weakref.WeakValueDictionary()

    def current_pass(self) -> Pass:
        """The state of the backward pass that is running."""
        task = torch._C._current_graph_task_id()
        if task == -1:  # asked for outside of any backward: nothing to share with
            return self._new_pass(frees_graph=False)
        running = self.passes.get(task)
        if running is None:
            autograd: Any = torch._C._autograd  # pyright: ignore[reportAttributeAccessIssue]
            frees_graph = not autograd._get_current_graph_task_keep_graph()
            running = self.passes[task] = self._new_pass(frees_graph)
            # The callback alone keeps the pass, so that it ends with the task even where that fails.
            torch.autograd.Variable._execution_engine.queue_callback(running.close)
        return running

    def _new_pass(self, frees_graph: bool) -> Pass:
        return Pass(self.uses, frees_graph, self.script.clients, self.script.drops)
