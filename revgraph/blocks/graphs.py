"""Functions over the nodes of a graph of data, with its edges as an extra input."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class GraphFunction(nn.Module):
    """LayerNorm, ReLU, then a convolution over neighbours: `y = W1 x + W2 mean(x of neighbours)`.

    Takes [nodes, channels] and the edges, [2, edges] as (from, to), and gives [nodes, out]. The mean over
    neighbours is GraphSAGE's (Hamilton et al. 2017); norm and activation come first, as in deep graph
    networks with residual connections (Li et al. 2021). A node without neighbours has a mean of zero.
    """

    def __init__(self, channels: int, out_channels: int | None = None) -> None:
        super().__init__()
        out = channels if out_channels is None else out_channels
        self.norm = nn.LayerNorm(channels)
        self.own = nn.Linear(channels, out)
        self.neighbours = nn.Linear(channels, out, bias=False)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        x = functional.relu(self.norm(x))
        return self.own(x) + self.neighbours(mean_of_neighbours(x, edges))


def mean_of_neighbours(x: Tensor, edges: Tensor) -> Tensor:
    """For each node the mean of x over the nodes that edges come from: [nodes, channels]."""
    sources, targets = edges[0], edges[1]
    total = torch.zeros_like(x).index_add(0, targets, x[sources])
    count = torch.zeros_like(x[:, 0]).index_add(0, targets, torch.ones_like(targets, dtype=x.dtype))
    return total / count.clamp_min(1).unsqueeze(1)
