"""The first unit of a RevNet's stage: two streams in, two out, in another shape, hence not invertible."""

from __future__ import annotations

from torch import Tensor, nn

from revgraph.blocks.functions import BasicFunction, BottleneckFunction
from revgraph.blocks.shortcuts import basic_shortcut, bottleneck_shortcut
from revgraph.couplings import Boundary


class Entry(Boundary):
    """`y1 = F(x2) + s1(x1)`, `y2 = G(y1) + s2(x2)` (Gomez et al. 2017, section 3.1)."""

    outputs = 2

    def __init__(self, f: nn.Module, g: nn.Module, shortcut1: nn.Module, shortcut2: nn.Module) -> None:
        super().__init__()
        self.f, self.g = f, g
        self.shortcut1, self.shortcut2 = shortcut1, shortcut2

    def forward(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
        y1 = self.f(x2) + self.shortcut1(x1)
        y2 = self.g(y1) + self.shortcut2(x2)
        return y1, y2


class BasicEntry(Entry):
    """The entry of `BasicFunction`s: each stream from [N, in, H, W] to [N, out, H / stride, W / stride].

    F takes the stride; `preactivate` is about F alone, G is always whole.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int = 1, preactivate: bool = True
    ) -> None:
        super().__init__(
            BasicFunction(in_channels, out_channels, stride, preactivate),
            BasicFunction(out_channels),
            basic_shortcut(in_channels, out_channels, stride),
            basic_shortcut(in_channels, out_channels, stride),
        )


class BottleneckEntry(Entry):
    """The entry of `BottleneckFunction`s; shapes and arguments as for `BasicEntry`."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int = 1, preactivate: bool = True
    ) -> None:
        super().__init__(
            BottleneckFunction(in_channels, out_channels, stride, preactivate),
            BottleneckFunction(out_channels),
            bottleneck_shortcut(in_channels, out_channels, stride),
            bottleneck_shortcut(in_channels, out_channels, stride),
        )
