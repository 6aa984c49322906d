"""One training step of a candidate, measured: bytes, FLOPs, evaluations, gradients.

The loss is the mean of the output's squares.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.comparison.networks import Network
from benchmarks.comparison.resizing import ResizingTracker
from benchmarks.comparison.running import Candidate


@dataclass(frozen=True, slots=True)
class Step:
    """What one step took.

    `held_bytes` (from forward to backward) and `peak_bytes` are live storages without parameters, buffers,
    gradients of parameters and the input; the output and the loss count. `evaluations` is how often each F
    and G ran, on average; `batch_norm_steps` how often each BatchNorm in them counted this one step.
    """

    flops: int
    held_bytes: int
    peak_bytes: int
    evaluations: float
    batch_norm_steps: float | None


def take_step(candidate: Candidate, x: Tensor) -> Tensor:
    """A forward and a backward pass; gradients are added to what is there."""
    loss = candidate(x).pow(2).mean()
    loss.backward()
    return loss


def clear_gradients(candidate: Candidate, x: Tensor) -> None:
    candidate.zero_grad(set_to_none=True)
    x.grad = None


def measure_step(candidate: Candidate, network: Network) -> Step:
    """The step of `candidate` on the network's example, measured in several passes through it."""
    functions = [candidate.net.get_submodule(path) for path in network.functions]
    norms = [module for function in functions for module in function.modules() if _counts_steps(module)]
    before = _steps_counted(norms)
    with _calls_counted(functions) as calls:
        clear_gradients(candidate, network.example)
        take_step(candidate, network.example)
    counted = _steps_counted(norms) - before
    held, peak = _bytes(candidate, network.example)
    return Step(
        flops=_flops(candidate, network.example),
        held_bytes=held,
        peak_bytes=peak,
        evaluations=len(calls) / len(functions),
        batch_norm_steps=counted / len(norms) if norms else None,
    )


def gradients(candidate: Candidate, x: Tensor) -> dict[str, Tensor]:
    """The gradients of a step by the names of the parameters, and the input's under no name."""
    clear_gradients(candidate, x)
    take_step(candidate, x)
    named = {"": x, **dict(candidate.net.named_parameters())}
    found = {name: leaf.grad for name, leaf in named.items() if leaf.grad is not None}
    clear_gradients(candidate, x)
    return found


def largest_error(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest error of an element over the largest element of its tensor; infinite if not a number."""
    if found.keys() != expected.keys():
        raise ValueError(f"gradients of {sorted(found.keys() ^ expected.keys())} are missing or not expected")
    errors = [_error(found[name].double(), value) for name, value in expected.items()]
    return math.inf if any(math.isnan(error) for error in errors) else max(errors)


def _error(found: Tensor, expected: Tensor) -> float:
    error = (found - expected).abs().max().item()
    return error / expected.abs().max().item() if error else 0.0


def _bytes(candidate: Candidate, x: Tensor) -> tuple[int, int]:
    """Bytes at the turn and at the peak. Only reference counts free memory meanwhile."""
    clear_gradients(candidate, x)
    gc.collect()
    gc.disable()
    try:
        with ResizingTracker([x, *candidate.parameters(), *candidate.buffers()]) as tracker:
            output = candidate(x)  # held, as most training loops do
            loss = output.pow(2).mean()
            turn = tracker.now
            loss.backward()
        own = [parameter.grad for parameter in candidate.parameters() if parameter.grad is not None]
        return tracker.live(turn), tracker.peak(without=own)
    finally:
        gc.enable()


def _flops(candidate: Candidate, x: Tensor) -> int:
    clear_gradients(candidate, x)
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _NoModules()
    with counter:
        take_step(candidate, x)
    return counter.get_total_flops()


class _NoModules:
    """Stands in for the counter's record of module calls, which fails on backward passes inside of others."""

    parents = frozenset({"Global"})

    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None: ...


@contextmanager
def _calls_counted(functions: list[nn.Module]) -> Iterator[list[nn.Module]]:
    """Lists each call of each function's first layer, for some libraries go past the function's own hooks."""
    calls: list[nn.Module] = []
    layers = [
        next(each for each in function.modules() if not list(each.children())) for function in functions
    ]
    hooks = [layer.register_forward_pre_hook(lambda layer, _: calls.append(layer)) for layer in layers]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def _counts_steps(module: nn.Module) -> bool:
    return getattr(module, "num_batches_tracked", None) is not None


def _steps_counted(norms: list[nn.Module]) -> int:
    return sum(int(norm.num_batches_tracked) for norm in norms)
