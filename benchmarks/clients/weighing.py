"""The bytes and FLOPs of one training step of any module: a model's, or a net's under its plan."""

from __future__ import annotations

import gc
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import revgraph as rg
from benchmarks.clients.client import Client, Example
from benchmarks.comparison.resizing import ResizingTracker
from revgraph.measuring import FlopCount
from revgraph.trials import tensors


@dataclass(frozen=True, slots=True)
class Weight:
    """Activation bytes at the peak and between forward and backward, and FLOPs of both passes.

    Bytes are live storages without parameters, buffers, gradients of parameters and inputs; the outputs and
    the loss count.
    """

    peak_bytes: int
    held_bytes: int
    flops: int


def weigh(client: Client, example: Example, seed: int = 0) -> Weight:
    """One step with the client's loss, twice: for the bytes, and for the FLOPs. Also without memory."""
    model, inputs = example.model, tensors((example.args, example.kwargs))
    comparing = model.comparing(False) if isinstance(model, rg.ReversibleModule) else nullcontext()
    fake_mode = getattr(next(model.parameters()), "fake_mode", None) or nullcontext()
    with comparing, fake_mode:
        _clear(model, inputs)
        torch.manual_seed(seed)
        gc.collect()
        gc.disable()  # only reference counts free memory meanwhile
        try:
            with ResizingTracker([*inputs, *model.parameters(), *model.buffers()]) as tracker:
                outputs = model(*example.args, **example.kwargs)
                loss = client.loss(outputs)
                turn = tracker.now
                loss.backward()
            gradients = [each.grad for each in model.parameters() if each.grad is not None]
            peak, held = tracker.peak(without=gradients), tracker.live(turn)
        finally:
            gc.enable()
        del outputs, loss, gradients
        _clear(model, inputs)
        torch.manual_seed(seed)
        with FlopCount() as flops:
            client.loss(model(*example.args, **example.kwargs)).backward()
        _clear(model, inputs)
    return Weight(peak, held, flops.total)


def _clear(model: nn.Module, inputs: list[Tensor]) -> None:
    model.zero_grad(set_to_none=True)
    for each in inputs:
        each.grad = None
