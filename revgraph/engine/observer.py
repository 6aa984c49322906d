"""Observers: what a net tells whoever watches one of its steps; and the watch for drift while training.

Drift does its harm in two ways. It grows until values are wrong, which `rebuilt` shows. And long before
that it may decide: where a function chooses (an argmax, a comparison, the largest of a window), rounding
errors settle a tie; where it has a kink, they move an exact zero off it. Values stay as good as they were,
and the gradient is that of another function. `Choices` compares what autograd saved of such choices:
integers and truth values, which are choices by their nature, and signs in front of a kink at zero. What has
a sign and no kink (the input of a linear layer, where a padded zero may well come back as 1e-9) is let be,
so it has to be known which operator a saved tensor is for: the one whose backward takes it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from revgraph.engine._torch import current_operator, unseen
from revgraph.errors import DriftWarning, PlanError, cures_of_drift, warn
from revgraph.planning.plans import Plan

if TYPE_CHECKING:
    from revgraph.engine.tape import Tape

# Values that are watched, elements of each, and elements of each saved tensor.
VALUES, ELEMENTS, CHOICES = 8, 64, 1024
CHOSEN = {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
SIGNED = {torch.float64, torch.float32, torch.bfloat16, torch.float16}
# Operators with a kink at zeros of what they save, by autograd's names; some only where a bound is zero.
KINKS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        (
            "Relu",
            "LeakyRelu",
            "Elu",
            "Celu",
            "PreluKernel",
            "Abs",
            "Sqrt",
            "Maximum",
            "Minimum",
            "Fmax",
            "Fmin",
        ),
        (),
    ),
    "Threshold": ("_saved_threshold",),
    "Clamp": ("_saved_min", "_saved_max"),
    "ClampMin": ("_saved_min",),
    "ClampMax": ("_saved_max",),
    "Hardtanh": ("_saved_min_val", "_saved_max_val"),
}


class Observer:
    """Watches a net (`with net.watched_by(observer)`); override what is of interest.

    `compares` says whether replays are compared with the forwards that it watches.
    """

    compares = True

    def evaluated(self, node: str) -> None:
        """A node's expression is about to run, in forward or in a replay."""

    def made(self, name: str, value: Tensor) -> None:
        """The forward made a value."""

    def left(self, node: str, tape: Tape) -> None:
        """A node's forward noted on this tape what its replay will need."""

    def saved(self, node: str, index: int, tensor: Tensor) -> None:
        """Autograd saved a tensor in the forward of a node that is not kept."""

    def rebuilt(self, name: str, value: Tensor) -> None:
        """The backward rebuilt a value."""

    def captured(self, node: str, index: int, tensor: Tensor) -> None:
        """Autograd saved that tensor again, in the node's replay."""

    def handed(self, node: str, index: int, tensor: Tensor) -> None:
        """The backward of an operator, which runs now, took that tensor."""

    def replayed(self, node: str) -> None:
        """A node was evaluated again in the backward; all but what it captured and rebuilt is gone."""


class Choices(Observer):
    """Compares the choices of a replay with its forward's, in up to so many elements of each saved tensor."""

    def __init__(self, elements: int | None) -> None:
        self._elements = elements
        self._before: dict[tuple[str, int], Tensor] = {}

    def flipped(self, node: str, count: int, compared: int) -> None:
        """So many of the elements that were compared are on another side than in the forward."""
        raise NotImplementedError

    def saved(self, node: str, index: int, tensor: Tensor) -> None:
        sides = _sides(tensor, self._elements)
        if sides is not None:
            self._before[node, index] = sides

    def handed(self, node: str, index: int, tensor: Tensor) -> None:
        before = self._before.pop((node, index), None)
        if before is None or (tensor.dtype in SIGNED and not _has_kink_at_zero(current_operator())):
            return
        now = _sides(tensor, self._elements)
        assert now is not None
        with unseen():
            count = int((now != before).sum())
        if count:
            self.flipped(node, count, before.numel())


