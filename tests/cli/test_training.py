"""`train`: a run from the command line, its files, its JSON, Ctrl-C and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import revgraph as rg
from revgraph.training import data as data_module
from revgraph.training.metrics import read_rows

Run = Callable[..., Any]
ROOT = Path(rg.__file__).parents[1]


@pytest.fixture(autouse=True)
def heard() -> Any:
    """Ctrl-C is heard, even where the tests run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
def test_training_from_the_command_line(revgraph: Run, tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    answer = revgraph("train", tiny, "--steps", 6, "--batch", 50, "--out", out, "--no-tensorboard")
    assert answer.status == 0, answer.err
    assert "test accuracy" in answer.out and str(out / "metrics.csv") in answer.out
    assert "step 6 of 6" in answer.err
    assert [row.step for row in read_rows(out)] == list(range(1, 7))
    assert (out / "checkpoints" / "step-00000006" / "model.safetensors").is_file()
    assert not (out / "tensorboard").exists()


@pytest.mark.slow
def test_training_as_json_and_resumed(revgraph: Run, tiny: Path, tmp_path: Path) -> None:
    command = (
        "train",
        tiny,
        "--steps",
        4,
        "--batch",
        50,
        "--out",
        tmp_path / "run",
        "--json",
        "--no-tensorboard",
    )
    found = revgraph(*command).json
    assert (found["step"], found["steps"], found["interrupted"]) == (4, 4, False)
    assert 0 <= found["test"]["accuracy"] <= 1 and Path(found["checkpoint"]).is_dir()
    refused = revgraph(*command)
    assert refused.status == 2 and "Go on with --resume" in refused.err and refused.out == ""
    assert revgraph(*command, "--resume").json["test"] == found["test"]
    assert revgraph(*command, "--overwrite").json["test"] == found["test"]


@pytest.mark.slow
def test_training_within_a_budget(revgraph: Run, tiny: Path, tmp_path: Path) -> None:
    options = ("--steps", 2, "--out", tmp_path / "run", "--no-tensorboard")
    assert revgraph("train", tiny, *options, "--budget", "1 GiB").status == 0
    refused = revgraph("train", tiny, *options, "--overwrite", "--budget", "100 B")
    assert refused.status == 1 and "no plan fits 100 B" in refused.err


@pytest.mark.slow
def test_compiled_training_to_its_end_and_resumed_bit_for_bit(
    revgraph: Run, tiny: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    sizes = ("--steps", 4, "--save-every", 2, "--batch", 50, "--no-tensorboard")
    options = ("--compile", "--backend", "aot", "--out", out, *sizes)
    answer = revgraph("train", tiny, *options)
    assert answer.status == 0 and "compiled in" in answer.err and "step 4 of 4" in answer.err
    whole = figures(out)
    assert len(whole) == 4
    shutil.rmtree(out / "checkpoints" / "step-00000004")
    assert revgraph("train", tiny, *options, "--resume").status == 0
    assert figures(out) == whole
    plain = tmp_path / "plain"
    assert revgraph("train", tiny, "--out", plain, *sizes).status == 0
    assert [each[0] for each in figures(plain)] == pytest.approx([each[0] for each in whole], rel=1e-5)


def figures(out: Path) -> list[list[float | None]]:
    """What a run's metrics say, but for its times."""
    return [[row.loss, row.accuracy, row.test_loss, row.test_accuracy] for row in read_rows(out)]


def test_compiling_without_a_compiler_is_refused(
    revgraph: Run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor import config

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    # Not by `monkeypatch`, which would leave the option deleted.
    with config.patch({"cpp.cxx": (None, "/nowhere/g++")}):
        answer = revgraph("train", tiny, "--compile", "--steps", 1, "--out", tmp_path / "run")
    assert answer.status == 2 and "needs a C++ compiler" in answer.err and "--backend aot" in answer.err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_seed_decides_the_weights(revgraph: Run, tiny: Path, tmp_path: Path) -> None:
    losses = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        options = ("--steps", 2, "--out", tmp_path / name, "--seed", seed, "--no-tensorboard")
        assert revgraph("train", tiny, *options).status == 0
        losses.append([row.loss for row in read_rows(tmp_path / name)])
    assert losses[0] == losses[1] != losses[2]


def test_epochs_instead_of_steps(revgraph: Run, tiny: Path, tmp_path: Path) -> None:
    found = revgraph(
        "train", tiny, "--epochs", 0.2, "--out", tmp_path / "run", "--json", "--no-tensorboard"
    ).json
    assert found["steps"] == 3  # 0.2 * 1,437 images in batches of 100


@pytest.mark.slow
def test_network_gets_as_many_classes_as_the_data(
    revgraph: Run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digits = data_module.load_digits()
    monkeypatch.setattr(data_module, "load_digits", lambda: replace(digits, classes=13))
    options = ("--steps", 1, "--out", tmp_path / "run", "--no-tensorboard")
    assert revgraph("train", tiny, *options).status == 0
    refused = revgraph("train", tiny, *options, "--overwrite", "--set", "classes=5")
    assert refused.status == 2 and "must return [100, 13]" in refused.err


@pytest.mark.slow
def test_a_language_model_on_a_text_of_ones_own(revgraph: Run, tmp_path: Path) -> None:
    text, out = tmp_path / "rhyme.txt", tmp_path / "run"
    text.write_bytes(b"Who sees with equal eye, as God of all, a hero perish, or a sparrow fall. " * 50)
    sizes = ("width=16", "depth=1", "heads=2", "length=20")
    options = ("--data", f"text:{text}", "--steps", 4, "--out", out, "--no-tensorboard", "--json")
    sets = [each for size in sizes for each in ("--set", size)]
    answer = revgraph("train", "reversible-lm", *options, *sets)
    found = answer.json
    assert found["test"]["bytes"] == 360 and 0 < found["test"]["bits_per_byte"] < 9
    assert "bits per byte" in answer.err and "windows/s" in answer.err
    rates = [row.learning_rate for row in read_rows(out)]
    assert max(rates) == 0.003 and rates[-1] < rates[0]
    again = revgraph("train", "reversible-lm", *options, *sets, "--resume")
    assert again.json["test"] == found["test"]
    shown = revgraph("train", "reversible-lm", *options[:-1], *sets, "--overwrite", "--optimizer", "sgd")
    assert "bits per byte" in shown.out and "of 360 bytes" in shown.out
    assert read_rows(out)[0].learning_rate == 0.1


def test_network_and_data_that_do_not_go_together(revgraph: Run, tiny: Path, tmp_path: Path) -> None:
    options = ("--steps", 1, "--out", tmp_path / "run")
    refused = revgraph("train", tiny, "--data", "text", *options)
    assert refused.status == 2 and "choose a language model, such as reversible-lm" in refused.err
    refused = revgraph("train", "reversible-lm", *options)
    assert refused.status == 2 and "choose a network for images" in refused.err
    refused = revgraph("train", "reversible-transformer", "--data", "text", *options)
    assert refused.status == 2 and "takes 2 inputs (tokens, padding)" in refused.err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--optimizer", "adam"), "--optimizer is sgd or adamw, not 'adam'"),
        (("--steps", 5, "--epochs", 1), "--steps or --epochs, not both"),
        (("--resume", "--overwrite"), "--resume or --overwrite, not both"),
        (("--epochs", 0), "--epochs must be above 0"),
        (("--precision", "fp8"), "--precision is no, bf16, fp16"),
        (("--compile", "--backend", "tpu"), "--backend is inductor or aot, not 'tpu'"),
        (("--steps", 0), "'--steps'"),
        (("--learning-rate", -1), "learning_rate is -1.0, and must be above 0"),
        (("--warmup", 9, "--steps", 5), "warmup is 9"),
        (("--data", "mnist"), "there is no data set 'mnist'"),
        (("--data", "cifar10:/nowhere"), "there is no folder '/nowhere'"),
        (("--resume",), "there is no checkpoint in"),
        (("--budget", "ten"), "'ten' is no budget"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    revgraph: Run, tiny: Path, tmp_path: Path, options: tuple[object, ...], text: str
) -> None:
    answer = revgraph("train", tiny, "--out", tmp_path / "run", *options)
    assert answer.status == 2 and text in " ".join(answer.err.split())
    assert not list((tmp_path / "run").glob("*"))


@pytest.mark.slow
def test_ctrl_c_saves_and_exits_with_130(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = ("train", str(tiny), "--steps", "100000", "--batch", "10", "--out", str(out), "--json")
    with subprocess.Popen(
        [
            sys.executable,
            "-W",
            "error",
            "-m",
            "revgraph",
            *command,
            "--no-tensorboard",
            "--evaluate-every",
            "100000",
            "--learning-rate",
            "0.001",  # the net is linear all through, and would diverge before a slow reader stops it
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        deadline = time.monotonic() + 100
        while len(read_rows(out)) < 3 and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=600)
    assert process.returncode == 130, stderr
    found = json.loads(stdout)
    assert found["interrupted"] is True and found["test"] is None
    assert Path(found["checkpoint"]).name == f"step-{found['step']:08d}"
    assert read_rows(out)[-1].step == found["step"]
    assert "saving after this step, Ctrl-C again aborts at once" in stderr
    assert f"Interrupted after step {found['step']} of 100000, and saved. Go on with --resume." in stderr
    assert "Traceback" not in stderr
