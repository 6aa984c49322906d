"""A run on the terminal: a bar with loss, accuracy, samples a second and the time that remains."""

from __future__ import annotations

import os
import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from revgraph.training.checkpoints import Checkpoint
from revgraph.training.metrics import Row

QUIET_SECONDS = 30.0
SMOOTHING = 0.1
STOPPING = "saving after this step, Ctrl-C again aborts at once"


class Bar:
    """A watch that draws a progress bar, and prints a line for each evaluation.

    Loss, accuracy and speed are means over about the last ten steps: those of one small batch jump about.
    Where the console is no terminal, it prints a line for each evaluation and at least every 30 seconds.
    `samples` is what the run's samples are called.
    """

    def __init__(self, console: Console, samples: str = "images") -> None:
        self._console = console
        self._samples = samples
        self._phase = _Phase()
        self._progress = Progress(
            self._phase,
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
            expand=True,
        )
        self._steps: TaskID | None = None
        self._total = 0
        self._means: list[float] = []
        self._printed = time.monotonic()

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def began(self, step: int, steps: int, batch: int) -> None:
        self._total = steps
        self._steps = self._progress.add_task("training", total=steps, completed=step, figures="")
        if step:
            self._print(f"going on after step {step} of {steps}")

    def stepped(self, row: Row) -> None:
        assert self._steps is not None
        self._phase.text = "training" if self._phase.text != STOPPING else STOPPING
        new = [row.loss, row.accuracy, row.samples_per_second]
        old = self._means or new
        self._means = [one + SMOOTHING * (two - one) for one, two in zip(old, new, strict=True)]
        loss, accuracy, speed = self._means
        figures = f"loss {loss:.4f}  accuracy {accuracy:6.1%}  {speed:,.0f} {self._samples}/s"
        self._progress.update(self._steps, completed=row.step, figures=figures)
        overdue = not self._console.is_terminal and time.monotonic() - self._printed > QUIET_SECONDS
        if row.test_accuracy is not None or overdue:
            test = "" if row.test_accuracy is None else f"  test accuracy {row.test_accuracy:.2%}"
            if row.test_bits_per_byte is not None:
                test += f", {row.test_bits_per_byte:.3f} bits per byte"
            self._print(f"step {row.step:>{len(str(self._total))}} of {self._total}  {figures}{test}")
            self._printed = time.monotonic()

    def evaluating(self, done: int, samples: int) -> None:
        if self._phase.text != STOPPING:
            self._phase.text = f"testing {done:,}/{samples:,}" if done < samples else "training"

    def saved(self, checkpoint: Checkpoint) -> None:
        pass

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def interrupted(self) -> None:
        # Inside a signal handler no lock may be taken: the bar's own thread shows the new text.
        self._phase.text = STOPPING
        if not self._console.is_terminal:
            os.write(2, f"Interrupted: {STOPPING}.\n".encode())


class _Phase(ProgressColumn):
    """What the run is doing now."""

    def __init__(self) -> None:
        super().__init__()
        self.text = "training"

    def render(self, task: Task) -> Text:
        return Text(self.text)
