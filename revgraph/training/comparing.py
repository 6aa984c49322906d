"""One net, one batch, two plans: activations stored and activations inverted, measured side by side."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from revgraph.checking import check
from revgraph.engine.module import ReversibleModule
from revgraph.measuring import measure
from revgraph.planning import Plan, keep_all


@dataclass(frozen=True, slots=True)
class Side:
    """A training step under one plan; bytes are activation bytes, predicted by the plan and measured.

    `flops` are those of forward and backward; `seconds` are the median over some steps.
    """

    plan: Plan
    held_bytes: int
    peak_bytes: int
    flops: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Plain autograd beside the net's own plan, and the angle between their gradients in degrees."""

    stored: Side
    inverted: Side
    angle: float
    batch: int


def compare(
    net: ReversibleModule, images: Tensor, *, repeats: int = 5, progress: Callable[[str], None] | None = None
) -> Comparison:
    """Both ways through a training step of `net` on `images`, [N, ...], on a copy: the net stays as it is.

    Steps are timed in turn, stored and inverted, so that a machine that gets slower or faster meanwhile slows
    or speeds both. `progress` is told what is being measured.
    """
    tell = progress or (lambda text: None)
    copied = copy.deepcopy(net).train()
    plans = {"stored": keep_all(net.graph), "inverted": net.plan}
    times: dict[str, list[float]] = {name: [] for name in plans}
    for repeat in range(repeats + 1):
        for name, plan in plans.items():
            tell(f"timing a step, activations {name} ({repeat + 1} of {repeats + 1})")
            copied.plan = plan
            times[name].append(_seconds(copied, images))
    sides = {}
    for name, plan in plans.items():
        tell(f"measuring bytes and FLOPs, activations {name}")
        copied.plan = plan
        found = measure(copied, images)
        sides[name] = Side(
            plan=plan,
            held_bytes=found.held_bytes,
            peak_bytes=found.peak_bytes,
            flops=found.flops,
            # The first step allocates what later ones reuse.
            seconds=statistics.median(times[name][1:]),
        )
    tell("comparing the gradients")
    return Comparison(sides["stored"], sides["inverted"], check(copied, images).angle_degrees, len(images))


def _seconds(net: ReversibleModule, images: Tensor) -> float:
    began = time.perf_counter()
    net(images).sum().backward()
    seconds = time.perf_counter() - began
    net.zero_grad(set_to_none=True)
    return seconds
