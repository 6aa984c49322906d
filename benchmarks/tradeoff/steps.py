"""A training step of any callable, measured as `rg.measure` measures a net's."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.tradeoff.networks import several
from revgraph.storages import StorageTracker

HEAVY = {"mm", "addmm", "bmm", "baddbmm", "convolution"}


@dataclass(frozen=True, slots=True)
class Step:
    """What a step took: bytes as `rg.Measurement` has them, FLOPs, and `products`, evaluated in both passes.

    Products are matrix products and convolutions; the two products that are a convolution's backward pass
    are not among them, and are the same for everybody.
    """

    peak_bytes: int
    held_bytes: int
    flops: int
    products: int


def measure_step(run: Callable[..., Any], module: nn.Module, inputs: tuple[Tensor, ...]) -> Step:
    """The step of `run`, with the mean squares of its outputs as the loss; `module` has its parameters.

    The gradients are returned instead of added up, so that a copy that this makes of a compiled graph's
    gradients is nobody's activation. Buffers end as they were.
    """
    leaves = [parameter for parameter in module.parameters() if parameter.requires_grad]
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        peak, held = _bytes(run, module, leaves, inputs)
        with FlopCounterMode(display=False) as flops, Products() as products:
            torch.autograd.grad(loss(run(*inputs)), leaves)
    finally:
        for buffer, before in buffers:
            buffer.copy_(before)
    return Step(peak, held, flops.get_total_flops(), products.count)


def loss(outputs: Any) -> Tensor:
    losses = [output.pow(2).mean() for output in several(outputs)]
    return losses[0] if len(losses) == 1 else torch.stack(losses).sum()


class Products(TorchDispatchMode):
    """Counts matrix products and convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket.__name__ in HEAVY
        return func(*args, **(kwargs or {}))


def _bytes(
    run: Callable[..., Any], module: nn.Module, leaves: list[Tensor], inputs: tuple[Tensor, ...]
) -> tuple[int, int]:
    """Bytes at the peak and at the turn. Only reference counts free memory meanwhile."""
    gc.collect()
    gc.disable()
    try:
        with StorageTracker([*inputs, *module.parameters(), *module.buffers()]) as tracker:
            outputs = run(*inputs)
            value = loss(outputs)
            turn = tracker.now
            gradients = torch.autograd.grad(value, leaves)
        return tracker.peak(without=gradients), tracker.live(turn)
    finally:
        gc.enable()
