"""The networks of the trade-off: folds over blocks in plain PyTorch, and the same as revgraph sees them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

import revgraph as rg


class Fold(nn.ModuleList):
    """Blocks one after another, each taking the values that the last one gave."""

    def forward(self, *values: Tensor) -> Any:
        for block in self:
            values = several(block(*values))
        return values[0] if len(values) == 1 else values


@dataclass(frozen=True, slots=True)
class Network:
    """A network twice, on shared parameters: `model` for what torch does, `net` under revgraph's plans."""

    name: str
    title: str
    model: Fold
    net: rg.ReversibleModule
    inputs: tuple[Tensor, ...]


def several(values: Any) -> tuple[Any, ...]:
    return tuple(values) if isinstance(values, (tuple, list)) else (values,)


def shipped(name: str, batch: int) -> Network:
    """One of the image networks that come with revgraph, on random images."""
    torch.manual_seed(0)
    net = rg.load(name, batch=batch)
    image = torch.randn(net.graph.value[net.graph.inputs[0]].shape)
    units = [unit for stage, unit in net.named_modules() if stage.count(".") == 1 and _is_unit(stage)]
    if any(node.kind == "coupling" for node in net.graph.nodes):
        units = [Halves(), *units, Joined()]
    model = Fold([net.get_submodule("stem"), *units, net.get_submodule("head")])
    return Network(name, f"{name}, batch {batch}", model, net, (image,))


def layers(count: int, batch: int, width: int) -> Network:
    """An ordinary chain of linear layers."""
    torch.manual_seed(0)
    model = Fold(nn.Sequential(nn.Linear(width, width), nn.GELU()) for _ in range(count))
    title = f"{count} layers Linear-GELU of width {width}, batch {batch}"
    return _traced("layers", title, model, (torch.randn(batch, width),))


def language_model(blocks: int, batch: int, length: int, width: int) -> Network:
    """Ordinary transformer blocks with normalization first, as in GPT-2, between embedding and logits."""
    torch.manual_seed(0)
    names = 256
    embedding = nn.Sequential(nn.Embedding(names, width), nn.Dropout(0.0))
    head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, names, bias=False))
    model = Fold([embedding, *(OrdinaryBlock(width, heads=4) for _ in range(blocks)), head])
    title = f"GPT-like model, {blocks} blocks of width {width} on {batch} x {length} tokens"
    return _traced("gpt", title, model, (torch.randint(names, (batch, length)),))


def u_net(batch: int, width: int, size: int) -> Network:
    """Down three times and up again; what goes across is among the values between blocks."""
    torch.manual_seed(0)
    wide = [width, 2 * width, 4 * width, 8 * width]
    down = [Down(*pair) for pair in pairwise([width, *wide[:3]])]
    up = [Up(below, across) for below, across in zip(wide[:0:-1], wide[2::-1], strict=True)]
    model = Fold(
        [convolutions(3, width), *down, Bottom(wide[2], wide[3]), *up, nn.Conv2d(width, 3, kernel_size=1)]
    )
    title = f"U-Net of widths {width} to {8 * width}, batch {batch}, images of {size} x {size}"
    return _traced("u-net", title, model, (torch.randn(batch, 3, size, size),))


def transformer(blocks: int, batch: int, length: int, width: int) -> Network:
    """Blocks of attention on one stream and a perceptron on the other."""
    torch.manual_seed(0)
    model = Fold(TransformerBlock(width, heads=4) for _ in range(blocks))
    inputs = (torch.randn(batch, length, width), torch.randn(batch, length, width))
    title = f"Reversible transformer, {blocks} blocks of width {width} on {batch} x {length} tokens"
    return _traced("transformer", title, model, inputs)


def random_dag(moves: int, streams: int, batch: int, width: int, seed: int = 0) -> Network:
    """Streams that read each other, skips across blocks, and modules that cannot be inverted in between."""
    torch.manual_seed(seed)
    model = Fold(random_moves(moves, streams, width, random.Random(seed)))
    inputs = tuple(torch.randn(batch, width) for _ in range(streams))
    title = f"Random graph, {moves} moves on {streams} streams of width {width}, batch {batch}"
    return _traced("random", title, model, inputs)


def wide_chain(blocks: int, batch: int, width: int) -> Network:
    """Additive blocks whose F and G are Linear-GELU-Linear, twice as wide inside."""
    torch.manual_seed(0)

    def function() -> nn.Module:
        return nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    model = Fold([Halves(), *(Additive(function(), function()) for _ in range(blocks)), Joined()])
    title = f"RevNet of {blocks} blocks with 4 matrix products each, width {width}, batch {batch}"
    return _traced("chain", title, model, (torch.randn(batch, 2 * width),))


