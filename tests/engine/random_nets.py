"""Random networks for hypothesis: streams, couplings of every kind, boundaries, wiring, fan-out and skips."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

import revgraph as rg

WIDTH = 4
BATCH = 3


@dataclass(frozen=True)
class Move:
    """One instruction: what is done to `stream`, with the values `others` of all made so far."""

    kind: str
    stream: int
    others: tuple[int, ...]
    alpha: float = 1.0


COUPLINGS = ("add", "subtract", "from", "alpha", "inplace", "additive", "affine", "block", "shared")
BOUNDARIES = ("boundary", "functional", "merge", "product")
WIRINGS = ("swap_halves", "reshape", "split", "permute")


@st.composite
def recipes(
    draw: Any, most_streams: int = 4, most_moves: int = 12
) -> tuple[int, tuple[Move, ...], tuple[int, ...]]:
    """How many streams, the moves, and which values are returned besides the streams."""
    streams = draw(st.integers(1, most_streams))
    moves = []
    made = streams
    for _ in range(draw(st.integers(1, most_moves))):
        kind = draw(st.sampled_from(COUPLINGS + COUPLINGS + BOUNDARIES + WIRINGS))
        others = tuple(draw(st.lists(st.integers(0, made - 1), min_size=1, max_size=3, unique=True)))
        moves.append(
            Move(kind, draw(st.integers(0, streams - 1)), others, draw(st.sampled_from((0.5, -2.0))))
        )
        made += 1
    returned = tuple(draw(st.lists(st.integers(0, made - 1), max_size=2, unique=True)))
    return streams, tuple(moves), returned


def function(inputs: int, outputs: int = 1) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs * WIDTH, 5), nn.Tanh(), nn.Linear(5, outputs * WIDTH))


class Joined(nn.Module):
    """A function of several streams."""

    def __init__(self, inputs: int, outputs: int = 1) -> None:
        super().__init__()
        self.net = function(inputs, outputs)

    def forward(self, *streams: Tensor) -> Tensor:
        return self.net(torch.cat(streams, 1)) * 0.5


class RandomNet(nn.Module):
    """The network of a recipe; takes and returns its streams, and returns some values on the way."""

    def __init__(self, streams: int, moves: tuple[Move, ...], returned: tuple[int, ...]) -> None:
        super().__init__()
        self.streams, self.moves, self.returned = streams, moves, returned
        self.shared = function(1)
        self.layers = nn.ModuleList(self._layer(move) for move in moves)

    def _layer(self, move: Move) -> nn.Module:
        count = len(move.others)
        if move.kind == "affine":
            return rg.Affine(Joined(count, 2))
        if move.kind == "additive":
            return rg.Additive(Joined(count))
        if move.kind == "block":
            return rg.Additive(function(1), function(1))
        if move.kind == "split":
            return nn.ModuleList([rg.Split(2), rg.Swap(), rg.Concatenate()])
        if move.kind == "permute":
            return rg.Permute(*reversed(range(self.streams)))
        if move.kind in ("merge", "boundary"):
            return Joined(count if move.kind == "merge" else 1)
        return Joined(count)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        state = list(inputs)
        made = list(inputs)
        for move, layer in zip(self.moves, self.layers, strict=True):
            x = state[move.stream]
            others = [made[index] for index in move.others]
            y = self._move(move, layer, x, others, state)
            state[move.stream] = y
            made.append(y)
        return (*state, *(made[index] for index in self.returned))

    def _move(self, move: Move, layer: Any, x: Tensor, others: list[Tensor], state: list[Tensor]) -> Tensor:
        kind = move.kind
        if kind == "add":
            return x + layer(*others)
        if kind == "subtract":
            return x - torch.tanh(layer(*others)) * 0.5
        if kind == "from":
            return layer(*others) - x
        if kind == "alpha":
            return torch.add(x, layer(*others), alpha=move.alpha)
        if kind == "inplace":
            x = x + 0.0
            x += layer(*others)
            return x
        if kind == "shared":
            return x + self.shared(others[0])
        if kind in ("additive", "affine"):
            return layer(x, *others)
        if kind == "block":
            other = state[(move.stream + 1) % len(state)]
            one, two = layer(x, other * 1.5)
            return one + two
        if kind == "merge":
            return layer(*others)
        if kind == "boundary":
            return torch.tanh(layer(x))
        if kind == "functional":
            return torch.sin(x) * 0.7
        if kind == "product":
            return x * torch.sigmoid(others[0])
        if kind == "swap_halves":
            one, two = x.chunk(2, 1)
            return torch.cat([two, one], 1)
        if kind == "reshape":
            return x.reshape(x.shape[0], 2, WIDTH // 2).transpose(1, 2).flatten(1)
        if kind == "split":
            split, swap, join = layer
            return join(*swap(*split(x)))
        permuted = layer(*state)
        state[:] = list(permuted)
        return state[move.stream]


def decisions(graph: rg.Graph, choice: Any) -> dict[str, str]:
    """A random decision for every node, with `choice` picking from the ones that fit."""
    return {
        node.name: choice(
            ("keep", "invert", "recompute") if node.kind == "coupling" else ("keep", "recompute")
        )
        for node in graph.planned
    }
