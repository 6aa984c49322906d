"""Networks that plans are compared on: in plain PyTorch, of many kinds and sizes, as graphs."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

import revgraph as rg
from benchmarks.tradeoff.networks import Fold, Halves, Joined, random_moves, transformer
from benchmarks.tradeoff.networks import u_net as normalized_u_net


def unequal(layers: int) -> rg.Graph:
    """Layers of different widths, of which no two are alike."""
    rng = random.Random(1)
    widths = [rng.randrange(16, 64) for _ in range(layers + 1)]
    model = nn.Sequential(*(nn.Sequential(nn.Linear(*pair), nn.GELU()) for pair in pairwise(widths)))
    return rg.trace(model, torch.zeros(64, widths[0])).graph


def equal(layers: int) -> rg.Graph:
    model = nn.Sequential(*(nn.Sequential(nn.Linear(64, 64), nn.GELU()) for _ in range(layers)))
    return rg.trace(model, torch.zeros(64, 64)).graph


def random_graph(moves: int) -> rg.Graph:
    """Streams that read each other, with skips and boundaries."""
    model = Fold(random_moves(moves, 4, 8, random.Random(0)))
    return rg.trace(model, *(torch.zeros(4, 8) for _ in range(4))).graph


class DenseLayer(nn.Module):
    """What a DenseNet adds to all that came before (Huang et al. 2017)."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(channels), nn.Conv2d(channels, 4 * growth, 1, bias=False)
        self.norm2, self.conv2 = (
            nn.BatchNorm2d(4 * growth),
            nn.Conv2d(4 * growth, growth, 3, 1, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(torch.relu(self.norm1(x)))
        return self.conv2(torch.relu(self.norm2(x)))


class DenseNet(nn.Module):
    """DenseNet-121: blocks of 6, 12, 24 and 16 layers, with transitions that halve channels and images."""

    def __init__(self, blocks: tuple[int, ...] = (6, 12, 24, 16), growth: int = 32) -> None:
        super().__init__()
        channels = 2 * growth
        self.stem = nn.Sequential(
            nn.Conv2d(3, channels, 7, 2, 3, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, 1),
        )
        self.blocks, self.transitions = nn.ModuleList(), nn.ModuleList()
        for count in blocks:
            self.blocks.append(nn.ModuleList(DenseLayer(channels + n * growth, growth) for n in range(count)))
            channels += count * growth
            last = len(self.blocks) == len(blocks)
            half = channels if last else channels // 2
            mixed = () if last else (nn.Conv2d(channels, half, 1, bias=False), nn.AvgPool2d(2))
            self.transitions.append(nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(), *mixed))
            channels = half
        self.head = nn.Linear(channels, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layers, transition in zip(self.blocks, self.transitions, strict=True):
            assert isinstance(layers, nn.ModuleList)
            for layer in layers:
                x = torch.cat([x, layer(x)], 1)
            x = transition(x)
        return self.head(x.mean((2, 3)))


def dense_net() -> rg.Graph:
    return rg.trace(DenseNet(), torch.zeros(4, 3, 64, 64)).graph


class UNet(nn.Module):
    """Two convolutions at each size, down and up again, with skips (Ronneberger et al. 2015)."""

    def __init__(self, widths: tuple[int, ...] = (8, 16, 32, 64)) -> None:
        super().__init__()
        self.down = nn.ModuleList(self._convolutions(*pair) for pair in pairwise((3, *widths)))
        pairs = [(wide, narrow) for narrow, wide in pairwise(widths)][::-1]
        self.up = nn.ModuleList(nn.ConvTranspose2d(wide, narrow, 2, 2) for wide, narrow in pairs)
        self.join = nn.ModuleList(self._convolutions(2 * narrow, narrow) for _, narrow in pairs)
        self.head = nn.Conv2d(widths[0], 2, 1)

    def _convolutions(self, inside: int, outside: int) -> nn.Module:
        pairs = ((inside, outside), (outside, outside))
        return nn.Sequential(*(nn.Sequential(nn.Conv2d(*each, 3, 1, 1), nn.ReLU()) for each in pairs))

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for number, down in enumerate(self.down):
            x = down(x if not number else nn.functional.max_pool2d(x, 2))
            skips.append(x)
        skips.pop()
        for up, join in zip(self.up, self.join, strict=True):
            x = join(torch.cat([skips.pop(), up(x)], 1))
        return self.head(x)


def u_net() -> rg.Graph:
    return rg.trace(UNet(), torch.zeros(2, 3, 32, 32)).graph


class Different(nn.Module):
    """An additive block on halves of one size, with F and G of any width inside."""

    def __init__(self, width: int, inside: tuple[int, int]) -> None:
        super().__init__()
        self.f, self.g = (
            nn.Sequential(nn.Linear(width, each), nn.GELU(), nn.Linear(each, width)) for each in inside
        )

    def forward(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
        y1 = x1 + self.f(x2)
        return y1, x2 + self.g(y1)


def different_blocks(count: int) -> rg.Graph:
    """Blocks of which no two are alike."""
    rng = random.Random(1)
    blocks = (Different(32, (rng.randrange(16, 96), rng.randrange(16, 96))) for _ in range(count))
    return rg.trace(Fold([Halves(), *blocks, Joined()]), torch.zeros(32, 64)).graph


NETWORKS: dict[str, Callable[[], rg.Graph]] = {
    "24 equal layers": lambda: equal(24),
    "24 unequal layers": lambda: unequal(24),
    "48 equal layers": lambda: equal(48),
    "100 unequal layers": lambda: unequal(100),
    "300 unequal layers": lambda: unequal(300),
    "U-Net": u_net,
    "U-Net with BatchNorm": lambda: normalized_u_net(2, 8, 32).net.graph,
    "DenseNet-121, 64 x 64, batch 4": dense_net,
    "revnet-38, batch 32": lambda: rg.load("revnet-38", batch=32).graph,
    "revnet-110, batch 100": lambda: rg.load("revnet-110", batch=100).graph,
    "resnet-32, batch 100": lambda: rg.load("resnet-32", batch=100).graph,
    "40 different blocks": lambda: different_blocks(40),
    "200 different blocks": lambda: different_blocks(200),
    "reversible transformer, 96 blocks": lambda: transformer(96, 2, 16, 32).net.graph,
    "reversible-lm": lambda: rg.load("reversible-lm", batch=4).graph,
    "random graph of 100 moves": lambda: random_graph(100),
}
