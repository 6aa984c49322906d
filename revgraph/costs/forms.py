"""Forms: what distinguishes tensors for costs - their layout in memory, not their elements."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Form:
    """A tensor's layout; `storage` names the memory it lies in, which other forms may name too."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype
    device: torch.device
    storage: Hashable
    storage_bytes: int
    requires_grad: bool = False


def form_of(tensor: Tensor, storage: Hashable) -> Form:
    """The form of a strided tensor, whose memory is called `storage`."""
    return Form(
        tuple(tensor.shape),
        tensor.stride(),
        int(tensor.storage_offset()),
        tensor.dtype,
        tensor.device,
        storage,
        tensor.untyped_storage().nbytes(),
        tensor.requires_grad,
    )


def dense(form: Form, storage: Hashable) -> Form:
    """The form of a new contiguous tensor of the same shape."""
    stride, step = [], 1
    for size in reversed(form.shape):
        stride.append(step)
        step *= max(size, 1)
    nbytes = math.prod(form.shape) * form.dtype.itemsize
    return replace(form, stride=tuple(reversed(stride)), offset=0, storage=storage, storage_bytes=nbytes)


def numbered(forms: Sequence[Form | None]) -> tuple[Form | None, ...]:
    """The forms with their storages numbered in order: equal for tensors that lie alike."""
    numbers: dict[Hashable, int] = {}
    return tuple(
        form and replace(form, storage=numbers.setdefault(form.storage, len(numbers))) for form in forms
    )


def tensors_of(forms: Sequence[Form]) -> list[Tensor]:
    """New tensors of these forms, zeros where they have elements; forms of one storage share memory."""
    bases: dict[Hashable, Tensor] = {}
    for form in forms:
        if form.storage not in bases:
            bases[form.storage] = torch.zeros(form.storage_bytes, dtype=torch.uint8, device=form.device)
    return [
        bases[form.storage].view(form.dtype).as_strided(form.shape, form.stride, form.offset).data
        for form in forms
    ]


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
