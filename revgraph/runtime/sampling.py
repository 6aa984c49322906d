"""Samples: a few elements of a tensor as bytes, by which a replay is compared with its forward.

A replay on values that inversion gave back differs from its forward by their rounding errors, so that samples
tell a suspicion and no more than that: the node runs once more on the same values, and a function that gives
other values then is not deterministic. On the forward's own values a suspicion is enough.
"""

from __future__ import annotations

import ctypes
import math
import struct
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from revgraph.expressions import leaves
from revgraph.runtime.context import unseen

BYTES = 16
# For each type: bytes of an element, the letter by which struct reads its numbers, and the departure that is
# suspicious, relative to the element or to the root mean square of its tensor.
KINDS: dict[torch.dtype, tuple[int, str, float]] = {
    torch.float64: (8, "d", 1e-6),
    torch.complex128: (16, "d", 1e-6),
    torch.float32: (4, "f", 1e-3),
    torch.complex64: (8, "f", 1e-3),
    torch.float16: (2, "e", 1e-2),
    torch.bfloat16: (2, "H", 5e-2),
}


class Samples:
    """Samples of what one evaluation of a node saved before its law, and of what its function returned."""

    __slots__ = ("results", "saved")

    def __init__(self) -> None:
        self.saved: list[bytes] = []
        self.results: list[bytes] = []

    def take_results(self, results: Any) -> None:
        self.results = [sample(leaf) for leaf in leaves(results)]


def sample(tensor: Any, ignored: Collection[int] = ()) -> bytes:
    """The elements from the middle of a tensor on, as bytes; none where there is nothing to compare.

    From what is not contiguous it is one element. Nothing is taken from what is no plain tensor of
    floating-point numbers on the CPU (indices and masks may flip for a rounding error, and a GPU would have
    to be waited for), or whose storage is `ignored`. The memory is read directly: no operator runs that a
    counter or tracker could see.
    """
    kind = KINDS.get(tensor.dtype) if type(tensor) is Tensor else None
    if kind is None or not tensor.is_cpu or tensor.layout is not torch.strided:
        return b""
    storage = tensor.untyped_storage()
    if ignored and storage._cdata in ignored:
        return b""
    count, size = tensor.numel(), kind[0]
    start: int = tensor.storage_offset()  # pyright: ignore[reportAssignmentType]
    middle, length = count // 2, 1
    if tensor.is_contiguous():
        start += middle
        length = min(BYTES // size, count - middle)
    else:
        for extent, stride in zip(reversed(tensor.shape), reversed(tensor.stride()), strict=True):
            middle, place = divmod(middle, max(extent, 1))
            start += place * stride
    # Zeros that torch does not write out, and what was given back, have no memory to read.
    if not count or (start + length) * size > storage.nbytes() or not tensor.data_ptr():
        return b""
    return ctypes.string_at(storage.data_ptr() + start * size, length * size)


def departs(before: bytes, now: bytes, tensor: Any) -> bool:
    """Whether a sample of `tensor` is another than `before`, by more than rounding explains."""
    if before == now or not before or not now:
        return False
    common = min(len(before), len(now))  # the tensor may have lain otherwise in memory before
    bound = KINDS[tensor.dtype][2]
    pairs = [
        (one, two)
        for one, two in zip(
            _numbers(before[:common], tensor.dtype), _numbers(now[:common], tensor.dtype), strict=True
        )
        if not (abs(one - two) <= bound * abs(two) or one == two or (math.isnan(one) and math.isnan(two)))
    ]
    if not pairs:
        return False
    # Elements near zero may depart by much of themselves; only they cost a look at the whole tensor.
    with unseen(), torch.no_grad():
        scale = torch.linalg.vector_norm(tensor.detach()).item() / tensor.numel() ** 0.5
    return any(not abs(one - two) <= bound * scale for one, two in pairs)


def _numbers(given: bytes, dtype: torch.dtype) -> tuple[float, ...]:
    letter = KINDS[dtype][1]
    if letter == "H":  # bfloat16 is the upper half of float32
        halves = struct.unpack(f"={len(given) // 2}H", given)
        return struct.unpack(f"={len(halves)}f", struct.pack(f"={len(halves)}I", *(n << 16 for n in halves)))
    return struct.unpack(f"={len(given) // struct.calcsize(letter)}{letter}", given)
