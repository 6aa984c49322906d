"""Recurrent nets: modules and cells of torch, scans, convolutional cells, recurrent terms of couplings."""

from __future__ import annotations

import torch
from planning.corpus.registry import net
from torch import Tensor, nn


def series() -> tuple[Tensor]:
    return (torch.randn(2, 5, 4),)


@net(series)
class GatedUnits(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(4, 6, 2, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y, last = self.gru(x)
        return self.head(y) + last[-1].mean()


@net(series)
class LongShortTerm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(4, 6, batch_first=True, bidirectional=True), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        y, (hidden, cell) = self.lstm(x)
        return self.head(y[:, -1]) + hidden.sum() * cell.mean()


@net(series)
class CellsInALoop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTMCell(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = cell = x.new_zeros(x.shape[0], 6)
        outputs = []
        for step in range(x.shape[1]):
            hidden, cell = self.cell(x[:, step], (hidden, cell))
            outputs.append(self.head(hidden))
        return torch.stack(outputs, 1)


@net(series)
class GatedCellsInALoop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.zeros(x.shape[0], 6, dtype=x.dtype)
        for step in x.unbind(1):
            hidden = self.cell(step, hidden)
        return hidden


@net(series)
class ElmanBothWays(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(4, 5, bidirectional=True, nonlinearity="relu")
        self.mix = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.rnn(x.transpose(0, 1))
        return x + self.mix(y).transpose(0, 1)


@net(series)
class RecurrentTerms(nn.Module):
    """Couplings whose functions are recurrent."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.ModuleList(nn.GRU(2, 2, batch_first=True) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        for cell in self.cells:
            a, b = b, a + cell(b)[0]
        return torch.cat([a, b], -1)


@net(series)
class LongTerms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inlet = nn.Linear(4, 12)
        self.cells = nn.ModuleList(nn.LSTM(6, 6, batch_first=True) for _ in range(2))
        self.feeds = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.inlet(x).split(6, -1)
        for cell, feed in zip(self.cells, self.feeds, strict=True):
            a = a + cell(b)[0]
            b = b + torch.tanh(feed(a))
        return a * b


@net(series)
class MinimalGates(nn.Module):
    """Gates in plain arithmetic."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.candidate = nn.Linear(10, 6), nn.Linear(10, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], 6)
        for t in range(x.size(1)):
            both = torch.cat([x[:, t], h], -1)
            z = torch.sigmoid(self.gate(both))
            h = (1 - z) * h + z * torch.tanh(self.candidate(both))
        return h


@net(series)
class StateSpace(nn.Module):
    """A diagonal linear state space as a scan, with gates that depend on the input, as in Mamba."""

    def __init__(self) -> None:
        super().__init__()
        self.rates = nn.Parameter(torch.rand(4, 3))
        self.project, self.out = nn.Linear(4, 10), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        step, b, c = self.project(x).split([4, 3, 3], -1)
        step = nn.functional.softplus(step)
        decay = torch.exp(-step.unsqueeze(-1) * self.rates)
        inlet = step.unsqueeze(-1) * b.unsqueeze(2) * x.unsqueeze(-1)
        state = torch.zeros_like(inlet[:, 0])
        outputs = []
        for t in range(x.shape[1]):
            state = decay[:, t] * state + inlet[:, t]
            outputs.append((state * c[:, t].unsqueeze(1)).sum(-1))
        return x + self.out(torch.stack(outputs, 1))


@net(series)
class CumulativeSums(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        log_gate = nn.functional.logsigmoid(self.one(x)).cumsum(1)
        return x + torch.exp(log_gate) * torch.cumsum(self.two(x) * torch.exp(-log_gate), 1)


@net(lambda: (torch.randn(2, 3, 2, 5, 5),))
class ConvolutionalCells(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gates = nn.Conv2d(5, 12, 3, padding=1)

    def forward(self, frames: Tensor) -> Tensor:
        h = c = frames.new_zeros(frames.shape[0], 3, 5, 5)
        for frame in frames.unbind(1):
            i, f, o, g = self.gates(torch.cat([frame, h], 1)).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        return h


@net(lambda: (torch.randn(2, 4), torch.randn(2, 6)))
class StateGivenAndReturned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(4, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        for _ in range(3):
            state = self.cell(x, state)
            x = x + self.head(state)
        return x, state
