"""What a run tells whoever watches it."""

from __future__ import annotations

from typing import Protocol

from revgraph.training.checkpoints import Checkpoint
from revgraph.training.metrics import Row


class Watch(Protocol):
    """Told of everything that happens in a run, in the run's own thread."""

    def began(self, step: int, steps: int, batch: int) -> None:
        """The run has `step` of `steps` steps behind it, and `batch` samples in each."""

    def stepped(self, row: Row) -> None:
        """A step is done."""

    def evaluating(self, done: int, samples: int) -> None:
        """`done` of `samples` test samples are done."""

    def saved(self, checkpoint: Checkpoint) -> None:
        """A checkpoint is on the disk."""

    def interrupted(self) -> None:
        """Ctrl-C was pressed once. This is called inside a signal handler."""


class Silent:
    """A watch that says nothing."""

    def began(self, step: int, steps: int, batch: int) -> None: ...

    def stepped(self, row: Row) -> None: ...

    def evaluating(self, done: int, samples: int) -> None: ...

    def saved(self, checkpoint: Checkpoint) -> None: ...

    def interrupted(self) -> None: ...
