"""The ends of a convolutional classifier: stems from pixels to features, the head to class scores."""

from __future__ import annotations

from torch import Tensor, nn

from revgraph.blocks.layers import Convolution, batch_norm
from revgraph.couplings import Boundary


class Stem(Boundary):
    """conv 3x3, BN, ReLU, for small images: [N, in, H, W] to [N, out, H, W]."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = Convolution(in_channels, out_channels, 3)
        self.norm = batch_norm(out_channels)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.norm(self.conv(x)))


class ImageNetStem(Boundary):
    """conv 7x7 of stride 2, max-pool 3x3 of stride 2, BN, ReLU: [N, in, H, W] to [N, out, H / 4, W / 4]."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = Convolution(in_channels, out_channels, 7, stride=2)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.norm = batch_norm(out_channels)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.norm(self.pool(self.conv(x))))


class Head(Boundary):
    """BN, ReLU, global average pool, linear: [N, channels, H, W] to scores [N, classes]."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.norm = batch_norm(channels)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.pool(self.relu(self.norm(x))).flatten(1))
