"""Tracking: the bytes really live along the forward pass, to lay over the predicted ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from revgraph.expressions import leaves
from revgraph.isolation import untouched
from revgraph.planning import simulate
from revgraph.runtime.module import ReversibleModule
from revgraph.runtime.probe import Probe
from revgraph.storages import StorageTracker


def track(net: ReversibleModule, *inputs: Any, **extras: Any) -> list[tuple[int, int]]:
    """Activation bytes that are live in one forward pass that records, after each node but the last.

    Pairs of the index of a step of `rg.simulate(net.plan)` and bytes, which
    `rg.draw(net.plan, "memory.svg", show="memory", measured=...)` draws as dots. Counted as in `measure`; the
    net is left as it was.

    Example:
        >>> import torch, revgraph as rg
        >>> half_step = lambda: torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh())
        >>> net = rg.trace(rg.Additive(half_step(), half_step()), *torch.randn(2, 8, 4))
        >>> moments = rg.simulate(net.plan)
        >>> all(moments[step].live_bytes == live for step, live in rg.track(net, *torch.randn(2, 8, 4)))
        True
    """
    given = [leaf for leaf in leaves((inputs, extras)) if isinstance(leaf, Tensor)]
    with untouched(net, faked=False), torch.enable_grad():
        tracker = StorageTracker([*given, *net.parameters(), *net.buffers()])
        looking = _Looking(tracker)
        with tracker, net.watched_by(looking):
            net(*inputs, **extras)
    steps = [index for index, each in enumerate(simulate(net.plan)) if each.step.action == "run"]
    return list(zip(steps, looking.live[1:], strict=False))


class _Looking(Probe):
    """Notes what is live before each node runs."""

    def __init__(self, tracker: StorageTracker) -> None:
        self.tracker = tracker
        self.live: list[int] = []

    def evaluated(self, node: str) -> None:
        self.live.append(self.tracker.live())
