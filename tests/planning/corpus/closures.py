"""Constants: in closures, on modules, of the file, made in forward; functions that are attributes."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from planning.corpus.registry import net
from torch import Tensor, nn

KERNEL = torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]]) / 16


def rows() -> tuple[Tensor]:
    return (torch.randn(4, 8),)


def scaled_by(numbers: list[float]) -> Callable[[Tensor], Tensor]:
    constant = torch.tensor(numbers)

    def scaled(x: Tensor) -> Tensor:
        return torch.tanh(x * constant.to(x.dtype))

    return scaled


@net(rows)
class ConstantInAClosure(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = scaled_by([0.5 + i for i in range(8)])
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.scale(self.one(x))
        return x + self.two(self.scale(x))


@net(lambda: (torch.randn(2, 3, 6, 6),))
class ConstantOfTheFile(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        kernel = KERNEL.to(x.dtype).expand(3, 1, 3, 3)
        x = F.conv2d(x, kernel, padding=1, groups=3)
        return x + F.conv2d(F.relu(self.conv(x)), kernel, padding=1, groups=3)


@net(rows)
class TensorThatIsNoBuffer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.constants = [torch.randn(8), torch.randn(4, 8)]
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        first, second = (each.to(x.dtype) for each in self.constants)
        x = x * first + torch.sigmoid(self.one(x))
        return x + self.two(x) * second


@net(rows)
class MadeInForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.tril(torch.ones(8, 8, dtype=x.dtype, device=x.device))
        ramp = torch.linspace(0, 1, 8, dtype=x.dtype)
        for i, layer in enumerate(self.layers):
            x = x + F.linear(torch.tanh(layer(x)), mask) * ramp / math.sqrt(i + 1)
        return x


@net(rows)
class FunctionsAsAttributes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.act = functools.partial(F.leaky_relu, negative_slope=0.3)
        self.functions = {"sine": torch.sin, "square": lambda x: x * x}
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.functions["sine"](self.one(self.act(x)))
        return x + self.functions["square"](self.two(x)) * 0.1


@net(rows, untraced="gradient mode, autocast or the default dtype is changed")
class FrozenStatistics(nn.Module):
    """Buffers that normalize, and a moving average that the forward updates."""

    mean: Tensor
    average: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.randn(8))
        self.register_buffer("average", torch.zeros(8))
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.one(x - self.mean))
        with torch.no_grad():
            self.average.mul_(0.9).add_(0.1 * y.mean(0))
        return x + self.two(y - self.average)


class Average(nn.Module):
    average: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("average", torch.zeros(8))

    def forward(self, y: Tensor) -> Tensor:
        with torch.no_grad():
            self.average.mul_(0.9).add_(0.1 * y.mean(0))
        return y - self.average


@net(rows)
class StatisticsInASubmodule(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.average = nn.Linear(8, 8), nn.Linear(8, 8), Average()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.two(self.average(F.relu(self.one(x))))


class Scaled(Average):
    def forward(self, y: Tensor) -> Tensor:
        return torch.tanh(super().forward(y)) * y


@net(rows)
class StatisticsThatAreReplayed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers, self.scales = (
            nn.ModuleList(f() for _ in range(3)) for f in (lambda: nn.Linear(8, 8), Scaled)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer, scale in zip(self.layers, self.scales, strict=True):
            x = x + layer(scale(x))
        return x