class Halves(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x1, x2 = x.chunk(2, dim=1)
        return x1, x2


class Joined(nn.Module):
    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        return torch.cat([x1, x2], dim=1)


class Additive(nn.Module):
    """Two half-steps in plain code."""

    def __init__(self, f: nn.Module, g: nn.Module) -> None:
        super().__init__()
        self.f, self.g = f, g

    def forward(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
        y1 = x1 + self.f(x2)
        return y1, x2 + self.g(y1)


class TransformerBlock(nn.Module):
    """`x1 + attention(norm(x2))`, then `x2 + mlp(norm(x1))`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
        x1 = x1 + self.attention(self.norm1(x2))
        x2 = x2 + self.mlp(self.norm2(x1))
        return x1, x2


class OrdinaryBlock(nn.Module):
    """`x + attention(norm(x))`, then `x + mlp(norm(x))`, on one stream."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def convolutions(before: int, after: int) -> nn.Sequential:
    """Two convolutions with normalization, as on each level of a U-Net."""
    return nn.Sequential(
        nn.Conv2d(before, after, 3, padding=1),
        nn.BatchNorm2d(after),
        nn.ReLU(),
        nn.Conv2d(after, after, 3, padding=1),
        nn.BatchNorm2d(after),
        nn.ReLU(),
    )


class Down(nn.Module):
    """What goes across so far, this level for later, and half its size as the values after it."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.convolutions, self.pool = convolutions(before, after), nn.MaxPool2d(2)

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        *across, x = values
        x = self.convolutions(x)
        return (*across, x, self.pool(x))


class Bottom(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.convolutions = convolutions(before, after)

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        return (*values[:-1], self.convolutions(values[-1]))


class Up(nn.Module):
    """The level below at twice its size, beside what comes across."""

    def __init__(self, below: int, across: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(below, across, kernel_size=2, stride=2)
        self.convolutions = convolutions(2 * across, across)

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        *rest, across, x = values
        return (*rest, self.convolutions(torch.cat([across, self.up(x)], dim=1)))


class Attention(nn.Module):
    """Every head attends to every token; matrix products and softmax are written out, to be counted."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.mix(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = mixed.unbind(0)
        weights = torch.softmax(query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5, dim=-1)
        return self.out((weights @ value).transpose(1, 2).flatten(-2))


def random_moves(count: int, streams: int, width: int, choice: random.Random) -> Iterable[nn.Module]:
    """Half-steps of one stream each; every fifth move or so is one that cannot be inverted."""
    skips = 0
    for number in range(count):
        target = choice.randrange(streams)
        others = [each for each in range(streams + skips) if each != target]
        read = sorted(choice.sample(others, choice.randint(1, min(2, len(others)))))
        function = nn.Sequential(
            nn.Linear(len(read) * width, 2 * width), nn.Tanh(), nn.Linear(2 * width, width)
        )
        if number % 5 == 4:
            yield Replacement(target, nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU()))
        elif number % 6 == 2 and skips < 2:
            skips += 1
            yield HalfStep(target, read, function, skip=True)
        else:
            yield HalfStep(target, read, function)
    yield Streams(streams)


class HalfStep(nn.Module):
    """`values[target] + function(the values read)`; with `skip` the old value goes on too, at the end."""

    def __init__(self, target: int, read: Sequence[int], function: nn.Module, skip: bool = False) -> None:
        super().__init__()
        self.target, self.read, self.function, self.skip = target, tuple(read), function, skip

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        made = values[self.target] + self.function(torch.cat([values[each] for each in self.read], dim=-1))
        kept = (values[self.target],) if self.skip else ()
        return (*values[: self.target], made, *values[self.target + 1 :], *kept)


class Replacement(nn.Module):
    """`function(values[target])` in the place of `values[target]`."""

    def __init__(self, target: int, function: nn.Module) -> None:
        super().__init__()
        self.target, self.function = target, function

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        return (*values[: self.target], self.function(values[self.target]), *values[self.target + 1 :])


class Streams(nn.Module):
    """The streams without the skips."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        return values[: self.count]


def _traced(name: str, title: str, model: Fold, inputs: tuple[Tensor, ...]) -> Network:
    return Network(name, title, model, rg.trace(model, *inputs), inputs)


def _is_unit(path: str) -> bool:
    stage, unit = path.split(".")
    return stage.startswith("stage") and unit.startswith("unit")
