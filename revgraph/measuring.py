"""Measuring: bytes really held, FLOPs and evaluations of a step; gradients against stored activations."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from revgraph.planning import Plan, human_bytes, keep_all
from revgraph.runtime.module import ReversibleModule
from revgraph.runtime.probe import Probe
from revgraph.trials import count_step, differentiable, isolated, loss_of, tensors


@dataclass(frozen=True, slots=True)
class Measurement:
    """One training step, measured.

    `peak_bytes` and `held_bytes` (from forward to backward) are activation bytes: live storages without
    parameters, buffers, gradients of parameters and the inputs; the outputs and the loss count. `flops` are
    those of forward and backward, `flops_ratio` is over ordinary autograd's on the same step. `calls`
    counts the evaluations of each node.
    """

    peak_bytes: int
    held_bytes: int
    flops: int
    flops_ratio: float
    calls: Mapping[str, int]

    def __str__(self) -> str:
        often = Counter(self.calls.values())
        calls = ", ".join(f"{nodes} nodes x{times}" for times, nodes in sorted(often.items()))
        return (
            f"peak {human_bytes(self.peak_bytes)}, held {human_bytes(self.held_bytes)}, "
            f"{self.flops:,} FLOPs (x{self.flops_ratio:.3f} of ordinary autograd), evaluations: {calls}"
        )


@dataclass(frozen=True, slots=True)
class GradientReport:
    """Gradients under the net's plan against those from stored activations, on one batch.

    `max_relative_error` is the largest error of an element over the largest element of its tensor's
    gradient; `angle_degrees` is between the gradients of all parameters and inputs as one vector. `drift`
    gives, for each value that the backward rebuilt, its largest error over its largest element.
    """

    max_relative_error: float
    angle_degrees: float
    drift: Mapping[str, float]

    def __str__(self) -> str:
        worst = max(self.drift, key=self.drift.__getitem__, default="")
        drift = f"; largest drift {self.drift[worst]:.2g} at {worst}" if worst else "; nothing was rebuilt"
        return (
            f"max relative error {self.max_relative_error:.2g}, angle {self.angle_degrees:.2g} degrees"
            + drift
        )


def measure(net: ReversibleModule, *inputs: Any, **extras: Any) -> Measurement:
    """One training step of the net under its plan, with the mean squares of its outputs as the loss.

    The net, its gradients and the random state are left as they were.

    Raises:
        GraphError: no output depends on a parameter or input that requires a gradient.

    Example:
        >>> import torch, revgraph as rg
        >>> class Block(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.f, self.g = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
        ...     def forward(self, x1, x2):
        ...         y1 = x1 + self.f(x2)
        ...         return y1, x2 + self.g(y1)
        >>> x1, x2 = torch.ones(2, 8, 4).requires_grad_()
        >>> net = rg.trace(Block(), x1, x2)
        >>> net.plan = rg.decide(net.graph, {"f": "invert", "g": "invert"})
        >>> dict(rg.measure(net, x1, x2).calls)
        {'f': 2, 'g': 2}
    """
    peak, held = activation_bytes(net, *inputs, **extras)
    counting = _Counting()
    with net.watched_by(counting):
        flops = isolated(net, (inputs, extras), lambda: _flops(net, inputs, extras))
    with _planned(net, keep_all(net.graph)):
        plain = isolated(net, (inputs, extras), lambda: _flops(net, inputs, extras))
    return Measurement(peak, held, flops, flops / plain if plain else 1.0, dict(counting.calls))


def check(net: ReversibleModule, *inputs: Any, seed: int = 0, **extras: Any) -> GradientReport:
    """The net's gradients against those of the same step with every activation stored.

    Both steps start from the same buffers and random state and weigh the outputs by the same random
    cotangents, drawn with `seed`. The net, its gradients and the random state are left as they were.

    Raises:
        GraphError: no output depends on a parameter or input that requires a gradient.
    """
    rebuilding, storing = _Rebuilding(), _Storing()
    with net.watched_by(rebuilding):
        found = isolated(net, (inputs, extras), lambda: _gradients(net, inputs, extras, seed))
    with _planned(net, keep_all(net.graph)), net.watched_by(storing):
        expected = isolated(net, (inputs, extras), lambda: _gradients(net, inputs, extras, seed))
    drift = _drift(net, rebuilding.values, storing.values)
    pairs = list(zip(found, expected, strict=True))
    error = max((_relative_error(one, two) for one, two in pairs), default=0.0)
    return GradientReport(error, _angle(pairs), drift)


def activation_bytes(net: ReversibleModule, *inputs: Any, **extras: Any) -> tuple[int, int]:
    """The bytes of one training step as `measure` gives them, at the peak and held at the turn, and no
    more."""
    counted = count_step(net, inputs, extras)
    return counted.peak(), counted.held()


class _Counting(Probe):
    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    def evaluated(self, node: str) -> None:
        self.calls[node] += 1


class _Rebuilding(Probe):
    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}

    def rebuilt(self, name: str, value: Tensor) -> None:
        self.values[name] = value


class _Storing(Probe):
    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}

    def made(self, name: str, value: Tensor) -> None:
        self.values[name] = value.detach()


@contextmanager
def _planned(net: ReversibleModule, plan: Plan) -> Iterator[None]:
    before = net.plan
    net.plan = plan
    try:
        yield
    finally:
        net.plan = before


def _flops(net: nn.Module, inputs: Sequence[Any], extras: dict[str, Any]) -> int:
    counter = FlopCounterMode(display=False)
    with counter:
        loss_of(net(*inputs, **extras)).backward()
    return counter.get_total_flops()


def _gradients(
    net: ReversibleModule, inputs: Sequence[Any], extras: dict[str, Any], seed: int
) -> list[Tensor]:
    outputs = differentiable(net(*inputs, **extras))
    generator = torch.Generator().manual_seed(seed)
    cotangents = [
        torch.randn(output.shape, generator=generator).to(output.device, output.dtype) for output in outputs
    ]
    leaves_ = [leaf for leaf in (*net.parameters(), *tensors((inputs, extras))) if leaf.requires_grad]
    found = torch.autograd.grad(outputs, leaves_, cotangents, allow_unused=True)
    return [
        torch.zeros_like(leaf) if gradient is None else gradient
        for leaf, gradient in zip(leaves_, found, strict=True)
    ]


def _drift(
    net: ReversibleModule, rebuilt: Mapping[str, Tensor], stored: Mapping[str, Tensor]
) -> dict[str, float]:
    """The relative error of each rebuilt value; if all of it is zero, relative to what came of it."""
    made = {node.target: node.outputs[0] for node in net.graph.nodes if node.target is not None}
    errors: dict[str, float] = {}
    for name, value in rebuilt.items():
        exact = stored[name]
        if name in made and made[name] in stored and not exact.any():
            value, exact = value + stored[made[name]], stored[made[name]]
        errors[name] = _relative_error(value, exact)
    return errors


def _relative_error(found: Tensor, expected: Tensor) -> float:
    """The largest error over the largest element; infinite where something is not finite in one only."""
    if expected.numel() == 0:
        return 0.0
    error = (found.double() - expected.double()).abs().max().item()
    scale = expected.double().abs().max().item()
    if math.isnan(error):
        return math.inf
    return error / scale if scale else (0.0 if error == 0 else math.inf)


def _angle(pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    """The angle in degrees between two lists of tensors as vectors, exact for small angles."""
    one = torch.cat([found.double().flatten() for found, _ in pairs])
    two = torch.cat([expected.double().flatten() for _, expected in pairs])
    if not (one.isfinite().all() and two.isfinite().all()):
        return math.nan
    if one.norm() == 0 or two.norm() == 0:
        return 0.0 if torch.equal(one, two) else 90.0
    one, two = one / one.norm(), two / two.norm()
    return math.degrees(2 * math.atan2((one - two).norm().item(), (one + two).norm().item()))
