"""Shortcuts: how a value passes by a residual function that changes its shape."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from revgraph.blocks.layers import Convolution


class PoolAndPad(nn.Module):
    """Average pooling of the stride's size, then zero channels, as many before as after.

    [N, in, H, W] to [N, out, H / stride, W / stride].

    Raises:
        ValueError: `out_channels` is below `in_channels`, or exceeds it by an odd number.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        added = out_channels - in_channels
        if added < 0 or added % 2:
            raise ValueError(
                f"zero channels cannot lead from {in_channels} channels to {out_channels}: "
                "the difference must be even and not negative"
            )
        self.stride, self.padding = stride, added // 2

    def forward(self, x: Tensor) -> Tensor:
        if self.stride > 1:
            x = functional.avg_pool2d(x, self.stride)
        return functional.pad(x, (0, 0, 0, 0, self.padding, self.padding)) if self.padding else x


def basic_shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """The shortcut beside a `BasicFunction`: without parameters."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return PoolAndPad(in_channels, out_channels, stride)


def bottleneck_shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """The shortcut beside a `BottleneckFunction`: a 1x1 convolution where the shape changes."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return Convolution(in_channels, out_channels, 1, stride)
