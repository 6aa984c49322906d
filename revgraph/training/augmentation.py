"""Random crops and mirror images, drawn from an explicit generator."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

PAD = 2


def augmented(
    images: Tensor,
    generator: torch.Generator,
    *,
    flip: bool,
    pad: int = PAD,
    start: int = 0,
    of: int | None = None,
) -> Tensor:
    """Each image cropped at its own random place after padding, and mirrored at random.

    `images` is [N, C, H, W] and so is the result; `pad` pixels of zeros, the mean image's value, surround
    each image before the crop (Gomez et al. 2017, section 4). With `flip`, about half of the images are
    mirrored left to right. Places and mirrorings are drawn from `generator` and from nothing else. With `of`,
    these are the images from `start` on of so many, and each becomes what it would among all of them.
    """
    count, channels, height, width = images.shape
    whole = count if of is None else of
    part = slice(start, start + count)
    place = torch.randint(0, 2 * pad + 1, (2, whole), generator=generator)[:, part]
    rows = place[0, :, None] + torch.arange(height)
    columns = place[1, :, None] + torch.arange(width)
    if flip:
        mirrored = torch.rand(whole, generator=generator)[part] < 0.5
        columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    padded = functional.pad(images, (pad, pad, pad, pad))
    return padded[
        torch.arange(count)[:, None, None, None],
        torch.arange(channels)[None, :, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]
