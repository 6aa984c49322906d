"""Recurrent cells: functions of gated couplings, and the state to begin with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from revgraph.couplings import Boundary


class CellFunction(nn.Module):
    """Gate and candidate from the other half of the state and the step's input: [N, hidden] to [N, 2 hidden].

    For a `Gated` coupling; the input x is [N, features], or [N, 1, features] as a sequence is split.
    """

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.from_state = nn.Linear(hidden, 2 * hidden)
        self.from_input = nn.Linear(features, 2 * hidden, bias=False)

    def forward(self, state: Tensor, x: Tensor) -> Tensor:
        return self.from_state(state) + self.from_input(x.flatten(1))


class InitialState(Boundary):
    """A learned state to begin with, the same for every sample of x: [N, ...] to [N, features]."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.state = nn.Parameter(torch.zeros(features))

    def forward(self, x: Tensor) -> Tensor:
        return self.state.repeat(x.shape[0], 1)
