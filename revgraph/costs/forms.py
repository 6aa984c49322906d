"""Forms: what distinguishes tensors for costs - their layout in memory, not their elements."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._guards import detect_fake_mode

from revgraph.engine._torch import unseen
from revgraph.storages import bytes_of, faked, parts_of, sparse_tensor


@dataclass(frozen=True, slots=True)
class Form:
    """A tensor's layout; `storage` names the memory it lies in, which other forms may name too.

    A sparse tensor has no strides, and the forms of its `parts` instead. Its memory is that of all of them.
    """

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype
    device: torch.device
    storage: Hashable
    storage_bytes: int
    requires_grad: bool = False
    layout: torch.layout = torch.strided
    parts: tuple[Form, ...] = ()
    is_coalesced: bool = False


def form_of(tensor: Tensor, storage: Hashable) -> Form:
    """The form of a strided or sparse tensor, whose memory is called `storage`."""
    plain = tensor.layout is torch.strided
    return Form(
        tuple(tensor.shape),
        tensor.stride() if plain else (),
        int(tensor.storage_offset()) if plain else 0,
        tensor.dtype,
        tensor.device,
        storage,
        bytes_of(tensor),
        tensor.requires_grad,
        tensor.layout,
        () if plain else tuple(form_of(part, None) for part in parts_of(tensor)),
        tensor.layout is torch.sparse_coo and tensor.is_coalesced(),
    )


def dense(form: Form, storage: Hashable) -> Form:
    """The form of a new contiguous tensor of the same shape."""
    stride, step = [], 1
    for size in reversed(form.shape):
        stride.append(step)
        step *= max(size, 1)
    nbytes = math.prod(form.shape) * form.dtype.itemsize
    return Form(
        form.shape,
        tuple(reversed(stride)),
        0,
        form.dtype,
        form.device,
        storage,
        nbytes,
        form.requires_grad,
    )


def numbered(forms: Sequence[Form | None]) -> tuple[Hashable, ...]:
    """The forms as keys, with their storages numbered in order: equal for tensors that lie alike."""
    numbers: dict[Hashable, int] = {}
    return tuple(
        [
            form
            and (
                *(form.shape, form.stride, form.offset, form.dtype, form.device),
                numbers.setdefault(form.storage, len(numbers)),
                *(form.storage_bytes, form.requires_grad, form.layout, form.parts, form.is_coalesced),
            )
            for form in forms
        ]
    )


def tensors_of(forms: Sequence[Form]) -> list[Tensor]:
    """New tensors of these forms, zeros where they have elements; forms of one storage share memory."""
    bases: dict[Hashable, Tensor] = {}
    made: list[Tensor] = []
    for form in forms:
        place = form.layout, form.storage
        if place not in bases:
            bases[place] = (
                _sparse(form)
                if form.parts
                else torch.zeros(form.storage_bytes, dtype=torch.uint8, device=form.device)
            )
        base = bases[place]
        if not form.parts:
            base = base.view(form.dtype).as_strided(form.shape, form.stride, form.offset)
        made.append(base.data)
    return made


def _sparse(form: Form) -> Tensor:
    """A sparse tensor of zeros, whose entries are spread evenly: kernels trust indices to be right.

    Unseen, for its parts are to come up as one, with the first view of it.
    """
    with unseen():
        *indices, values = form.parts
        made = _indices(form) if form.layout is torch.sparse_coo else _compressed(*indices)
        parts = [part.to(each.device, each.dtype) for part, each in zip(made, indices, strict=True)]
        parts.append(torch.zeros(values.shape, dtype=values.dtype, device=values.device))
        whole = sparse_tensor(parts, form.shape, form.layout, form.is_coalesced)
    mode = detect_fake_mode()
    return whole if mode is None else faked(whole, mode)


def _indices(form: Form) -> list[Tensor]:
    depth, count = form.parts[0].shape
    sizes = form.shape[:depth]
    place = torch.arange(count) * math.prod(sizes) // max(count, 1)
    rows: list[Tensor] = []
    for size in reversed(sizes):
        rows.insert(0, place % size)
        place = place // size
    return [torch.stack(rows)] if rows else [torch.empty(0, count)]


def _compressed(starts: Form, places: Form) -> list[Tensor]:
    """Where the entries of each row start, and their places in it (or of each column)."""
    count, rows = places.shape[-1], starts.shape[-1] - 1
    start = torch.arange(rows + 1) * count // max(rows, 1)
    place = torch.arange(count) - start[:-1].repeat_interleave(start.diff())
    return [start.expand(starts.shape).contiguous(), place.expand(places.shape).contiguous()]


class Entry(torch.autograd.Function):
    """Makes the tensors that enter a node: results of a graph, so that gradients arrive, with no past."""

    @staticmethod
    def forward(ctx: object, root: Tensor, make: Callable[[], list[Tensor]]) -> tuple[Tensor, ...]:
        return tuple(make())

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> tuple[None, None]:
        return None, None


class Exit(torch.autograd.Function):
    """Takes what leaves a node; its backward makes the gradients that enter the node's backward."""

    @staticmethod
    def forward(ctx: object, make: Callable[[], list[Tensor]], *tensors: Tensor) -> Tensor:
        ctx.make = make  # type: ignore[attr-defined]
        return torch.zeros((), device=tensors[0].device)

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return None, *ctx.make()  # type: ignore[attr-defined]
