"""Labelled images as tensors, and the form in which a network sees them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from revgraph.errors import DataError
from revgraph.specs import InputShape
from revgraph.training.augmentation import augmented

PIXELS = (3, 32, 32)


@dataclass(frozen=True, slots=True, eq=False)
class Images:
    """Images with their labels.

    `pixels` is [N, 3, 32, 32], either uint8 in 0 to 255 or float32 in 0 to 1; `labels` is [N], int64.
    """

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, slots=True, eq=False)
class Data:
    """A training and a test split of one data set: a task of labelled images.

    `mean` is the mean image of the training split, [3, 32, 32], float32 in 0 to 1. `flip` says whether an
    image and its mirror image mean the same.
    """

    name: str
    classes: int
    train: Images
    test: Images
    mean: Tensor
    flip: bool

    @property
    def samples(self) -> str:
        return "images"

    @property
    def judged(self) -> str:
        return "images"

    def drawn(
        self, chosen: Tensor, generator: torch.Generator, *, start: int, of: int
    ) -> tuple[Tensor, Tensor]:
        """The images, normalised and augmented, [N, 3, 32, 32] and float32, and their labels, [N]."""
        images = normalised(self.train.pixels[chosen], self.mean)
        return augmented(images, generator, flip=self.flip, start=start, of=of), self.train.labels[chosen]

    def tested(self, part: slice) -> tuple[Tensor, Tensor]:
        return normalised(self.test.pixels[part], self.mean), self.test.labels[part]

    def bits_per_byte(self, loss: float) -> None:
        return None

    def fitted(self, shape: InputShape) -> Data:
        if not shape.dtype.is_floating_point:
            kind = str(shape.dtype).removeprefix("torch.")
            raise DataError(
                f"the network takes {shape.name}, {list(shape.shape)} of {kind}, and {self.name} gives "
                f"images, {['N', *PIXELS]} of float32: choose a network for images"
            )
        return self

    def identity(self) -> dict[str, Any]:
        return {"data": self.name, "training images": len(self.train), "test images": len(self.test)}


def unit_scale(pixels: Tensor) -> Tensor:
    """`pixels` as float32 in 0 to 1, of the same shape."""
    return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels


def mean_image(pixels: Tensor) -> Tensor:
    """The mean over the first dimension as float32 in 0 to 1: [N, 3, 32, 32] to [3, 32, 32].

    Bytes are added up as integers, so that 50,000 images need no second copy in float32.
    """
    if pixels.dtype == torch.uint8:
        return (pixels.sum(0, dtype=torch.int64).double() / (255 * len(pixels))).float()
    return pixels.mean(0)


def normalised(pixels: Tensor, mean: Tensor) -> Tensor:
    """What the network is given: float32 in 0 to 1, minus the mean image (Gomez et al. 2017, section 4)."""
    return unit_scale(pixels) - mean
