"""Residual functions: F and G of a coupling, and the body of a residual unit."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from revgraph.blocks.layers import Convolution, batch_norm


class BasicFunction(nn.Sequential):
    """[BN, ReLU], conv 3x3 with the stride, BN, ReLU, conv 3x3.

    [N, in, H, W] to [N, out, H / stride, W / stride]; `out_channels` is `in_channels` unless given. Without
    `preactivate` the bracketed part is left out: what comes in is activated already.
    """

    def __init__(
        self, in_channels: int, out_channels: int | None = None, stride: int = 1, preactivate: bool = True
    ) -> None:
        out = in_channels if out_channels is None else out_channels
        super().__init__(
            OrderedDict(
                **(activation(1, in_channels) if preactivate else {}),
                conv1=Convolution(in_channels, out, 3, stride),
                **activation(2, out),
                conv2=Convolution(out, out, 3),
            )
        )


class BottleneckFunction(nn.Sequential):
    """[BN, ReLU], conv 1x1 to out/4 with the stride, BN, ReLU, conv 3x3, BN, ReLU, conv 1x1 to out.

    [N, in, H, W] to [N, out, H / stride, W / stride]; arguments as for `BasicFunction`.

    Raises:
        ValueError: `out_channels` is no multiple of 4.
    """

    def __init__(
        self, in_channels: int, out_channels: int | None = None, stride: int = 1, preactivate: bool = True
    ) -> None:
        out = in_channels if out_channels is None else out_channels
        if out % 4:
            raise ValueError(f"a bottleneck's out_channels must be a multiple of 4, not {out}")
        narrow = out // 4
        super().__init__(
            OrderedDict(
                **(activation(1, in_channels) if preactivate else {}),
                conv1=Convolution(in_channels, narrow, 1, stride),
                **activation(2, narrow),
                conv2=Convolution(narrow, narrow, 3),
                **activation(3, narrow),
                conv3=Convolution(narrow, out, 1),
            )
        )


def activation(number: int, channels: int) -> dict[str, nn.Module]:
    """BN and ReLU under the names they have before convolution `number`.

    The ReLU is out of place: its input may be a stream that others read.
    """
    return {f"norm{number}": batch_norm(channels), f"relu{number}": nn.ReLU()}
