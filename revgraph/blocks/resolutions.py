"""From one resolution to another: functions of couplings between the streams of a multi-scale network."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from revgraph.blocks.functions import activation
from revgraph.blocks.layers import Convolution


class Downward(nn.Sequential):
    """BN, ReLU, conv 3x3 of stride `factor`: [N, in, H, W] to [N, out, H / factor, W / factor]."""

    def __init__(self, in_channels: int, out_channels: int, factor: int = 2) -> None:
        super().__init__(
            OrderedDict(
                **activation(1, in_channels),
                conv1=Convolution(in_channels, out_channels, 3, stride=factor),
            )
        )


class Upward(nn.Sequential):
    """BN, ReLU, conv 1x1, then each pixel `factor` times: [N, in, H, W] to [N, out, factor H, factor W]."""

    def __init__(self, in_channels: int, out_channels: int, factor: int = 2) -> None:
        super().__init__(
            OrderedDict(
                **activation(1, in_channels),
                conv1=Convolution(in_channels, out_channels, 1),
                larger=nn.UpsamplingNearest2d(scale_factor=factor),
            )
        )
