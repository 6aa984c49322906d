"""The order in which a run sees its samples, as a state that can be saved and taken up again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from revgraph.training.processes import share
from revgraph.training.tasks import Task


class Batches:
    """An endless stream of training batches: pass after pass over the samples, each in a new random order.

    Every batch has the same size; one that begins at the end of a pass goes on in the next. Orders and all
    chance in the samples come from one generator of its own, so that `state` and `restore` continue the
    stream exactly. Processes that train together have equal streams; each draws part `rank` of `count` of
    every batch.
    """

    def __init__(self, data: Task, batch: int, seed: int, rank: int = 0, count: int = 1) -> None:
        self._data = data
        self._batch = batch
        self.share = share(batch, count, data.samples)
        self._start = rank * self.share
        self._generator = torch.Generator().manual_seed(seed)
        self._waiting = torch.empty(0, dtype=torch.int64)

    def draw(self) -> tuple[Tensor, Tensor]:
        """The next inputs and their labels, [N, ...] each; N is the batch or this process's share of it."""
        while len(self._waiting) < self._batch:
            order = torch.randperm(len(self._data.train), generator=self._generator)
            self._waiting = torch.cat([self._waiting, order])
        chosen, self._waiting = self._waiting[: self._batch], self._waiting[self._batch :]
        mine = chosen[self._start : self._start + self.share]
        return self._data.drawn(mine, self._generator, start=self._start, of=self._batch)

    def state(self) -> dict[str, Any]:
        """The position: the generator's state and the samples that wait in this pass."""
        return {"generator": self._generator.get_state(), "waiting": self._waiting.clone()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a position that `state` returned."""
        self._generator.set_state(state["generator"])
        self._waiting = state["waiting"].clone()
