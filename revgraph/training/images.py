"""Labelled images as tensors, and the form in which a network sees them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

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
    """A training and a test split of one data set.

    `mean` is the mean image of the training split, [3, 32, 32], float32 in 0 to 1. `flip` says whether an
    image and its mirror image mean the same.
    """

    name: str
    classes: int
    train: Images
    test: Images
    mean: Tensor
    flip: bool


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
