"""The ways to read a traced call as the arithmetic of a coupling, `y = x (+) term`.

A call is read by itself, without a look at what its operands are computed from: that a sum is a coupling
is decided in `find_couplings`. Several calls in a row are one coupling where the numbers between them have
no other reader and one of them multiplies: `0.9 * x + t`, `x * exp(s) + t`, `(x - t) / 2`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx

from revgraph.program import LERPS, Arithmetic, Difference, Law, Step, Sum

ADDITIONS = {operator.add, torch.add, "add"}
SUBTRACTIONS = {operator.sub, torch.sub, torch.subtract, "sub", "subtract"}
PRODUCTS = {operator.mul, torch.mul, torch.multiply, "mul", "multiply"}
QUOTIENTS = {operator.truediv, torch.div, torch.divide, torch.true_divide, "div", "divide", "true_divide"}
# Sums of a target and a product or quotient of two tensors, with the name of that step.
FUSED: dict[Any, Literal["addcmul", "addcdiv"]] = {
    torch.addcmul: "addcmul",
    "addcmul": "addcmul",
    torch.addcdiv: "addcdiv",
    "addcdiv": "addcdiv",
}
BETWEEN = {torch.lerp, "lerp"}
# What gives numbers that never are zero, so that a product with it can be undone. (A sigmoid does, too, but
# where code gates with it, it is meant to forget.)
EXPONENTIALS = {torch.exp, torch.exp2, "exp", "exp2"}
# Undoing a product with a constant makes errors larger by its inverse.
LEAST_FACTOR, LARGEST_FACTOR = 0.1, 1000.0
FACTORS = frozenset(("mul", "div", *LERPS))
LONGEST = 4


@dataclass(frozen=True)
class Reading:
    """`node = law(target, terms)`; `spine` are the calls of that arithmetic, the node last.

    `places` say which operand of each of these leads down to the target.
    """

    node: fx.Node
    target: fx.Node
    terms: tuple[fx.Node, ...]
    law: Law
    spine: tuple[fx.Node, ...]
    places: tuple[int, ...]


def readings(node: fx.Node, fakes: Mapping[fx.Node, Any], sums_only: bool = False) -> Iterator[Reading]:
    """The ways to read a call, those of more calls first; with `sums_only` no product is part of one."""
    for target, steps, spine in _ways_down(node, (), (), fakes):
        if sums_only and any(step.kind in FACTORS or step.other is not None for step in steps):
            continue
        if reading := _reading(node, target, steps, spine):
            yield reading


@dataclass(frozen=True)
class _TracedStep:
    """A step whose operand is a traced value, or a number; of a fused one, `other` is the second operand."""

    kind: Literal["add", "sub", "from", "mul", "div", "addcmul", "addcdiv", "lerp", "lerp to"]
    operand: Any
    alpha: Any = 1
    place: int = 0
    other: fx.Node | None = None


def _ways_down(
    node: fx.Node, steps: tuple[_TracedStep, ...], spine: tuple[fx.Node, ...], fakes: Mapping[fx.Node, Any]
) -> Iterator[tuple[fx.Node, tuple[_TracedStep, ...], tuple[fx.Node, ...]]]:
    """From a call down to what may be the target, over calls that nothing else reads."""
    if len(spine) == LONGEST or (spine and len(node.users) != 1):
        return
    for target, step in _operations(node):
        if not _keeps_form(target, node, fakes):
            continue
        if steps and FACTORS.isdisjoint((step.kind, steps[0].kind)):
            continue  # sums of sums are couplings one after the other
        found = (step, *steps), (node, *spine)
        yield from _ways_down(target, *found, fakes)
        yield target, *found


def _operations(node: fx.Node) -> Iterator[tuple[fx.Node, _TracedStep]]:
    """The ways to read one call as a step from an operand of it."""
    if node.op not in ("call_function", "call_method"):
        return
    if node.target in FUSED:
        yield from _fused(node)
        return
    if node.target in BETWEEN:
        yield from _between(node)
        return
    if len(node.args) != 2 or set(node.kwargs) - {"alpha"}:
        return
    first: Any = node.args[0]
    second: Any = node.args[1]
    alpha: Any = node.kwargs.get("alpha", 1)
    if isinstance(alpha, fx.Node):
        return
    both = isinstance(first, fx.Node) and isinstance(second, fx.Node)
    if node.target in ADDITIONS and both:
        yield first, _TracedStep("add", second, alpha)
        if alpha == 1:
            yield second, _TracedStep("add", first, 1, 1)
    elif node.target in SUBTRACTIONS and both:
        yield first, _TracedStep("sub", second, alpha)
        if alpha == 1:
            yield second, _TracedStep("from", first, 1, 1)
    elif node.target in PRODUCTS and not node.kwargs:
        for place, (one, other) in enumerate(((first, second), (second, first))):
            if isinstance(one, fx.Node) and _is_factor(other):
                yield one, _TracedStep("mul", other, 1, place)
    elif node.target in QUOTIENTS and not node.kwargs and isinstance(first, fx.Node) and _is_factor(second):
        yield first, _TracedStep("div", second)


def _fused(node: fx.Node) -> Iterator[tuple[fx.Node, _TracedStep]]:
    """`addcmul(x, t, s, value=a)` and `addcdiv`: of the three, only x can be had back."""
    operands = [each for each in node.args if isinstance(each, fx.Node)]
    value: Any = node.kwargs.get("value", 1)
    if len(operands) != 3 or len(node.args) > 3 or set(node.kwargs) - {"value"}:
        return
    x, t, s = operands
    if isinstance(value, (int, float)) and x not in (t, s):
        yield x, _TracedStep(FUSED[node.target], t, value, 0, s)


def _between(node: fx.Node) -> Iterator[tuple[fx.Node, _TracedStep]]:
    """`lerp(x, t, a)`, and `lerp(t, x, a)`, where there is enough of x in it."""
    operands = [each for each in node.args if isinstance(each, fx.Node)]
    weight: Any = node.args[2] if len(node.args) == 3 else node.kwargs.get("weight")
    if len(operands) != 2 or len(node.args) + len(node.kwargs) != 3 or not isinstance(weight, (int, float)):
        return
    start, end = operands
    if _is_factor(1 - weight):
        yield start, _TracedStep("lerp", end, weight)
    if _is_factor(weight):
        yield end, _TracedStep("lerp to", start, weight, 1)


def _is_factor(thing: Any) -> bool:
    """Whether a product with this can be undone."""
    if isinstance(thing, fx.Node):
        return thing.op in ("call_function", "call_method") and thing.target in EXPONENTIALS
    if isinstance(thing, bool) or not isinstance(thing, (int, float)):
        return False
    return math.isfinite(thing) and LEAST_FACTOR <= abs(thing) <= LARGEST_FACTOR


def _reading(
    node: fx.Node, target: fx.Node, steps: tuple[_TracedStep, ...], spine: tuple[fx.Node, ...]
) -> Reading | None:
    operands = [each for step in steps for each in (step.operand, step.other)]
    terms = tuple(dict.fromkeys(each for each in operands if isinstance(each, fx.Node)))
    if not terms or target in terms:
        return None
    first = steps[0]
    kind, alpha = first.kind, first.alpha
    if len(steps) > 1 or kind in FACTORS or first.other is not None:
        places: dict[Any, int] = {term: index for index, term in enumerate(terms)}
        made = [
            Step(step.kind, places[step.operand], step.alpha, places.get(step.other))
            if isinstance(step.operand, fx.Node)
            else Step(step.kind, None, step.operand)
            for step in steps
        ]
        law: Law = Arithmetic(tuple(made))
    else:
        law = Difference() if kind == "from" else Sum(alpha if kind == "add" else -alpha)
    return Reading(node, target, terms, law, spine, tuple([step.place for step in steps]))


def _keeps_form(target: fx.Node, node: fx.Node, fakes: Mapping[fx.Node, Any]) -> bool:
    before, after = fakes.get(target), fakes.get(node)
    return (
        isinstance(before, Tensor)
        and isinstance(after, Tensor)
        and before.shape == after.shape
        and before.dtype == after.dtype
        and (before.is_floating_point() or before.is_complex())
        and target.op != "get_attr"
    )
