"""Units of an ordinary residual network (He et al. 2016, pre-activation)."""

from __future__ import annotations

from torch import Tensor, nn

from revgraph.blocks.functions import BasicFunction, BottleneckFunction
from revgraph.blocks.shortcuts import basic_shortcut, bottleneck_shortcut
from revgraph.couplings import Boundary


class ResidualUnit(Boundary):
    """`y = F(x) + s(x)`, with the function in `f` and the shortcut in `shortcut`."""

    def __init__(self, f: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.f, self.shortcut = f, shortcut

    def forward(self, x: Tensor) -> Tensor:
        return self.f(x) + self.shortcut(x)


class BasicUnit(ResidualUnit):
    """A residual unit around a `BasicFunction`: [N, in, H, W] to [N, out, H / stride, W / stride]."""

    def __init__(
        self, in_channels: int, out_channels: int | None = None, stride: int = 1, preactivate: bool = True
    ) -> None:
        out = in_channels if out_channels is None else out_channels
        super().__init__(
            BasicFunction(in_channels, out, stride, preactivate), basic_shortcut(in_channels, out, stride)
        )


class BottleneckUnit(ResidualUnit):
    """A residual unit around a `BottleneckFunction`: [N, in, H, W] to [N, out, H / stride, W / stride]."""

    def __init__(
        self, in_channels: int, out_channels: int | None = None, stride: int = 1, preactivate: bool = True
    ) -> None:
        out = in_channels if out_channels is None else out_channels
        super().__init__(
            BottleneckFunction(in_channels, out, stride, preactivate),
            bottleneck_shortcut(in_channels, out, stride),
        )
