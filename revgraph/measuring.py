"""Measuring: bytes really held, FLOPs and evaluations of a step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from revgraph.displays import ShownAsTable
from revgraph.engine.module import ReversibleModule, check_net
from revgraph.engine.observer import Observer
from revgraph.planning import human_bytes, keep_all
from revgraph.trials import count_step, isolated, loss_of


@dataclass(frozen=True, slots=True)
class Measurement(ShownAsTable):
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


def measure(net: ReversibleModule, *inputs: Any, **extras: Any) -> Measurement:
    """One training step of the net under its plan, with the mean squares of its outputs as the loss.

    The net, its gradients and the random state are left as they were.

    Raises:
        TraceError: `net` is no net of `rg.trace` or `rg.load`.
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
    check_net(net, "rg.measure")
    peak, held = activation_bytes(net, *inputs, **extras)
    counting = _Counting()
    with net.watched_by(counting):
        flops = isolated(net, (inputs, extras), lambda: _flops(net, inputs, extras))
    with net.planned(keep_all(net.graph)):
        plain = isolated(net, (inputs, extras), lambda: _flops(net, inputs, extras))
    return Measurement(peak, held, flops, flops / plain if plain else 1.0, dict(counting.calls))


def activation_bytes(net: ReversibleModule, *inputs: Any, **extras: Any) -> tuple[int, int]:
    """The bytes of one training step as `measure` gives them, at the peak and held at the turn, and no
    more."""
    if not net.passes_dispatcher:
        from revgraph.compiling.memory import allocated_bytes  # the profiler takes a while to import

        return allocated_bytes(net, *inputs, **extras)
    if not net.steps_as_watched:  # compiled by a step before, and not while bytes are counted
        isolated(net, (inputs, extras), lambda: loss_of(net(*inputs, **extras)).backward())
    net.prepare(*inputs, **extras)
    with net.comparing(False):  # comparisons hold on to a few tensors for a moment longer
        counted = count_step(net, inputs, extras)
    return counted.peak(), counted.held()


class _Counting(Observer):
    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    def evaluated(self, node: str) -> None:
        self.calls[node] += 1


class FlopCount(TorchDispatchMode):
    """Counts FLOPs by torch's formulas, in `total`.

    Not `FlopCounterMode`: its hooks on modules hold what nobody uses of their outputs, so that the engine
    replays for a backward that never comes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.total += count(*args, **(kwargs or {}), out_val=result)
        return result


def _flops(net: nn.Module, inputs: Sequence[Any], extras: dict[str, Any]) -> int:
    counter = FlopCount()
    with counter:
        loss_of(net(*inputs, **extras)).backward()
    return counter.total
