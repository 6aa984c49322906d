"""The networks compared: modules under their own names, and where among them the reversible stretches are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import revgraph as rg


@dataclass(frozen=True, slots=True)
class Stretch:
    """Additive blocks in a row, as paths of their F and G; `entry` is a unit of two streams before them."""

    blocks: tuple[tuple[str, str], ...]
    entry: str | None = None


@dataclass(frozen=True, slots=True)
class Network:
    """A network of reversible stretches: `net` owns the modules, the paths say how a step goes through them.

    `depth` counts the additive blocks. `rounds` is how often a step is timed.
    """

    name: str
    net: rg.ReversibleModule
    example: Tensor
    stretches: tuple[Stretch, ...]
    rounds: int
    stem: str | None = None
    head: str | None = None

    @property
    def depth(self) -> int:
        return sum(len(stretch.blocks) for stretch in self.stretches)

    @property
    def functions(self) -> list[str]:
        """The paths of every F and G."""
        return [path for stretch in self.stretches for block in stretch.blocks for path in block]


class Chain(nn.Module):
    """Additive blocks in plain code: [N, 2 * width] to [N, 2 * width]."""

    def __init__(self, depth: int, function: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.f = nn.ModuleList(function() for _ in range(depth))
        self.g = nn.ModuleList(function() for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        x1, x2 = x.chunk(2, dim=1)
        for f, g in zip(self.f, self.g, strict=True):
            x1 = x1 + f(x2)
            x2 = x2 + g(x1)
        return torch.cat([x1, x2], dim=1)


def chain(depth: int, rounds: int, seed: int, batch: int = 32, width: int = 64) -> Network:
    """`depth` blocks with F = G = Linear-ReLU-Linear of `width` on each of two streams."""
    torch.manual_seed(seed)
    model = Chain(depth, lambda: nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)))
    x = torch.randn(batch, 2 * width).requires_grad_()
    blocks = tuple((f"f.{index}", f"g.{index}") for index in range(depth))
    return Network("chain", rg.trace(model, x), x, (Stretch(blocks),), rounds)


def revnet(name: str, rounds: int, seed: int, batch: int) -> Network:
    """One of the RevNets that come with revgraph, on random images; a stage's `unit0` is its entry."""
    torch.manual_seed(seed)
    net = rg.load(name, batch=batch)
    example = torch.randn(batch, *net.graph.value[net.graph.inputs[0]].shape[1:])
    stretches: dict[str, list[tuple[str, str]]] = {}
    for path, module in net.named_modules():
        if isinstance(module, rg.Additive):
            stretches.setdefault(path.rpartition(".")[0], []).append((f"{path}.f", f"{path}.g"))
    found = tuple(Stretch(tuple(blocks), f"{stage}.unit0") for stage, blocks in stretches.items())
    return Network(name, net, example, found, rounds, stem="stem", head="head")
