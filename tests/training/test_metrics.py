"""The CSV file: a row a step, safe to append to after a crash; TensorBoard beside it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from revgraph.training.errors import TrainingError
from revgraph.training.metrics import COLUMNS, Row, metrics, read_rows


def row(step: int, loss: float = 0.1, test: float | None = None) -> Row:
    return Row(step, step / 2, loss, 0.5, 0.1, 100.0, 1.5, test, test)


def write(folder: Path, *steps: int, after: int = 0, loss: float = 0.1) -> None:
    with metrics(folder, after, tensorboard=False) as rows:
        for step in steps:
            rows.write(row(step, loss))


def test_rows_come_back_exactly(tmp_path: Path) -> None:
    written = [row(1, 1 / 3), row(2, 0.1 + 0.2, test=2 / 3)]
    with metrics(tmp_path, 0, tensorboard=False) as rows:
        for item in written:
            rows.write(item)
    assert read_rows(tmp_path) == written
    assert (tmp_path / "metrics.csv").read_text().splitlines()[0] == ",".join(COLUMNS)


def test_rows_are_in_the_file_at_once(tmp_path: Path) -> None:
    with metrics(tmp_path, 0, tensorboard=False) as rows:
        rows.write(row(1))
        assert read_rows(tmp_path) == [row(1)]


def test_rows_after_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    write(tmp_path, 1, 2, 3, 4)
    write(tmp_path, 3, 4, 5, after=2, loss=0.7)
    assert [(item.step, item.loss) for item in read_rows(tmp_path)] == [
        (1, 0.1),
        (2, 0.1),
        (3, 0.7),
        (4, 0.7),
        (5, 0.7),
    ]


@pytest.mark.parametrize("torn", ["3,1.5,0.", "3", "3,1.5,0.1,0.5,0.1,100.0,1.5,,", "\x00\x00"])
def test_line_that_was_cut_off_is_dropped(tmp_path: Path, torn: str) -> None:
    write(tmp_path, 1, 2)
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write(torn)
    assert [item.step for item in read_rows(tmp_path)] == [1, 2]
    write(tmp_path, 3, after=2)
    assert [item.step for item in read_rows(tmp_path)] == [1, 2, 3]


def test_new_run_starts_a_new_file(tmp_path: Path) -> None:
    write(tmp_path, 1, 2, 3)
    write(tmp_path, 1)
    assert [item.step for item in read_rows(tmp_path)] == [1]


def test_missing_file_is_begun_anew(tmp_path: Path) -> None:
    assert read_rows(tmp_path) == []
    write(tmp_path, 8, after=7)
    assert [item.step for item in read_rows(tmp_path)] == [8]


def test_tensorboard_gets_the_scalars(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with metrics(tmp_path, 0, tensorboard=None) as rows:
        rows.write(row(1, 0.25))
        rows.write(row(2, 0.5, test=0.75))
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 0.25), (2, 0.5)]
    assert [(event.step, event.value) for event in events.Scalars("test/accuracy")] == [(2, 0.75)]


def test_tensorboard_asked_for_and_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with (
        pytest.raises(TrainingError, match="pip install tensorboard"),
        metrics(tmp_path, 0, tensorboard=True),
    ):
        pass
    with metrics(tmp_path, 0, tensorboard=None) as rows:
        rows.write(row(1))
    assert not (tmp_path / "tensorboard").exists()
    assert "tensorboard" not in [path.name for path in tmp_path.iterdir()], sys.path
