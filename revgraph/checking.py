"""Checking: a net's gradients under its plan against those from stored activations, and where they part.

Two steps on one batch. The first stores every activation, and leaves all values and the gradients that
reach them. In the second, under the plan, each value that the backward rebuilds and each gradient that
reaches a value is compared as it comes, and only its error is held.

An error is relative to its tensor's gradient. That says nothing of a gradient that is zero by symmetry (a
bias in front of a normalization, a number added to all logits): it consists of rounding errors, and a
replay gives others. So where errors look large, it is measured what rounding alone does: the stored step
runs a few times more, with multiples of the cotangents, of which gradients are the same multiples but for
rounding. A gradient that moves by far more of itself in that than all of them together is a sum of terms
that cancel, and its errors are relative to the size of these. Inputs are left as they are: a net in which
small errors grow is just what is looked for.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from revgraph.displays import ShownAsTable
from revgraph.engine.module import ReversibleModule, check_net
from revgraph.engine.observer import Choices, Observer
from revgraph.errors import DriftError, cures_of_drift
from revgraph.graph import Graph
from revgraph.parts import Node
from revgraph.planning import keep_all
from revgraph.trials import differentiable, isolated, tensors

Verdict = Literal["good", "flipped", "drifted", "wrong"]

# The relative error of a gradient that is still good, and in units of the coarsest rounding in the net.
GOOD, GOOD_ROUNDINGS = 1e-3, 4
# Multiples of the cotangents that show what rounding does, and how many times more than all gradients one may
# move and still be taken at its own size.
FACTORS, USUAL = (3, 5, 7, 9), 16
# An error of the gradient so many times larger than those that a node reads is no growth of these: where
# choices flipped, and where neither indices nor signs tell of that.
JUMP, HIDDEN_JUMP = 1e2, 1e4


@dataclass(frozen=True, slots=True)
class GradientReport(ShownAsTable):
    """Gradients under the net's plan against those from stored activations, on one batch.

    `max_relative_error` is the largest error of an element over the largest element of its tensor's
    gradient (of the terms that it sums, where these cancel: a gradient that is zero but for rounding has no
    error to speak of); `angle_degrees` is between the gradients of all parameters and inputs as one vector.
    `drift` gives, for each value that the backward rebuilt, its largest error over its largest element.
    `flips` gives, for each node whose replay chose otherwise than its forward (an index, a mask, the side
    of a kink), the elements that tell so, of what autograd saved or of the gradient; a few in a large net
    do no harm. `begins_at` is the first node, in backward order, where gradients are wrong by more than
    `limit`, if it can be told, and `is_abrupt` says that a flip there makes them so, by errors that are
    nothing but rounding.

    Where a flipped choice changed shapes, the backward came no further: `max_relative_error` is infinite and
    `angle_degrees` is nan.
    """

    max_relative_error: float
    angle_degrees: float
    drift: Mapping[str, float]
    flips: Mapping[str, int] = field(default_factory=dict)
    begins_at: str | None = None
    is_abrupt: bool = False
    limit: float = GOOD

    @property
    def verdict(self) -> Verdict:
        """What the gradients are: "good", or wrong by more than `limit`, and why.

        "flipped": rounding errors flipped a choice where it begins; "drifted": errors of rebuilt values grew;
        "wrong": nothing that was rebuilt explains it.
        """
        if self.max_relative_error <= self.limit:
            return "good"
        if self.is_abrupt:
            return "flipped"
        return "drifted" if any(error != 0 for error in self.drift.values()) else "wrong"

    @property
    def advice(self) -> str:
        """Where the gradients are wrong, why, and what to do; nothing where they are good."""
        verdict, at = self.verdict, self.begins_at
        if verdict == "good":
            return ""
        begins = "The gradient is wrong" if at is None else f"The gradient is wrong from node {at!r} on"
        if verdict == "flipped":
            return (
                f"{begins}: what it reads there came back with rounding errors, which flipped a choice or "
                f"crossed a kink (a comparison, an index, a ReLU at zero). {cures_of_drift(at or '...')}"
            )
        if verdict == "drifted":
            return (
                f"{begins}: rounding errors of inversion have grown that far. Bound the drift with anchors "
                "(revgraph.estimate_drift, then revgraph.plan(net.graph, max_drift=...)), keep nodes on the "
                "way, or use exact mode (revgraph.trace(..., exact=True))."
            )
        keep = "" if at is None else f", or keep it: decisions {{{at!r}: 'keep'}}"
        return f"{begins}, though nothing was rebuilt with errors: make its function deterministic{keep}."

    def __str__(self) -> str:
        worst = max(self.drift, key=self.drift.__getitem__, default="")
        flips = [f"flipped choices in {node!r}: {count}" for node, count in self.flips.items()]
        return "; ".join(
            [
                f"max relative error {self.max_relative_error:.2g}, angle {self.angle_degrees:.2g} degrees",
                f"largest drift {self.drift[worst]:.2g} at {worst}" if worst else "nothing was rebuilt",
                *flips[:1],
                *([f"and in {len(flips) - 1} other nodes"] if flips[1:] else []),
                f"verdict: {self.verdict}",
            ]
        ) + (f". {self.advice}" if self.advice else "")


def check(net: ReversibleModule, *inputs: Any, seed: int = 0, **extras: Any) -> GradientReport:
    """The net's gradients against those of the same step with every activation stored.

    Of a net from `rg.compile` the gradients are those of the compiled step; drift and flips are told of the
    engine's step under the same plan. Where "inductor" draws random numbers, which are not those of eager
    code, activations are stored by a compiled step, too.

    Both steps start from the same buffers and random state and weigh the outputs by the same random
    cotangents, drawn with `seed`. The net, its gradients and the random state are left as they were.

    Raises:
        TraceError: `net` is no net of `rg.trace` or `rg.load`.
        GraphError: no output depends on a parameter or input that requires a gradient.

    Example:
        >>> import torch, revgraph as rg
        >>> half_step = lambda: torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh())
        >>> net = rg.trace(rg.Additive(half_step(), half_step()), *torch.randn(2, 8, 4))
        >>> net.plan = rg.decide(net.graph, {})
        >>> rg.check(net, *torch.randn(2, 8, 4)).verdict
        'good'
    """
    check_net(net, "rg.check")
    with ExitStack() as hooks:
        stored = _Stored(hooks)
        with net.planned(keep_all(net.graph)), net.watched_by(stored):
            expected = _gradients(net, inputs, extras, seed)
        seen = _Replayed(hooks, net.graph, stored)
        try:
            with net.watched_by(seen):
                found = _gradients(net, inputs, extras, seed)
        except DriftError as error:
            seen.flips.setdefault(error.node, 1)
            begins_at, is_abrupt = error.node, seen.reads(error.node) <= seen.limit
            return GradientReport(
                math.inf, math.nan, seen.drift, dict(seen.flips), begins_at, is_abrupt, seen.limit
            )
        if not net.steps_as_watched:  # compiled: what is rebuilt is known of the engine's step alone
            found = _gradients(net, inputs, extras, seed)
            if not net.draws_as_watched and _draws(net, inputs, extras):
                with net.planned(keep_all(net.graph)):
                    expected = _gradients(net, inputs, extras, seed)
    pairs = list(zip(found, expected, strict=True))
    distances, sizes = [_distance(*pair) for pair in pairs], [_largest(each) for each in expected]
    errors = list(map(_relative, distances, sizes))
    if not max(errors, default=0.0) <= seen.limit:
        terms = _sizes_of_terms(net, inputs, extras, seed, expected)
        errors = list(map(_relative, distances, map(max, sizes, terms)))
    worst, begins_at, is_abrupt = max(errors, default=0.0), None, False
    if not worst <= seen.limit:
        parameters = [name for name, leaf in net.named_parameters() if leaf.requires_grad]
        wrong = [name for name, error in zip(parameters, errors, strict=False) if not error <= seen.limit]
        begins_at, is_abrupt = _beginning(net, seen, wrong, worst)
    return GradientReport(
        worst, _angle(pairs), seen.drift, dict(seen.flips), begins_at, is_abrupt, seen.limit
    )


class _Stored(Observer):
    """All values of a forward, and the gradients that reach them, by hooks that the stack takes off again."""

    def __init__(self, hooks: ExitStack) -> None:
        self.values: dict[str, Tensor] = {}
        self.gradients: dict[str, Tensor] = {}
        self._hooks = hooks

    def made(self, name: str, value: Tensor) -> None:
        self.values[name] = value.detach()
        if value.requires_grad:
            self._hooks.callback(value.register_hook(partial(self.gradients.__setitem__, name)).remove)


class _Replayed(Choices):
    """How far what the backward rebuilds, and the gradients that reach values, are from those stored.

    `errors` gives for each value the relative error of its gradient, and in how many elements it is above
    `limit`.
    """

    def __init__(self, hooks: ExitStack, graph: Graph, stored: _Stored) -> None:
        super().__init__(None)
        self.drift: dict[str, float] = {}
        self.errors: dict[str, tuple[float, int]] = {}
        self.flips: Counter[str] = Counter()
        self.limit = GOOD
        self._hooks = hooks
        self._stored = stored
        self._graph = graph
        self._made_of = {node.target: node.outputs[0] for node in graph.nodes if node.target is not None}

    def made(self, name: str, value: Tensor) -> None:
        if value.requires_grad:
            self._hooks.callback(value.register_hook(partial(self._reached, name)).remove)

    def saved(self, node: str, index: int, tensor: Tensor) -> None:
        super().saved(node, index, tensor)
        if tensor.is_floating_point():  # of what the net computes in, as bfloat16 under autocast
            self.limit = max(self.limit, GOOD_ROUNDINGS * torch.finfo(tensor.dtype).eps)

    def rebuilt(self, name: str, value: Tensor) -> None:
        """Note the value's error; if all of it is zero, relative to what came of it."""
        values, made = self._stored.values, self._made_of.get(name)
        exact = _real(values[name])
        size = _largest(values[made] if made in values and not exact.any() else exact)
        self.drift[name] = _relative(_distance(_real(value), exact), size)

    def flipped(self, node: str, count: int, compared: int) -> None:
        self.flips[node] += count

    def reads(self, node: str) -> float:
        """The largest drift of what the node's function reads."""
        read = self._graph.node[node]
        return max((self.drift.get(name, 0.0) for name in read.inputs if name != read.target), default=0.0)

    def _reached(self, name: str, gradient: Tensor | None) -> None:
        expected = self._stored.gradients.pop(name, None)
        if gradient is not None and expected is not None and gradient.numel():
            distances, size = (gradient - expected).abs(), _largest(expected)
            error = _relative(_largest(distances), size)
            self.errors[name] = error, int((distances > self.limit * size).sum())


