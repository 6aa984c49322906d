"""PyTorch Geometric's reversible graph network, with its own way to save memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.clients.client import Client, Example


class RevGNN(nn.Module):
    """Reversible layers of grouped graph convolutions, as in the library's own example (Li et al. 2021)."""

    def __init__(self, depth: int, width: int, groups: int, classes: int) -> None:
        super().__init__()
        from torch_geometric.nn import GroupAddRev

        self.first, self.last = nn.Linear(width, width), nn.Linear(width, classes)
        self.norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(
            GroupAddRev(_Block(width // groups), num_groups=groups) for _ in range(depth)
        )

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = self.first(x)
        mask = torch.zeros_like(x).bernoulli_(0.9) / 0.9
        for layer in self.layers:
            x = layer(x, edge_index, mask)
        return self.last(F.dropout(self.norm(x).relu(), 0.1, self.training))


class _Block(nn.Module):
    """A normalization, an activation, dropout that is the same in both passes, and a convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        from torch_geometric.nn import SAGEConv

        self.norm = nn.LayerNorm(width)
        self.convolution = SAGEConv(width, width)

    def reset_parameters(self) -> None:
        self.norm.reset_parameters()
        self.convolution.reset_parameters()

    def forward(self, x: Tensor, edge_index: Tensor, mask: Tensor) -> Tensor:
        return self.convolution(self.norm(x).relu() * mask, edge_index)


def _example(nodes: int, edges: int, depth: int, width: int, groups: int) -> Example:
    model = RevGNN(depth, width, groups, classes=5)
    return Example(model, (torch.randn(nodes, width), torch.randint(nodes, (2, edges))))


def _switched_off(model: nn.Module) -> None:
    for layer in model.layers:
        layer.disable = True


CLIENTS = (
    Client(
        "GroupAddRev",
        "torch-geometric",
        lambda: _example(40, 120, 6, 16, 2),
        lambda: _example(170_000, 1_200_000, 112, 224, 2),
        checkpoint=lambda model: None,  # it is on unless switched off
        plain=_switched_off,
    ),
)
