"""Trials: one training step of a net, with the mean squares of its outputs as its loss, without a trace."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from revgraph.errors import GraphError
from revgraph.expressions import leaves
from revgraph.isolation import model_of, untouched
from revgraph.losses import mean_squares
from revgraph.storages import StorageTracker

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Counted:
    """The activation bytes of a step: live storages without parameters, their gradients, buffers and inputs.

    Times are points in the tracker's log; `turn` is where the forward with its loss has ended.
    """

    tracker: StorageTracker
    turn: int
    gradients: list[Tensor]

    def peak(self, since: int = 0, until: int | None = None) -> int:
        """The most bytes live at once between two times."""
        return self.tracker.peak(since, until, self.gradients)

    def held(self) -> int:
        """The bytes live at the turn."""
        return self.tracker.live(self.turn)


def count_step(
    net: nn.Module,
    inputs: tuple[Any, ...],
    extras: dict[str, Any],
    begin: Callable[[StorageTracker], None] = lambda tracker: None,
) -> Counted:
    """One step with its bytes counted; `begin` is given the tracker before it.

    Only reference counts free memory meanwhile.
    """

    def run() -> Counted:
        tracker = StorageTracker([*tensors((inputs, extras)), *net.parameters(), *net.buffers()])
        begin(tracker)
        collecting = gc.isenabled()
        gc.disable()
        try:
            with tracker:
                outputs = net(*inputs, **extras)
                loss = loss_of(outputs)
                turn = tracker.now
                loss.backward()
        finally:
            if collecting:
                gc.enable()
        gradients = [parameter.grad for parameter in net.parameters() if parameter.grad is not None]
        return Counted(tracker, turn, gradients)

    return isolated(net, (inputs, extras), run)


def isolated(net: nn.Module, given: Any, run: Callable[[], T]) -> T:
    """The run's result, with buffers, gradients and random state put back afterwards."""
    leaves_ = [*net.parameters(), *(tensor for tensor in tensors(given) if tensor.is_leaf)]
    gradients = [(leaf, leaf.grad) for leaf in leaves_]
    try:
        for leaf, _ in gradients:
            leaf.grad = None
        with untouched(model_of(net)), torch.enable_grad():
            return run()
    finally:
        for leaf, gradient in gradients:
            leaf.grad = gradient


def loss_of(outputs: Any) -> Tensor:
    """The loss that stands in for the user's own.

    Raises:
        GraphError: no output requires a gradient.
    """
    return mean_squares(differentiable(outputs))


def differentiable(outputs: Any) -> list[Tensor]:
    """The outputs that require a gradient.

    Raises:
        GraphError: there are none.
    """
    found = [output for output in tensors(outputs) if output.requires_grad]
    if not found:
        raise GraphError(
            "no output of the net depends on a parameter or input that requires a gradient, so there is no "
            "backward to measure. Unfreeze a parameter, or give an input that requires a gradient."
        )
    return found


def tensors(tree: Any) -> list[Tensor]:
    """The tensors in nested tuples, lists, dictionaries and dataclasses."""
    found: list[Tensor] = []
    pending = [tree]
    while pending:
        for leaf in leaves(pending.pop(0)):
            if isinstance(leaf, Tensor):
                found.append(leaf)
            elif is_dataclass(leaf) and not isinstance(leaf, type):
                pending.append([getattr(leaf, each.name) for each in fields(leaf)])
    return found
