"""Curves: the least cost within every number of bytes, as steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

Whole = np.ndarray[Any, np.dtype[np.int64]]


class Curve(NamedTuple):
    """From `sizes[n]` bytes on, up to the next size, the cost is `costs[n]`; below the first there is none.

    Sizes rise and costs fall, both strictly.
    """

    sizes: Whole
    costs: Whole

    def at(self, size: int) -> int | None:
        """The cost within `size` bytes."""
        n = int(np.searchsorted(self.sizes, size, side="right")) - 1
        return int(self.costs[n]) if n >= 0 else None


NONE = Curve(np.empty(0, np.int64), np.empty(0, np.int64))


def step(size: int, cost: int) -> Curve:
    """One cost from one size on."""
    return Curve(np.array([size], np.int64), np.array([cost], np.int64))


def moved(curve: Curve, shift: int, cost: int, least: int) -> Curve:
    """`curve` with `shift` more bytes and `cost` more, from `least` bytes on."""
    return Curve(np.maximum(curve.sizes + shift, least), curve.costs + cost)


def added(one: Curve, shift: int, other: Curve) -> Curve:
    """The sum of two costs within the same bytes, of which `one` has `shift` fewer."""
    if not len(one.sizes) or not len(other.sizes):
        return NONE
    if len(one.sizes) == 1 or len(other.sizes) == 1:
        long, short = (other, one) if len(one.sizes) == 1 else (one, other)
        first = int(short.sizes[0]) + (shift if short is one else 0)
        return moved(long, 0 if short is one else shift, int(short.costs[0]), first)
    moved_sizes = one.sizes + shift
    sizes = np.concatenate((moved_sizes, other.sizes))
    sizes = sizes[sizes >= max(moved_sizes[0], other.sizes[0])]
    costs = one.costs[np.searchsorted(moved_sizes, sizes, side="right") - 1]
    return Curve(sizes, costs + other.costs[np.searchsorted(other.sizes, sizes, side="right") - 1])


def lowest(curves: Sequence[Curve], points: int | None) -> Curve:
    """The least of all, thinned out to about `points` steps where there are more.

    Thinning leaves steps out: the cost within some sizes becomes that of a smaller size.
    """
    if not curves:
        return NONE
    sizes = np.concatenate([curve.sizes for curve in curves])
    if not len(sizes):
        return NONE
    costs = np.concatenate([curve.costs for curve in curves])
    order = np.lexsort((costs, sizes))
    sizes, costs = sizes[order], costs[order]
    falls = np.empty(len(costs), bool)
    falls[0] = True
    falls[1:] = costs[1:] < np.minimum.accumulate(costs)[:-1]
    sizes, costs = sizes[falls], costs[falls]
    if points is not None and len(sizes) > points:
        chosen = np.unique(np.linspace(0, len(sizes) - 1, points).round().astype(np.int64))
        sizes, costs = sizes[chosen], costs[chosen]
    return Curve(sizes, costs)