def _gradients(
    net: ReversibleModule, inputs: Sequence[Any], extras: dict[str, Any], seed: int, factor: int = 1
) -> list[Tensor]:
    """Gradients of parameters and inputs in a step that leaves no mark, by random cotangents times a factor.

    Cotangents are odd numbers of halves, so that in any type they are exact, and small multiples of them too.
    """

    def run() -> list[Tensor]:
        outputs = differentiable(net(*inputs, **extras))
        generator = torch.Generator().manual_seed(seed)
        cotangents = [
            (torch.randint(-8, 8, each.shape, generator=generator) + 0.5).to(each.device, each.dtype) * factor
            for each in outputs
        ]
        leaves = [leaf for leaf in (*net.parameters(), *tensors((inputs, extras))) if leaf.requires_grad]
        found = torch.autograd.grad(outputs, leaves, cotangents, allow_unused=True)
        return [
            _real(torch.zeros_like(leaf) if gradient is None else gradient)
            for leaf, gradient in zip(leaves, found, strict=True)
        ]

    return isolated(net, (inputs, extras), run)


def _draws(net: ReversibleModule, inputs: Sequence[Any], extras: dict[str, Any]) -> bool:
    """Whether the net's forward draws random numbers on the CPU, or on the current GPU."""

    def run() -> bool:
        before = random_states()
        with net.watched_by(Observer()), torch.no_grad():
            net(*inputs, **extras)
        return any(not torch.equal(*pair) for pair in zip(before, random_states(), strict=True))

    return isolated(net, (inputs, extras), run)


