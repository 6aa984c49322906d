"""A training run as the paper's experiments need it: its losses and tests, and what to compare on the way."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from torch import Tensor

import revgraph as rg
from revgraph.training.checkpoints import checkpoints
from revgraph.training.evaluating import Score
from revgraph.training.images import Data
from revgraph.training.loop import CHECKPOINTS, fit
from revgraph.training.metrics import Row, read_rows
from revgraph.training.recipe import Recipe
from revgraph.training.watching import Silent, Watch

TESTS, LAST, WINDOW = 8, 50, 20


@dataclass(frozen=True, slots=True)
class Trained:
    """A run's steps, some of which have a test, and the test at the end."""

    rows: tuple[Row, ...]
    test: Score

    @property
    def tests(self) -> list[tuple[int, float]]:
        """The steps that were tested, and the accuracies."""
        return [(row.step, row.test_accuracy) for row in self.rows if row.test_accuracy is not None]

    @property
    def smoothed(self) -> list[float]:
        """For every step the mean loss of the last 20."""
        losses = [row.loss for row in self.rows]
        return [fmean(losses[max(0, end - WINDOW) : end]) for end in range(1, len(losses) + 1)]

    @property
    def last_loss(self) -> float:
        """The mean loss of the last 50 steps."""
        return fmean(row.loss for row in self.rows[-LAST:])


class Comparing(Silent):
    """Compares the gradients of a net in training with those of stored activations, on one batch.

    `found` has the steps that were compared, the first and every so manieth: the gradients after them.
    """

    def __init__(self, net: rg.ReversibleModule, images: Tensor, every: int) -> None:
        self.found: dict[int, rg.GradientReport] = {}
        self._net, self._images, self._every = net, images, every

    def stepped(self, row: Row) -> None:
        if row.step == 1 or row.step % self._every == 0:
            self.found[row.step] = rg.check(self._net, self._images)


def train(
    net: rg.ReversibleModule, data: Data, recipe: Recipe, folder: Path, watch: Watch | None = None
) -> Trained:
    """Train `net` with eight tests on the way, from where a run in `folder` stopped if there is one.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed; the run is saved.
    """
    result = fit(
        net,
        data,
        recipe,
        folder,
        resume=bool(checkpoints(folder / CHECKPOINTS)),
        evaluate_every=max(1, recipe.steps // TESTS),
        tensorboard=False,
        watch=watch,
    )
    if result.test is None:
        raise KeyboardInterrupt
    return Trained(tuple(read_rows(folder)), result.test)
