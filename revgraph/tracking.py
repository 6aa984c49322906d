"""Tracking: the bytes really live along a training step, to lay over the predicted ones."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from revgraph.engine.module import ReversibleModule, check_net
from revgraph.engine.observer import Observer
from revgraph.errors import PlanError
from revgraph.planning import EVALUATING, simulate
from revgraph.storages import StorageTracker
from revgraph.trials import count_step


def track(net: ReversibleModule, *inputs: Any, **extras: Any) -> list[tuple[int, int]]:
    """The most activation bytes that are live along a training step, from each evaluation to the next.

    A time begins where a node is evaluated, forward or again in the backward, and lasts until the next one
    is; the loss, and the backward of what needs no evaluation, fall into the time before them. Each gives a
    pair: the index of that of its steps in `rg.simulate(net.plan)` that is predicted to take the most, and
    bytes. `rg.draw(net.plan, "memory.svg", show="memory", measured=...)` draws them as dots. Loss and bytes
    are as in `measure`, and the net is left as it was.

    Raises:
        TraceError: `net` is no net of `rg.trace` or `rg.load`.
        GraphError: no output depends on a parameter or input that requires a gradient.
        PlanError: the step did not go as the plan foresees.

    Example:
        >>> import torch, revgraph as rg
        >>> half_step = lambda: torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh())
        >>> net = rg.trace(rg.Additive(half_step(), half_step()), *torch.randn(2, 8, 4))
        >>> moments = rg.simulate(net.plan)
        >>> all(moments[step].peak_bytes == live for step, live in rg.track(net, *torch.randn(2, 8, 4)))
        True
    """
    check_net(net, "rg.track")
    net.prepare(*inputs, **extras)
    looking = _Looking()
    with net.watched_by(looking):
        counted = count_step(net, inputs, extras, looking.begin)
    moments = simulate(net.plan)
    starts = [index for index, each in enumerate(moments) if each.step.action in EVALUATING]
    if looking.nodes != [moments[start].step.node for start in starts]:
        raise PlanError(
            "the step evaluated other nodes than the plan foresees, so what was measured belongs to none of "
            "its steps. Parameters or inputs require gradients that did not when the net was made, or the "
            "other way round: make the net again."
        )
    steps = (range(*pair) for pair in pairwise([*starts, len(moments)]))
    times = zip(looking.times, [*looking.times[1:], None], strict=True)
    return [
        (max(each, key=lambda index: moments[index].peak_bytes), counted.peak(since, until))
        for each, (since, until) in zip(steps, times, strict=True)
    ]


class _Looking(Observer):
    """Notes which nodes are evaluated, and when. Comparisons would hold on to tensors for a moment longer."""

    compares = False

    def begin(self, tracker: StorageTracker) -> None:
        self.tracker = tracker
        self.nodes: list[str] = []
        self.times: list[int] = []

    def evaluated(self, node: str) -> None:
        self.nodes.append(node)
        self.times.append(self.tracker.now)
