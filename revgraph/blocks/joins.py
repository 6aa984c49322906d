"""Joins and starts: where branches of a graph meet, and where a stream begins with nothing."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from revgraph.couplings import Boundary


class Sum(nn.Module):
    """The sum of any number of values of one shape: a skip's end, or a coupling where it can be undone."""

    def forward(self, *values: Tensor) -> Tensor:
        first, *rest = values
        for value in rest:
            first = first + value
        return first


class Zeros(Boundary):
    """Zeros in the shape of a value: a velocity, or a second stream, to begin with."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


class MultiscaleHead(Boundary):
    """The means of several maps, [N, C_i, H_i, W_i], side by side, then linear: class scores [N, classes].

    `channels` is the sum of the C_i.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, classes)

    def forward(self, *maps: Tensor) -> Tensor:
        return self.linear(torch.cat([each.mean((2, 3)) for each in maps], dim=1))
