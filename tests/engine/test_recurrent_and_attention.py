"""Recurrent layers, attention and whole transformer layers as functions of couplings and as boundaries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from engine.kinds import PLANS, REST, Weave, assert_follows, follow, made_twice, plans, two_streams
from torch import Tensor, nn

import revgraph as rg

WIDTH = 4


class Recurrent(nn.Module):
    """The outputs of a recurrent layer, projected to the stream's width."""

    def __init__(self, kind: type[nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.layer = kind(WIDTH, WIDTH, **options)
        self.out = nn.Linear(2 * WIDTH if self.layer.bidirectional else WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layer(x)[0])


class FromAState(nn.Module):
    """A recurrent layer that begins in a trained state, and whose last state counts too."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.layer = kind(WIDTH, WIDTH, batch_first=True)
        self.start = nn.Parameter(torch.linspace(-1, 1, WIDTH).view(1, 1, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        start = self.start.expand(1, len(x), WIDTH).contiguous()
        y, last = self.layer(x, (start, start) if isinstance(self.layer, nn.LSTM) else start)
        last = last[0] if isinstance(last, tuple) else last
        return y + torch.tanh(last).transpose(0, 1)


class Cells(nn.Module):
    """A cell called position by position."""

    def __init__(self, kind: type[nn.RNNCellBase]) -> None:
        super().__init__()
        self.cell = kind(WIDTH, WIDTH)  # pyright: ignore

    def forward(self, x: Tensor) -> Tensor:
        state, outputs = None, []
        for position in x.unbind(1):
            state = self.cell(position, state)
            outputs.append(state[0] if isinstance(state, tuple) else state)
        return torch.stack(outputs, 1)


class Attention(nn.Module):
    def __init__(self, weights: bool, mask: str = "", **options: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True, **options)
        self.weights, self.mask = weights, mask

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool).triu(1) if "causal" in self.mask else None
        padded = torch.zeros(len(x), length, dtype=torch.bool) if "padded" in self.mask else None
        if padded is not None:
            padded[0, -1] = True
        y, weights = self.attention(
            x, x, x, attn_mask=causal, key_padding_mask=padded, need_weights=self.weights
        )
        return y if weights is None else y + weights.sum(-1, keepdim=True).sin() * weights.max()


class Kept(Attention):
    """The weights are asked for and not used."""

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=True)[0]


def encoder(**options: Any) -> nn.Module:
    return nn.TransformerEncoderLayer(WIDTH, 2, 8, batch_first=True, **options)


FUNCTIONS: dict[str, Callable[[], nn.Module]] = {
    "gru": lambda: Recurrent(nn.GRU, batch_first=True),
    "gru, two layers": lambda: Recurrent(nn.GRU, num_layers=2, batch_first=True),
    "gru from a state": lambda: FromAState(nn.GRU),
    "lstm": lambda: Recurrent(nn.LSTM, batch_first=True),
    "lstm, time first": lambda: Recurrent(nn.LSTM),
    "lstm, both ways": lambda: Recurrent(nn.LSTM, bidirectional=True, num_layers=2),
    "lstm from a state": lambda: FromAState(nn.LSTM),
    "rnn with relu, two layers": lambda: Recurrent(nn.RNN, nonlinearity="relu", num_layers=2),
    "gru cells": lambda: Cells(nn.GRUCell),
    "lstm cells": lambda: Cells(nn.LSTMCell),
    "attention": lambda: Attention(False),
    "attention with weights": lambda: Attention(True),
    "attention, weights not used": lambda: Kept(True),
    "attention, causal": lambda: Attention(False, "causal"),
    "attention, padded, with weights": lambda: Attention(True, "causal padded"),
    "attention with bias of keys": lambda: Attention(False, add_bias_kv=True, add_zero_attn=True),
    "encoder layer": encoder,
    "encoder layer, norm first, gelu": lambda: encoder(dropout=0.0, norm_first=True, activation="gelu"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_layer_inside_a_coupling(name: str) -> None:
    assert_follows(lambda: Weave(FUNCTIONS[name], 2), *two_streams(2, 3, WIDTH), forwards=10, tolerance=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gru", "gru cells", "lstm, time first", "attention, padded, with weights"])
def test_a_layer_inside_a_coupling_under_every_plan(name: str) -> None:
    assert_follows(
        lambda: Weave(FUNCTIONS[name], 2),
        *two_streams(2, 3, WIDTH),
        under=("default", *REST),
        forwards=10,
        tolerance=1e-8,
    )


class Halves(nn.Module):
    """Streams that are halves of one sequence's features, so that they begin as strided views."""

    def __init__(self, f: Callable[[], nn.Module], directly: bool) -> None:
        super().__init__()
        self.fs = nn.ModuleList(f() for _ in range(2))
        self.directly = directly

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        for f in self.fs:
            a, b = b, a + (f(b)[0] if self.directly else f(b))
        return torch.cat([a, b], -1)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "gru": lambda: nn.GRU(WIDTH, WIDTH, batch_first=True),
    "lstm": lambda: nn.LSTM(WIDTH, WIDTH),
    "rnn": lambda: nn.RNN(WIDTH, WIDTH, 2, batch_first=True),
}


@pytest.mark.slow
@pytest.mark.parametrize("plan", ["inverted", "frontier"])
@pytest.mark.parametrize("name", LAYERS)
def test_layers_that_return_tuples_measure_what_is_predicted(name: str, plan: str) -> None:
    x = two_streams(2, 5, 2 * WIDTH)[0]
    model, plain = made_twice(lambda: Halves(LAYERS[name], directly=True))
    net = rg.trace(model, x)
    for chosen in plans(net, plan):
        net.plan = chosen
        follow(net, plain, (x,), 3)
        measured = rg.measure(net, x)
        assert measured.peak_bytes == net.plan.peak_bytes
        assert measured.held_bytes == net.plan.held_bytes
        assert measured.flops_ratio == pytest.approx(net.plan.flops_ratio)


@pytest.mark.slow
@pytest.mark.parametrize("plan", ["inverted", "frontier"])
def test_attention_and_feed_forward_on_two_streams(plan: str) -> None:
    """A reversible transformer in three dimensions, its streams halves of one tensor."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.Sequential(nn.LayerNorm(WIDTH), Attention(False, "causal"))
            self.forwards = nn.Sequential(
                nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 8), nn.GELU(), nn.Linear(8, WIDTH)
            )

        def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
            a = a + self.attention(b)
            return a, b + self.forwards(a)

    class Reformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(Block() for _ in range(2))
            self.head = nn.Linear(2 * WIDTH, 3)

        def forward(self, x: Tensor) -> Tensor:
            a, b = x.chunk(2, -1)
            for block in self.blocks:
                a, b = block(a, b)
            return self.head(torch.cat([a, b], -1))

    x = two_streams(2, 3, 2 * WIDTH)[0]
    model, plain = made_twice(Reformer)
    net = rg.trace(model, x)
    for chosen in plans(net, plan):
        net.plan = chosen
        follow(net, plain, (x,), 9)


class Boundaries(nn.Module):
    """Recurrent layers and attention between couplings, with the state handed from one to the next."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = (nn.LSTM(WIDTH, WIDTH, batch_first=True) for _ in range(2))
        self.weave = Weave(lambda: nn.Linear(WIDTH, WIDTH), 2)
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        a, state = self.encoder(a)
        a, b = self.weave(a, b)
        b, _ = self.decoder(b, state)
        c, weights = self.attention(a, b, b)
        return c + weights.sum(-1, keepdim=True) * b


@pytest.mark.slow
def test_layers_with_several_results_between_couplings() -> None:
    assert_follows(Boundaries, *two_streams(2, 3, WIDTH), under=PLANS, forwards=9)


@pytest.mark.slow
@pytest.mark.parametrize("plan", ["default", "inverted"])
def test_sequences_of_other_lengths_than_the_example(plan: str) -> None:
    model, plain = made_twice(lambda: Weave(FUNCTIONS["gru"], 2))
    net = rg.trace(model, *two_streams(2, 3, WIDTH))
    (net.plan,) = plans(net, plan)
    for length in (5, 1, 2, 3):
        follow(net, plain, two_streams(2, length, WIDTH), 4)
