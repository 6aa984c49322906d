"""Scalar and broadcast terms: sums with means, learned scalars, gates, temperatures, decays."""

from __future__ import annotations

import torch
from planning.corpus.registry import net
from torch import Tensor, nn


def pair() -> tuple[Tensor]:
    return (torch.randn(3, 5, 12),)


class Halves(nn.Module):
    """Two halves of the input in turn, coupled by `term`."""

    def __init__(self, depth: int = 4) -> None:
        super().__init__()
        self.f = nn.ModuleList(nn.Linear(6, 6) for _ in range(depth))

    def term(self, f: nn.Module, b: Tensor) -> Tensor:
        return f(b)

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        for f in self.f:
            a, b = b, a + self.term(f, b)
        return torch.cat([a, b], -1)


@net(pair)
class MeanTerms(Halves):
    def term(self, f: nn.Module, b: Tensor) -> Tensor:
        return f(b).mean()


@net(pair)
class BroadcastTerms(Halves):
    def term(self, f: nn.Module, b: Tensor) -> Tensor:
        return torch.tanh(f(b)).mean(1, keepdim=True)


@net(pair)
class LearnedScalars(Halves):
    """A scalar for each branch, as in ReZero and LayerScale."""

    def __init__(self) -> None:
        super().__init__(3)
        self.alpha = nn.Parameter(torch.tensor(0.3))

    def term(self, f: nn.Module, b: Tensor) -> Tensor:
        return self.alpha * torch.tanh(f(b))


@net(pair)
class NormalizedTerms(Halves):
    def term(self, f: nn.Module, b: Tensor) -> Tensor:
        y = f(b)
        return y / (1 + y.norm())


@net(pair)
class ScalarGates(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(12, 12) for _ in range(3))
        self.gates = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            x = x + torch.sigmoid(self.gates[i]) * layer(x)
        return x / self.gates.exp().sum()


@net(pair)
class ScalarsOfTheInput(nn.Module):
    """Numbers that the net computes of its values, and adds or multiplies elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(12, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x)
        scale, shift = y.std(), y.amax()
        y = (y - shift) / scale
        return self.two(y) * x.abs().mean() + shift


@net(pair)
class AddedParameters(nn.Module):
    """Couplings whose terms are parameters, or constants."""

    def __init__(self) -> None:
        super().__init__()
        self.bias, self.row = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(1, 5, 12))
        self.layer = nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.bias
        x = x + torch.tanh(self.layer(x))
        x = x + self.row
        return x - 0.5 + self.bias * 2


@net(pair)
class ScaledStreams(nn.Module):
    """Momentum with decays that are numbers and parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.f = nn.ModuleList(nn.Linear(12, 12) for _ in range(3))
        self.decay = nn.Parameter(torch.tensor(0.9))

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros_like(x)
        for f in self.f:
            v = 0.9 * v + 0.1 * torch.tanh(f(x))
            x = x + v
        return self.decay * x + v
