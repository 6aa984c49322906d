"""Routed nets: mixtures of experts, gates, selections by values and indices."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from planning.corpus.registry import net
from torch import Tensor, nn


def rows() -> tuple[Tensor]:
    return (torch.randn(6, 8),)


def expert() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8))


@net(rows)
class SoftMixture(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.router, self.experts = nn.Linear(8, 3), nn.ModuleList(expert() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        weights = self.router(x).softmax(-1)
        results = torch.stack([each(x) for each in self.experts], 1)
        return x + (weights.unsqueeze(-1) * results).sum(1)


@net(rows)
class TopTwoMixture(nn.Module):
    """The two best experts of each row, computed densely, with a loss of balance."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.experts = nn.Linear(8, 4), nn.ModuleList(expert() for _ in range(4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.router(x)
        best, index = logits.topk(2, -1)
        weights = torch.zeros_like(logits).scatter(-1, index, best.softmax(-1))
        y = x
        for i, each in enumerate(self.experts):
            y = y + weights[:, i : i + 1] * each(x)
        return y, 0.01 * logits.softmax(-1).mean(0).square().sum()


@net(rows)
class ExpertWeightsGathered(nn.Module):
    """Each row takes the weights of its best expert."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(8, 3)
        self.inner, self.outer = (
            nn.Parameter(torch.randn(3, 8, 5) * 0.3),
            nn.Parameter(torch.randn(3, 5, 8) * 0.3),
        )

    def forward(self, x: Tensor) -> Tensor:
        probability, chosen = self.router(x).softmax(-1).max(-1)
        hidden = F.relu(torch.bmm(x.unsqueeze(1), self.inner[chosen]))
        return x + probability[:, None] * torch.bmm(hidden, self.outer[chosen]).squeeze(1)


@net(rows)
class ExpertSlots(nn.Module):
    """Rows sorted into slots of equal capacity, and scattered back."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.experts = nn.Linear(8, 2), nn.ModuleList(expert() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        gates = self.router(x).softmax(-1)
        value, index = gates.t().topk(3, dim=-1)
        y = x
        for i, each in enumerate(self.experts):
            taken = each(x.index_select(0, index[i])) * value[i, :, None]
            y = y.index_add(0, index[i], taken)
        return y


@net(rows)
class WhereRouted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.choose, self.one, self.two = nn.Linear(8, 1), expert(), expert()

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = x + torch.where(self.choose(x) > 0, self.one(x), self.two(x))
        return x


@net(rows)
class Highway(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gates = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.maps = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for gate, function in zip(self.gates, self.maps, strict=True):
            t = torch.sigmoid(gate(x))
            x = t * torch.relu(function(x)) + (1 - t) * x
        return x


@net(rows)
class MaxoutAndTopK(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide, self.back = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.wide(x).view(-1, 8, 3).amax(-1)
        kept = y >= y.topk(4, -1).values[:, -1:]
        return x + self.back(y * kept)


@net(rows)
class GumbelRouting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.router, self.experts = nn.Linear(8, 2), nn.ModuleList(expert() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        choice = F.gumbel_softmax(self.router(x), tau=0.7, hard=True)
        return x + sum(choice[:, i, None] * each(x) for i, each in enumerate(self.experts))


@net(rows)
class ConditionalMasking(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x)
        y = torch.masked_fill(y, y < 0, 0.0)
        y = y.clamp(max=2.0) * (y.abs() > 0.1).to(y.dtype)
        return torch.lerp(x, self.two(y), 0.3)


@net(rows)
class StraightThrough(nn.Module):
    """Vector quantization with its commitment, as in VQ-VAE."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(8, 4), nn.Linear(4, 8)
        self.codes = nn.Embedding(5, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.encode(x)
        distances = (
            z.pow(2).sum(1, keepdim=True) - 2 * z @ self.codes.weight.t() + self.codes.weight.pow(2).sum(1)
        )
        q = self.codes(distances.argmin(1))
        commitment = F.mse_loss(q, z.detach()) + 0.25 * F.mse_loss(q.detach(), z)
        return self.decode(z + (q - z).detach()), commitment
