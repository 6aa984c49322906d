"""`revgraph train` in two processes: as one would, under each launcher, and after one of them was killed."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
from trust.processes import PYTHON, Ended, ranks, together
from trust.training_worker import even

import revgraph as rg
from revgraph.training.metrics import read_rows

HERE = Path(__file__).parent
LEARNING = """
parameters: {classes: 10}
inputs: {image: [3, 32, 32]}
layers:
  - small: {AvgPool2d: 4}
  - stem: {Conv2d: {in_channels: 3, out_channels: 8, kernel_size: 1}}
  - streams: {Split: 2}
  - block: {Additive: {f: {BasicFunction: 4}, g: {BasicFunction: 4}}, repeat: 2}
  - joined: Concatenate
  - drop: {Dropout: 0.2}
  - flat: Flatten
  - head: {Linear: {in_features: 512, out_features: $classes}}
"""
OPTIONS = ("--steps", 12, "--batch", 50, "--save-every", 4, "--evaluate-every", 6, "--no-tensorboard")
TORCHRUN = (*PYTHON, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2)
# Without GPUs too: --cpu would have mpirun start the processes, or start only one.
ACCELERATE = (
    *(*PYTHON, "-m", "accelerate.commands.launch"),
    *("--multi_gpu", "--num_processes", 2, "--num_machines", 1, "--main_process_port", 0),
    *("--mixed_precision", "no", "--dynamo_backend", "no"),
)


@dataclass(frozen=True, slots=True)
class Runs:
    """The folder of the runs, and how they ended: a whole one, a killed one, and its resumption."""

    folder: Path
    whole: Ended
    killed: list[Ended]
    resumed: Ended


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("together")
    net = folder / "learning.yaml"
    net.write_text(LEARNING)
    (folder / "plan.json").write_text(rg.load(net, batch=25).plan.to_json())

    def train(out: str) -> tuple[object, ...]:
        return ("train", net, *OPTIONS, "--plan", folder / "plan.json", "--out", folder / out)

    (whole,) = together([(*TORCHRUN, "-m", "revgraph", *train("whole"))], folder)
    worker = (*PYTHON, HERE / "training_worker.py", folder, *train("killed"))
    killed = together([worker] * 2, folder, ranks(2))
    (resumed,) = together([(*ACCELERATE, "-m", "revgraph", *train("killed"), "--resume")], folder)
    return Runs(folder, whole, killed, resumed)


def curve(folder: Path) -> list[tuple[object, ...]]:
    """All columns that do not tell the time."""
    return [
        (row.step, row.epoch, row.loss, row.accuracy, row.learning_rate, row.test_loss, row.test_accuracy)
        for row in read_rows(folder)
    ]


@pytest.mark.slow
def test_torchrun_trains_in_two_processes_and_one_prints_and_writes(runs: Runs) -> None:
    assert runs.whole.status == 0, runs.whole.text
    assert runs.whole.text.count("the run") == runs.whole.text.count("step 12 of 12") == 1
    assert [row.step for row in read_rows(runs.folder / "whole")] == list(range(1, 13))
    assert sorted(path.name for path in (runs.folder / "whole" / "checkpoints").iterdir()) == [
        "step-00000008",
        "step-00000012",
    ]


def test_two_processes_learn_what_one_does(runs: Runs, tmp_path: Path) -> None:
    even(tmp_path / "one")
    one, two = read_rows(tmp_path / "one"), read_rows(runs.folder / "even")
    assert [row.loss for row in two] == pytest.approx([row.loss for row in one], rel=1e-5)
    assert [row.accuracy for row in two] == pytest.approx([row.accuracy for row in one])
    assert two[-1].test_loss == pytest.approx(one[-1].test_loss, rel=1e-5)
    assert two[-1].test_accuracy == one[-1].test_accuracy


def test_what_the_main_process_refuses_all_refuse(runs: Runs) -> None:
    main, other = ((runs.folder / f"refused-{rank}").read_text() for rank in range(2))
    assert main.startswith("TrainingError") and "holds a run already" in main
    assert other.startswith("Elsewhere: the main process failed: ") and "holds a run already" in other


def test_losing_a_process_ends_the_others_with_a_clear_message(runs: Runs) -> None:
    main, other = runs.killed
    assert other.status == -signal.SIGKILL
    assert main.status == 2, main.text
    message = " ".join(main.text.split())
    assert "error: process 0 of 2 has lost another: it ended or does not answer (" in message
    assert "by peer" in message
    assert "The checkpoint of step 4 is intact. See what that process wrote last, then launch all" in message
    assert "again with --resume." in message
    assert "Traceback" not in main.text


def test_killed_run_of_two_processes_resumes_bit_for_bit(runs: Runs) -> None:
    assert runs.resumed.status == 0, runs.resumed.text
    assert runs.resumed.text.count("going on after step 4 of 12") == 1
    assert curve(runs.folder / "killed") == curve(runs.folder / "whole")
    weights = [
        (runs.folder / name / "checkpoints" / "step-00000012" / "model.safetensors").read_bytes()
        for name in ("killed", "whole")
    ]
    assert weights[0] == weights[1]
