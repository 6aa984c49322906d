"""Convolution and normalization with the constants that every block shares."""

from __future__ import annotations

import math

from torch import nn


class Convolution(nn.Conv2d):
    """A square convolution without bias that keeps height and width at stride 1 (odd `kernel_size`).

    [N, in, H, W] to [N, out, H / stride, W / stride]. Weights start from a normal distribution of standard
    deviation sqrt(2 / (k * k * out)), cut off at two deviations.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride=stride, padding=kernel_size // 2, bias=False
        )

    def reset_parameters(self) -> None:
        height, width = self.kernel_size
        deviation = math.sqrt(2 / (height * width * self.out_channels))
        nn.init.trunc_normal_(self.weight, std=deviation, a=-2 * deviation, b=2 * deviation)


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """Batch normalization whose running averages decay by .99 a step."""
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)
