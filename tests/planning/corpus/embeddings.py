"""Embeddings and tied weights: tables read by index, used again as heads, layers used many times."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from planning.corpus.registry import net
from torch import Tensor, nn


def ids() -> tuple[Tensor]:
    return (torch.randint(12, (2, 5)),)


@net(ids)
class TiedLanguageModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(12, 8), nn.Embedding(5, 8)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 12, bias=False)
        self.head.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        for layer in self.layers:
            x = x + F.gelu(layer(x))
        return self.head(self.norm(x))


@net(ids)
class BagOfWords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag, self.out = nn.EmbeddingBag(12, 6, mode="mean"), nn.Linear(6, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(F.relu(self.bag(ids)))


@net(lambda: (torch.randint(12, (4,)), torch.randint(7, (4,)), torch.randn(4, 3)))
class TabularFactors(nn.Module):
    """Pairwise products of embeddings, as in factorization machines."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.numbers = nn.Embedding(12, 5), nn.Embedding(7, 5), nn.Linear(3, 5)
        self.deep = nn.Sequential(nn.Linear(15, 6), nn.ReLU(), nn.Linear(6, 1))

    def forward(self, a: Tensor, b: Tensor, x: Tensor) -> Tensor:
        parts = torch.stack([self.one(a), self.two(b), self.numbers(x)], 1)
        pairs = 0.5 * (parts.sum(1).pow(2) - parts.pow(2).sum(1)).sum(-1, keepdim=True)
        return torch.sigmoid(pairs + self.deep(parts.flatten(1)))


@net(ids)
class HashedAndPadded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(7, 4))
        self.padded = nn.Embedding(12, 4, padding_idx=0)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table[(ids * 31 + 7) % 7] + F.embedding((ids * 17) % 7, self.table) + self.padded(ids)
        return x.cumsum(1).tanh()


@net(ids)
class OneHots(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.out = nn.Parameter(torch.randn(12, 6)), nn.Linear(6, 4)

    def forward(self, ids: Tensor) -> Tensor:
        hot = F.one_hot(ids, 12).to(self.weight.dtype)
        return self.out(torch.relu(hot @ self.weight))


@net(lambda: (torch.randn(4, 8),))
class TiedAutoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(8, 5)
        self.bias = nn.Parameter(torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.tanh(self.encode(x)), self.encode.weight.t(), self.bias)


@net(lambda: (torch.randn(4, 8),))
class OneLayerManyTimes(nn.Module):
    """A layer shared in depth, as in ALBERT and in unrolled fixed points."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.layer, self.inlet = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        injected = self.inlet(x)
        z = torch.zeros_like(x)
        for _ in range(4):
            z = torch.tanh(self.layer(self.norm(z)) + injected)
        return z


@net(lambda: (torch.randn(4, 8), torch.randn(4, 8)))
class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cosine_similarity(self.tower(x), self.tower(y))


@net(lambda: (torch.randn(4, 8),))
class SharedCouplings(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.f, self.g = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        for _ in range(3):
            a = a + torch.tanh(self.f(b))
            b = b + torch.tanh(self.g(a))
        return torch.cat([a, b], -1)
