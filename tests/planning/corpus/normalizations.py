"""Normalizations of activations and weights, and activation functions of every kind."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from planning.corpus.registry import net
from torch import Tensor, nn
from torch.nn.utils import parametrizations


def image() -> tuple[Tensor]:
    return (torch.randn(2, 4, 6, 6),)


def rows() -> tuple[Tensor]:
    return (torch.randn(4, 8),)


@net(image)
class GroupsAndInstances(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        self.norms = nn.ModuleList([nn.GroupNorm(2, 4), nn.InstanceNorm2d(4), nn.LocalResponseNorm(2)])

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = x + norm(conv(x))
        return x


@net(rows)
class LayerNormsAround(nn.Module):
    """Norms before and after, as in Sandwich LN, with a root mean square one in plain arithmetic."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.LayerNorm(8), nn.LayerNorm(8, elementwise_affine=False)
        self.linear, self.gain = nn.Linear(8, 8), nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.after(self.linear(self.before(x)))
        y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.gain
        return x + F.relu(self.linear(y))


@net(rows)
class WeightNormed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = parametrizations.weight_norm(nn.Linear(8, 8))
        self.two = parametrizations.weight_norm(nn.Linear(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.two(F.elu(self.one(x)))


@net(rows)
class SpectrallyNormed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = parametrizations.spectral_norm(nn.Linear(8, 8))
        self.two = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(x + F.leaky_relu(self.one(x), 0.1))


@net(rows)
class BatchNormsInAChain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(each for _ in range(3) for each in (nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Softplus()))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


@net(image)
class StandardizedWeights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4, 3, 3))
        self.norm = nn.GroupNorm(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        deviation = self.weight.std((1, 2, 3), keepdim=True)
        y = F.conv2d(x, (self.weight - mean) / (deviation + 1e-5), padding=1)
        return x + F.relu(self.norm(y))


@net(lambda: (torch.randn(2, 4, 6, 6), torch.randn(2, 4, 6, 6)))
class AdaptiveInstances(nn.Module):
    """The statistics of one image given to another."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Conv2d(4, 5, 3, padding=1), nn.Conv2d(5, 3, 3, padding=1)

    def forward(self, content: Tensor, style: Tensor) -> Tensor:
        a, b = self.encode(content), self.encode(style)
        a = (a - a.mean((2, 3), keepdim=True)) / (a.std((2, 3), keepdim=True) + 1e-5)
        return self.decode(a * b.std((2, 3), keepdim=True) + b.mean((2, 3), keepdim=True))


@net(rows)
class Activations(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(6))
        self.acts = nn.ModuleList([nn.Mish(), nn.SELU(), nn.CELU(), nn.Softsign(), nn.PReLU(), nn.Hardtanh()])

    def forward(self, x: Tensor) -> Tensor:
        for layer, act in zip(self.layers, self.acts, strict=True):
            x = act(layer(x))
        return x


@net(rows)
class Dropouts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.drops = nn.ModuleList([nn.Dropout(0.3), nn.AlphaDropout(0.2), nn.RReLU()])

    def forward(self, x: Tensor) -> Tensor:
        for layer, drop in zip(self.layers, self.drops, strict=True):
            x = x + drop(layer(x))
        return x


@net(rows)
class ParametersOfTheNet(nn.Module):
    """Scales and shifts that are parameters of the net itself, and a frozen layer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(8)), nn.Parameter(torch.zeros(8))
        self.frozen, self.live = nn.Linear(8, 8).requires_grad_(False), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.frozen(x)) * self.scale + self.shift
        return torch.addcmul(x, self.live(x), self.scale, value=0.5)