def random_states() -> list[Tensor]:
    """The states of torch's generators."""
    on_gpu = [torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else []
    return [torch.get_rng_state(), *on_gpu]


def _sizes_of_terms(
    net: ReversibleModule, inputs: Sequence[Any], extras: dict[str, Any], seed: int, expected: list[Tensor]
) -> list[float]:
    """The size of the terms that a stored gradient sums, where these cancel; less than its own elsewhere."""
    moved = [0.0] * len(expected)
    share = 0.0
    length = _length(expected)
    with net.planned(keep_all(net.graph)):
        for factor in FACTORS:
            again = _gradients(net, inputs, extras, seed, factor)
            apart = [one.double() / factor - two.double() for one, two in zip(again, expected, strict=True)]
            moved = [max(most, _largest(each)) for most, each in zip(moved, apart, strict=True)]
            share = max(share, _length(apart) / length if length else 0.0)
    sizes: list[float] = []
    for most, gradient in zip(moved, expected, strict=True):
        eps = torch.finfo(gradient.dtype).eps
        sizes.append(most / (USUAL * min(max(share, eps), eps**0.5)))
    return [size if math.isfinite(size) else 0.0 for size in sizes]


def _beginning(
    net: ReversibleModule, seen: _Replayed, wrong: Sequence[str], worst: float
) -> tuple[str | None, bool]:
    """The node where gradients become wrong, in backward order, and whether a flip makes them so.

    Given are the parameters whose gradients are wrong, and the largest error.

    It reads the first value whose gradient is wrong, or owns such a parameter. Of several, it is one whose
    choices flipped, or that reads the value otherwise than to add to it.
    """
    clean = 0.0, 0
    values = reversed([each.name for each in net.graph.values])
    value = next((each for each in values if not seen.errors.get(each, clean)[0] <= seen.limit), None)
    modules = Counter(node.module for node in net.graph.nodes)
    found: list[Node] = []
    for node in reversed(net.graph.nodes):
        owns = modules[node.module] == 1 and any([name.startswith(f"{node.module}.") for name in wrong])
        if net.plan.decisions.get(node.name, "keep") != "keep" and (owns or value in node.inputs):
            found.append(node)
    if not found:
        return None, False
    node = min(found, key=lambda each: (each.name not in seen.flips, each.target == value))
    error, count = (worst, 1) if value is None else seen.errors[value]
    read = seen.reads(node.name)
    if node.name not in seen.flips and read:
        before = max(read, *(seen.errors.get(name, clean)[0] for name in node.outputs))
        if HIDDEN_JUMP * before < error:
            seen.flips[node.name] = count
    return node.name, node.name in seen.flips and JUMP * read < error


def _real(tensor: Tensor) -> Tensor:
    """A tensor of any sort as a dense one of real numbers."""
    dense = tensor.detach() if tensor.layout is torch.strided else tensor.detach().to_dense()
    return torch.view_as_real(dense.resolve_conj()) if dense.is_complex() else dense


def _largest(tensor: Tensor) -> float:
    return tensor.abs().max().item() if tensor.numel() else 0.0


def _length(given: Sequence[Tensor]) -> float:
    """The length of tensors as one vector."""
    return math.hypot(*(torch.linalg.vector_norm(each.double()).item() for each in given))


def _distance(found: Tensor, expected: Tensor) -> float:
    """The largest error of an element."""
    return _largest(found.double() - expected.double())


def _relative(error: float, size: float) -> float:
    """An error over a size; infinite where it is not a number, or the size is none."""
    if math.isnan(error):
        return math.inf
    return error / size if size else (0.0 if error == 0 else math.inf)


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
