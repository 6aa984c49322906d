"""Nets on graphs, sets and points: adjacency, scattering, message passing, sparse matrices, distances."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from planning.corpus.registry import net
from torch import Tensor, nn


def nodes_and_edges() -> tuple[Tensor, Tensor]:
    return torch.randn(6, 5), torch.randint(6, (2, 9))


@net(lambda: (torch.randn(6, 5), torch.rand(6, 6)))
class GraphConvolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(5, 5) for _ in range(2))

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        weights = adjacency / adjacency.sum(-1, keepdim=True)
        for layer in self.layers:
            x = x + F.relu(weights @ layer(x))
        return x


@net(nodes_and_edges)
class MessagePassing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.message, self.update = nn.Linear(10, 5), nn.GRUCell(5, 5)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        source, target = edges
        for _ in range(2):
            messages = F.relu(self.message(torch.cat([x[source], x[target]], -1)))
            x = self.update(torch.zeros_like(x).index_add(0, target, messages), x)
        return x


@net(nodes_and_edges)
class GraphAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.map, self.score = nn.Linear(5, 5), nn.Linear(10, 1)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        source, target = edges[0], edges[1]
        h = self.map(x)
        scores = F.leaky_relu(self.score(torch.cat([h[source], h[target]], -1))).squeeze(-1).exp()
        total = scores.new_zeros(6).scatter_add(0, target, scores)
        weighted = h[source] * (scores / total[target])[:, None]
        return x + torch.zeros_like(h).scatter_add(0, target[:, None].expand(-1, 5), weighted)


@net(lambda: (torch.randn(3, 5, 4), torch.tensor([[1.0] * 5, [1.0] * 3 + [0.0] * 2, [1.0] * 4 + [0.0]])))
class DeepSets(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.phi = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6))
        self.rho = nn.Sequential(nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 2))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        y = self.phi(x) * mask.to(x.dtype).unsqueeze(-1)
        return self.rho(torch.cat([y.sum(1), y.amax(1)], -1))


@net(lambda: (torch.randn(2, 6, 3, requires_grad=True),))
class NearestNeighbours(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.edge, self.out = nn.Linear(6, 7), nn.Linear(7, 3)

    def forward(self, points: Tensor) -> Tensor:
        near = torch.cdist(points, points).topk(3, largest=False).indices
        neighbours = torch.stack([p[i] for p, i in zip(points, near, strict=True)])
        centre = points.unsqueeze(2).expand_as(neighbours)
        y = F.relu(self.edge(torch.cat([centre, neighbours - centre], -1))).amax(2)
        return self.out(y)


@net(lambda: (torch.randn(6, 5),))
class SparseAdjacency(nn.Module):
    adjacency: Tensor

    def __init__(self) -> None:
        super().__init__()
        place = torch.tensor([[0, 1, 2, 3, 4, 5, 0], [1, 2, 3, 4, 5, 0, 3]])
        self.register_buffer(
            "adjacency",
            torch.sparse_coo_tensor(place, torch.rand(7), (6, 6), check_invariants=True).coalesce(),
        )
        self.layers = nn.ModuleList(nn.Linear(5, 5) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + torch.tanh(torch.sparse.mm(self.adjacency, layer(x)))
        return x


@net(lambda: (torch.randn(2, 4, 3), torch.rand(2, 5, 5, 2) * 2 - 1))
class SampledFields(nn.Module):
    """A field of features read at given places, as in spatial transformers and neural fields."""

    def __init__(self) -> None:
        super().__init__()
        self.grid = nn.Parameter(torch.randn(1, 4, 4, 4))
        self.warp, self.out = nn.Linear(2, 2), nn.Linear(4, 3)

    def forward(self, x: Tensor, places: Tensor) -> Tensor:
        grid = self.grid.expand(places.shape[0], -1, -1, -1)
        read = F.grid_sample(grid, places + 0.1 * torch.tanh(self.warp(places)), align_corners=True)
        return self.out(read.flatten(2).transpose(1, 2)) + x.mean((1, 2), keepdim=True)
