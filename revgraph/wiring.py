"""Wiring: bijective rearrangements of values, without parameters and at no arithmetic cost."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class Wiring(nn.Module, ABC):
    """A rearrangement of tensors and its inverse; both take and return one tensor or a tuple.

    `example` are the shapes of the inputs that the forward saw: what `inverse` may need besides its outputs.
    """

    @abstractmethod
    def forward(self, *values: Tensor) -> Tensor | tuple[Tensor, ...]: ...

    @abstractmethod
    def inverse(self, *values: Tensor, shapes: Sequence[torch.Size]) -> Tensor | tuple[Tensor, ...]: ...


class Split(Wiring):
    """One tensor into `parts` equal streams along `dim`."""

    def __init__(self, parts: int = 2, dim: int = 1) -> None:
        super().__init__()
        if parts < 1:
            raise ValueError(f"a split needs at least one part, not {parts}")
        self.parts, self.dim = parts, dim

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        (x,) = values
        size = x.shape[self.dim]
        if size % self.parts:
            raise ValueError(
                f"cannot split {size} channels (dimension {self.dim}) into {self.parts} equal streams"
            )
        return torch.chunk(x, self.parts, dim=self.dim)

    def inverse(self, *values: Tensor, shapes: Sequence[torch.Size]) -> Tensor:
        return torch.cat(values, dim=self.dim)


class Concatenate(Wiring):
    """Several streams into one tensor along `dim`."""

    def __init__(self, dim: int = 1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, *values: Tensor) -> Tensor:
        return torch.cat(values, dim=self.dim)

    def inverse(self, *values: Tensor, shapes: Sequence[torch.Size]) -> tuple[Tensor, ...]:
        (y,) = values
        return torch.split(y, [shape[self.dim] for shape in shapes], dim=self.dim)


class Permute(Wiring):
    """The streams in another order: output i is input `order[i]`."""

    def __init__(self, *order: int) -> None:
        super().__init__()
        if sorted(order) != list(range(len(order))):
            raise ValueError(
                f"{order} is no order of {len(order)} streams: give each of 0 to {len(order) - 1} once"
            )
        self.order = order

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        if len(values) != len(self.order):
            raise ValueError(f"an order of {len(self.order)} streams cannot permute {len(values)}")
        return tuple(values[index] for index in self.order)

    def inverse(self, *values: Tensor, shapes: Sequence[torch.Size]) -> tuple[Tensor, ...]:
        return tuple(values[self.order.index(index)] for index in range(len(self.order)))


class Swap(Permute):
    """Two streams, exchanged."""

    def __init__(self) -> None:
        super().__init__(1, 0)


class Reshape(Wiring):
    """One tensor in another shape; `shape` leaves out the batch, which stays first."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, *values: Tensor) -> Tensor:
        (x,) = values
        if -1 not in self.shape and math.prod(self.shape) != math.prod(x.shape[1:]):
            raise ValueError(f"cannot reshape {list(x.shape[1:])} to {list(self.shape)}: the sizes differ")
        return x.reshape(x.shape[0], *self.shape)

    def inverse(self, *values: Tensor, shapes: Sequence[torch.Size]) -> Tensor:
        (y,) = values
        return y.reshape(shapes[0])


class SpaceToDepth(Wiring):
    """Blocks of `block` x `block` pixels into channels: `[N, C, H, W]` to `[N, C*b*b, H/b, W/b]`."""

    def __init__(self, block: int = 2) -> None:
        super().__init__()
        self.block = block

    def forward(self, *values: Tensor) -> Tensor:
        (x,) = values
        return functional.pixel_unshuffle(x, self.block)

    def inverse(self, *values: Tensor, shapes: Sequence[torch.Size]) -> Tensor:
        (y,) = values
        return functional.pixel_shuffle(y, self.block)


class Haar(Wiring):
    """The orthonormal Haar transform: `[N, C, H, W]` to `[N, 4C, H/2, W/2]`, averages first, then details.

    Of each 2 x 2 pixels: their sum, the difference of columns, of rows, and of diagonals, each halved, so
    that lengths and volume are preserved. Undoing it rounds, unlike moving pixels (`SpaceToDepth`).
    """

    def forward(self, *values: Tensor) -> Tensor:
        (x,) = values
        bands = functional.pixel_unshuffle(x, 2).unflatten(1, (-1, 4)).transpose(1, 2)
        return torch.cat(_haar(bands), dim=1)

    def inverse(self, *values: Tensor, shapes: Sequence[torch.Size]) -> Tensor:
        (y,) = values
        pixels = torch.stack(_haar(y.unflatten(1, (4, -1))), dim=2)
        return functional.pixel_shuffle(pixels.flatten(1, 2), 2)


def _haar(four: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The transform of [N, 4, C, h, w], which is its own inverse, as four of [N, C, h, w]."""
    a, b, c, d = four.unbind(1)
    top, bottom, left, right = a + b, c + d, a - b, c - d
    return (top + bottom) / 2, (left + right) / 2, (top - bottom) / 2, (left - right) / 2


class ShuffleChannels(Wiring):
    """The channels (dimension 1) in another, fixed order, drawn from a seed."""

    order: Tensor

    def __init__(self, channels: int, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("order", torch.randperm(channels, generator=generator, device="cpu"))

    def forward(self, *values: Tensor) -> Tensor:
        (x,) = values
        return x.index_select(1, self.order)

    def inverse(self, *values: Tensor, shapes: Sequence[torch.Size]) -> Tensor:
        (y,) = values
        return y.index_select(1, self.order.argsort())
