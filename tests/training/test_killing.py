"""`kill -9` at any moment: the previous checkpoint is usable, and the resumed run is bit for bit the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import revgraph
from revgraph.training.metrics import read_rows


def work(*words: str) -> int:
    root = Path(revgraph.__file__).parents[1]
    command = [sys.executable, "-W", "error", str(Path(__file__).with_name("worker.py")), *words]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, timeout=600, check=False).returncode


@pytest.mark.slow
def test_interrupted_training_resumes_bit_for_bit_after_kill_9(tmp_path: Path) -> None:
    whole, step, saving = (str(tmp_path / name) for name in ("whole", "step", "saving"))
    assert work(step, "kill-step") == -signal.SIGKILL
    assert work(saving, "kill-save") == -signal.SIGKILL
    left = {path.name for path in Path(saving, "checkpoints").iterdir()}
    assert left == {"step-00000004", ".unfinished-step-00000008"}
    assert [row.step for row in read_rows(Path(step))] == list(range(1, 8))
    assert work(whole, "+", step, "resume", "+", saving, "resume") == 0
    for resumed in (step, saving):
        assert _curve(resumed) == _curve(whole)
        assert _weights(resumed) == _weights(whole)
        assert {path.name for path in Path(resumed, "checkpoints").iterdir()} == {
            "step-00000008",
            "step-00000012",
        }


def _curve(folder: str) -> list[tuple[object, ...]]:
    return [
        (row.step, row.loss, row.accuracy, row.learning_rate, row.test_loss, row.test_accuracy)
        for row in read_rows(Path(folder))
    ]


def _weights(folder: str) -> bytes:
    return Path(folder, "checkpoints", "step-00000012", "model.safetensors").read_bytes()


if sys.platform == "win32":
    pytest.skip("Windows has no SIGKILL", allow_module_level=True)
