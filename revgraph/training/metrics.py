"""What a run reports: one row a step, in a CSV file and, where it is installed, to TensorBoard."""

from __future__ import annotations

import csv
import importlib.util
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

from revgraph.errors import DataError
from revgraph.training.durable import new_file, sync
from revgraph.training.errors import TrainingError

CSV = "metrics.csv"
TENSORBOARD = "tensorboard"


@dataclass(frozen=True, slots=True)
class Row:
    """One training step: its number from 1, and what was measured in it.

    `epoch` counts passes over the training samples; `loss` and `accuracy` are of this batch before its
    update; `seconds` are since the run (or its resumption) began. The test's figures are None where none was
    made, and its bits per byte where labels are no bytes.
    """

    step: int
    epoch: float
    loss: float
    accuracy: float
    learning_rate: float
    samples_per_second: float
    seconds: float
    test_loss: float | None = None
    test_accuracy: float | None = None
    test_bits_per_byte: float | None = None


COLUMNS = tuple(field.name for field in fields(Row))


class Metrics:
    """The open files of a run; `metrics` makes one. Without a path there are none, and nothing is written."""

    def __init__(self, path: Path | None, writer: Any, board: Any | None) -> None:
        self._path = path
        self._writer = writer
        self._board = board

    def write(self, row: Row) -> None:
        """Append `row`; it survives the end of this process."""
        if self._path is None:
            return
        self._writer.writerow(["" if cell is None else cell for cell in astuple(row)])
        if self._board is not None:
            for name in COLUMNS[2:]:
                value = getattr(row, name)
                if value is not None and name != "seconds":
                    group = "test" if name.startswith("test_") else "train"
                    self._board.add_scalar(f"{group}/{name.removeprefix('test_')}", value, row.step)

    def sync(self) -> None:
        """Wait until all rows are on the disk."""
        if self._path is not None:
            sync(self._path)
        if self._board is not None:
            self._board.flush()


@contextmanager
def metrics(folder: Path, after: int, tensorboard: bool | None = None) -> Iterator[Metrics]:
    """Files in `folder` to which a run writes its rows from step `after` + 1 on.

    Rows up to `after` stay; later ones, and one that was cut off, are dropped: the run makes them anew.
    `tensorboard` None means: where it is installed.

    Raises:
        TrainingError: TensorBoard is asked for and not installed.
        DataError: a row of the file is damaged.
    """
    path = folder / CSV
    kept = [cells for row, cells in _lines(path) if row.step <= after] if after else []
    with new_file(path) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([COLUMNS, *kept])
    with ExitStack() as stack:
        board = stack.enter_context(_board(folder / TENSORBOARD, after)) if wanted(tensorboard) else None
        # Line by line, so that a killed process loses none.
        file = stack.enter_context(path.open("a", buffering=1, newline="", encoding="utf-8"))
        yield Metrics(path, csv.writer(file), board)


@contextmanager
def no_metrics() -> Iterator[Metrics]:
    """For a process that leaves the writing to another."""
    yield Metrics(None, None, None)


def read_rows(folder: str | Path) -> list[Row]:
    """The whole rows of the CSV file in `folder`, in order; none where there is no file.

    Raises:
        DataError: a row is damaged.
    """
    return [row for row, _ in _lines(Path(folder) / CSV)]


def _lines(path: Path) -> list[tuple[Row, list[str]]]:
    """Each row with its cells as they are written; a line that was cut off at the end is left out."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    lines = content.decode("utf-8", "replace").split("\n")[:-1]
    found = []
    for number, line in enumerate(lines[1:], 2):
        cells = line.rstrip("\r").split(",")
        try:
            found.append((_row(cells), cells))
        except ValueError:
            raise DataError(
                f"line {number} of {str(path)!r} is damaged: {line[:60]!r} is no row of "
                f"{len(COLUMNS)} numbers. "
                "Mend or remove that line, or move the file away to go on without its rows."
            ) from None
    return found


def _row(cells: list[str]) -> Row:
    if len(cells) != len(COLUMNS) or not (cells[0].isascii() and cells[0].isdigit()):
        raise ValueError(cells)
    return Row(
        int(cells[0]),
        *(float(cell) for cell in cells[1:7]),
        *(float(cell) if cell else None for cell in cells[7:]),
    )


def wanted(tensorboard: bool | None) -> bool:
    """Whether to write TensorBoard events; None means: where it is installed.

    Raises:
        TrainingError: TensorBoard is asked for and not installed.
    """
    installed = importlib.util.find_spec("tensorboard") is not None
    if tensorboard and not installed:
        raise TrainingError("TensorBoard is asked for and not installed: pip install tensorboard")
    return installed if tensorboard is None else tensorboard


def _board(folder: Path, after: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=after + 1)
