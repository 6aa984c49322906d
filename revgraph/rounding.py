"""Rounding to a fixed-point grid, on which floating-point addition is exact and can be undone bit for bit."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from revgraph.errors import DriftError

# Binary digits of a floating-point number, the leading one included.
DIGITS = {torch.float32: 24, torch.float64: 53}
# Between neighbours on the grid, unless asked otherwise: in float32 it then reaches to +-1,024.
RESOLUTION = 2.0**-14


def largest(resolution: float, dtype: torch.dtype) -> float:
    """Up to which size every multiple of the resolution is a number of this dtype."""
    return resolution * 2.0 ** DIGITS[dtype]


def is_power_of_two(number: float) -> bool:
    return number > 0 and math.isfinite(number) and math.frexp(number)[0] == 0.5


def rounded(tensor: Tensor, resolution: float) -> Tensor:
    """The nearest multiples of the resolution; gradients go straight through (Bengio et al. 2013)."""
    return (_Compiled if torch.compiler.is_compiling() else _Rounded).apply(tensor, resolution)


def in_range(tensor: Tensor, resolution: float, node: str) -> Tensor:
    """The tensor, once all its elements are known to be small enough for exact sums.

    Raises:
        DriftError: one is too large, or not a number.
    """
    if not tensor.numel():
        return tensor
    low, high = torch.aminmax(tensor.detach())
    if isinstance(low, FakeTensor) or low.is_meta:
        return tensor
    if torch.compiler.is_compiling():
        _noted.append((node, resolution, tensor.dtype, torch.maximum(-low, high)))
    else:
        _check_reach(max(-low.item(), high.item()), tensor.dtype, resolution, node)
    return tensor


# What compiled code computed, and has to be checked: a graph raises no errors.
_noted: list[tuple[str, float, torch.dtype, Tensor]] = []


def check_noted() -> None:
    """Check the tensors that compiled code has passed through `in_range` since.

    Raises:
        DriftError: an element of one is too large, or not a number.
    """
    noted = [*_noted]
    _noted.clear()
    for node, resolution, dtype, reach in noted:
        _check_reach(reach.item(), dtype, resolution, node)


def _check_reach(reach: float, dtype: torch.dtype, resolution: float, node: str) -> None:
    limit = largest(resolution, dtype)
    if not reach <= limit:  # nan is not, either
        raise DriftError(
            f"node {node!r} makes {reach:.4g}, and exact mode holds numbers up to {limit:.4g} at a "
            f"resolution of {resolution:.4g}. Ask for a coarser one (exact={2 * resolution:.4g} reaches "
            "twice as far), use float64 streams, or normalize what the node's function returns."
        )


def to_grid(tensor: Tensor, resolution: float, node: str) -> Tensor:
    """A stream's first value, rounded; in float32 where autocast made it in low precision."""
    wide = tensor if tensor.dtype in DIGITS else tensor.float()
    return in_range(rounded(wide, resolution), resolution, node)


class _Rounded(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(tensor: Tensor, resolution: float) -> Tensor:
        return torch.round(tensor / resolution).mul_(resolution)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        return tangents[0].view_as(tangents[0])


class _Compiled(torch.autograd.Function):
    """The same for torch.compile, which takes no forward-mode derivatives."""

    generate_vmap_rule = True
    forward = _Rounded.forward
    setup_context = _Rounded.setup_context
    backward = _Rounded.backward