class DriftWatch:
    """Has every so many forwards take fingerprints of rebuilt values, spread over the plan."""

    def __init__(self, every: int, limit: float) -> None:
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise PlanError(f"drift is watched every so many steps, a whole number above 0, not {every!r}")
        if not 0 < limit < float("inf"):
            raise PlanError(f"the limit of drift is a relative error above 0, as 1e-3, not {limit!r}")
        self.every = every
        self.limit = limit
        self.steps = 0

    def next(self, plan: Plan) -> Fingerprints | None:
        """An observer for the forward that begins, if it is one to watch."""
        self.steps += 1
        if (self.steps - 1) % self.every:
            return None
        rebuilt = {name: source.node for name, source in plan.sources.items() if source.how == "inverted"}
        in_order = [value.name for value in plan.graph.values if value.name in rebuilt]
        count = min(VALUES, len(in_order))
        chosen = {in_order[n * len(in_order) // count] for n in range(count)}  # the first drifts the most
        return Fingerprints({name: rebuilt[name] for name in chosen}, self.limit)


class Fingerprints(Choices):
    """Some elements of the values and choices of one forward; warns of the first that is too far off."""

    def __init__(self, nodes: dict[str, str], limit: float) -> None:
        super().__init__(CHOICES)
        self.nodes = nodes
        self.limit = limit
        self.taken: dict[str, Tensor] = {}
        self.warned = False

    def made(self, name: str, value: Tensor) -> None:
        if name in self.nodes:
            self.taken[name] = _elements(value, ELEMENTS)

    def rebuilt(self, name: str, value: Tensor) -> None:
        before = self.taken.pop(name, None)
        if before is None or self.warned:
            return
        now = _elements(value, ELEMENTS)
        scale = before.abs().max().item() if before.numel() else 0.0
        error = (now.double() - before.double()).abs().max().item() / scale if scale else 0.0
        if not error <= self.limit:  # nan is not, either
            self._warn(
                f"value {name!r}, rebuilt by inverting node {self.nodes[name]!r}, is off by {error:.2g} of "
                f"its size (the limit is {self.limit:.2g}): gradients before it are wrong by about as much. "
                "Bound the drift (revgraph.estimate_drift, then revgraph.plan(net.graph, max_drift=...)), "
                "use exact mode (revgraph.trace(..., exact=True)), or keep nodes on the way."
            )

    def flipped(self, node: str, count: int, compared: int) -> None:
        if count > self.limit * compared and not self.warned:
            self._warn(
                f"drift flipped choices in node {node!r}: {count} of {compared} elements that were compared "
                "are on another side of a tie or kink than in the forward (another index or truth value, or "
                "no longer an exact zero in front of a ReLU or the like): the gradient is wrong there. "
                f"What the node reads was rebuilt with rounding errors, which decide. {cures_of_drift(node)}"
            )

    def _warn(self, message: str) -> None:
        self.warned = True
        warn(message, DriftWarning)


def _sides(tensor: Tensor, count: int | None) -> Tensor | None:
    """On which side of a choice elements of a saved tensor are; None where it tells of none."""
    if tensor.layout is not torch.strided or tensor.is_nested or tensor.dtype not in CHOSEN | SIGNED:
        return None
    with unseen(), torch.no_grad():
        elements = _elements(tensor, count)
        return (
            elements
            if tensor.dtype in CHOSEN
            else (elements > 0).to(torch.int8) - (elements < 0).to(torch.int8)
        )


def _has_kink_at_zero(operator: Any) -> bool:
    """Whether the operator whose backward this is has a kink at the zeros of what it saved."""
    bounds = None if operator is None else KINKS.get(operator.name().partition("Backward")[0])
    return bounds is not None and (not bounds or any(getattr(operator, each, None) == 0 for each in bounds))


def _elements(value: Tensor, count: int | None) -> Tensor:
    """So many elements, evenly spread, as a copy; all of them with None.

    The step is odd, for tensors are often even in width, and the elements are to be of many columns.
    """
    with torch.no_grad():
        flat = value.detach().reshape(-1)
        step = 1 if count is None else -(-flat.numel() // count) | 1
        return flat[::step].clone()
