"""Einsum, tensor contractions, mixers, bilinear forms, capsules, and modules built of plain matrices."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from planning.corpus.registry import net
from torch import Tensor, nn


def tokens() -> tuple[Tensor]:
    return (torch.randn(2, 5, 6),)


@net(tokens)
class EinsumHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Parameter(torch.randn(6, 2, 3) * 0.4) for _ in range(3))
        self.o = nn.Parameter(torch.randn(2, 3, 6) * 0.4)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            q, k, v = (torch.einsum("bnd,dhe->bhne", x, w) for w in (self.q, self.k, self.v))
            weights = torch.einsum("bhqe,bhke->bhqk", q, k).softmax(-1)
            x = x + torch.einsum("bhqk,bhke,hed->bqd", weights, v, self.o)
        return x


@net(tokens)
class EinsumCouplings(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.ParameterList(torch.randn(3, 3) * 0.5 for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        for w in self.w:
            a, b = b, a + torch.einsum("bnd,de->bne", torch.tanh(b), w)
        return torch.cat([a, b], -1)


@net(tokens)
class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(6) for _ in range(4))
        self.places = nn.ModuleList(
            nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 5)) for _ in range(2)
        )
        self.channels = nn.ModuleList(
            nn.Sequential(nn.Linear(6, 9), nn.GELU(), nn.Linear(9, 6)) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        for i in range(2):
            x = x + self.places[i](self.norms[2 * i](x).transpose(1, 2)).transpose(1, 2)
            x = x + self.channels[i](self.norms[2 * i + 1](x))
        return x


@net(lambda: (torch.randn(4, 5), torch.randn(4, 6)))
class BilinearForms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.form, self.out = nn.Bilinear(5, 6, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.out(torch.tanh(self.form(x, y)) + torch.outer(x[:, 0], y[0, :1]).expand(-1, 7))


@net(lambda: (torch.randn(2, 6, 4),))
class Capsules(nn.Module):
    """Routing by agreement."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 3, 5, 4) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        votes = torch.einsum("icod,bid->bico", self.weight, x)
        logits = torch.zeros(x.shape[0], 6, 3, dtype=x.dtype)
        for _ in range(2):
            agreed = (logits.softmax(-1).unsqueeze(-1) * votes).sum(1)
            norm = agreed.norm(dim=-1, keepdim=True)
            out = agreed * norm / (1 + norm**2)
            logits = logits + (votes * out.unsqueeze(1)).sum(-1)
        return out


@net(tokens)
class GatedMixing(nn.Module):
    """A gate across places, as in gMLP."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.inlet, self.outlet = nn.LayerNorm(6), nn.Linear(6, 12), nn.Linear(6, 6)
        self.places = nn.Conv1d(5, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            u, v = F.gelu(self.inlet(self.norm(x))).chunk(2, dim=-1)
            x = x + self.outlet(u * self.places(v))
        return x


@net(lambda: (torch.randn(4, 3), torch.randn(4, 6)))
class HyperNetwork(nn.Module):
    """One net makes the weights of another, for each row."""

    def __init__(self) -> None:
        super().__init__()
        self.make = nn.Linear(3, 6 * 5 + 5)

    def forward(self, task: Tensor, x: Tensor) -> Tensor:
        weight, bias = self.make(task).split([30, 5], -1)
        return torch.baddbmm(bias.unsqueeze(1), x.unsqueeze(1), weight.view(-1, 6, 5)).squeeze(1).tanh()


@net(tokens)
class MatrixFunctions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 6) * 0.1)
        self.diagonal = nn.Parameter(torch.rand(6) + 1)

    def forward(self, x: Tensor) -> Tensor:
        skew = self.weight - self.weight.t()
        rotation = torch.matrix_exp(skew)
        y = x @ rotation @ torch.diag(self.diagonal)
        covariance = y.mT @ y + torch.eye(6, dtype=x.dtype)
        return torch.linalg.solve(covariance, y.mT).mT + y


@net(lambda: (torch.randn(4, 2, requires_grad=True),))
class RandomFeatures(nn.Module):
    frequencies: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.randn(2, 5))
        self.layers = nn.ModuleList(nn.Linear(w, 6) for w in (10, 6, 16))

    def forward(self, x: Tensor) -> Tensor:
        encoded = torch.cat([(x @ self.frequencies).sin(), (x @ self.frequencies).cos()], -1)
        y = torch.sin(3 * self.layers[0](encoded))
        y = torch.sin(self.layers[1](y))
        return self.layers[2](torch.cat([y, encoded], -1))
