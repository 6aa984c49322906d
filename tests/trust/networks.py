"""Networks for training in several processes, in float64, and the weights and images they start from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import revgraph as rg

BATCH, FEATURES, WIDTH = 8, 6, 8
Function = Callable[[], nn.Module]


class Sum(torch.autograd.Function):
    """The sum over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


class SyncNorm(nn.Module):
    """Batch normalization over all processes, or over one; torch's own for several needs GPUs."""

    together = True

    def forward(self, x: Tensor) -> Tensor:
        sums = torch.stack([x.mean(0), x.square().mean(0)])
        mean, square = Sum.apply(sums) / dist.get_world_size() if self.together else sums
        return (x - mean) / (square - mean.square() + 1e-5).sqrt()


def layers(normalization: Function) -> Function:
    return lambda: nn.Sequential(
        normalization(), nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH)
    )


class Scaling(nn.Module):
    """What an affine coupling asks of its function: the logarithm of a scale, and a shift."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.tanh(self.scale(x)), self.shift(x)


class Net(nn.Module):
    """Three blocks of two couplings between ordinary layers, and a layer that nothing uses."""

    def __init__(self, block: Function, spare: bool = False) -> None:
        super().__init__()
        self.stem = nn.Linear(FEATURES, 2 * WIDTH)
        self.blocks = nn.ModuleList(block() for _ in range(3))
        self.head = nn.Linear(2 * WIDTH, 4)
        if spare:
            self.spare = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.stem(x).chunk(2, 1)
        for block in self.blocks:
            a, b = block(a, b)
        return self.head(torch.cat([a, b], 1))


def additive(normalization: Function) -> Function:
    return lambda: rg.Additive(layers(normalization)(), layers(normalization)())


def make(block: Function, spare: bool = False) -> tuple[nn.Module, Tensor]:
    """A network and a batch for it, equal in every process."""
    torch.manual_seed(3)
    return Net(block, spare).double(), torch.randn(BATCH, FEATURES, dtype=torch.float64)
