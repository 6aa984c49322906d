"""Angles during training, and accuracies on the digits and on CIFAR's files, on a tiny network."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import benchmarks.accuracy as accuracy
import benchmarks.angles as angles
from benchmarks.paper.networks import one_stage
from revgraph.training import cifar
from revgraph.training import data as datasets
from revgraph.training.digits import load_digits
from revgraph.training.images import Data, Images
from revgraph.training.recipe import Recipe

pytestmark = pytest.mark.slow  # for what they look at takes long, and is made once for all of them

RECIPE = Recipe(steps=4, batch=4, learning_rate=0.05)


@pytest.fixture(autouse=True)
def single_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def few() -> Data:
    data = load_digits()
    return replace(data, test=Images(data.test.pixels[:8], data.test.labels[:8]))


@pytest.fixture(scope="module")
def runs(few: Data) -> dict[str, angles.Run]:
    network = one_stage(1, RECIPE.batch, channels=4, side=32)
    return {name: angles.trained(name, few, RECIPE, network) for name in list(angles.RUNS)[:3]}


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    spec = one_stage(1, RECIPE.batch, channels=4, side=32)
    spec["parameters"] = {"classes": 10}
    spec["layers"][-1]["head"]["Head"]["classes"] = "$classes"
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
    return tmp_path / "tiny.yaml"


@pytest.fixture
def small_cifar(monkeypatch: pytest.MonkeyPatch) -> None:
    """CIFAR's layouts with four records a file."""
    for name in ("CIFAR10", "CIFAR100"):
        layout = getattr(cifar, name)
        small = replace(
            layout,
            train=tuple(replace(file, records=4) for file in layout.train),
            test=replace(layout.test, records=4),
        )
        monkeypatch.setattr(cifar, name, small)
        monkeypatch.setattr(datasets, name, small)


def write_cifar(folder: Path, layout: cifar.Layout) -> None:
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for file in (*layout.train, layout.test):
        labels = random.integers(0, 10, (file.records, len(layout.labels)))
        pixels = random.integers(0, 256, (file.records, cifar.IMAGE_BYTES))
        np.concatenate([labels, pixels], axis=1).astype(np.uint8).tofile(folder / file.name)


def test_the_angle_is_zero_in_exact_mode_and_small_when_inverted(runs: dict[str, angles.Run]) -> None:
    stored, inverted, exact = runs.values()
    assert not stored.compared
    assert list(inverted.compared) == list(exact.compared) == [1, 2, 3, 4]
    assert {report.angle_degrees for report in exact.compared.values()} == {0.0}
    assert {error for report in exact.compared.values() for error in report.drift.values()} == {0.0}
    assert all(report.angle_degrees < 0.01 for report in inverted.compared.values())
    assert any(error > 0 for report in inverted.compared.values() for error in report.drift.values())


def test_runs_start_alike_and_repeat_by_their_seed(runs: dict[str, angles.Run], few: Data) -> None:
    stored, inverted, _ = runs.values()
    assert stored.trained.rows[0].loss == inverted.trained.rows[0].loss
    again = angles.trained("inverted", few, RECIPE, one_stage(1, RECIPE.batch, channels=4, side=32))
    assert [row.loss for row in again.trained.rows] == [row.loss for row in inverted.trained.rows]
    assert again.compared == inverted.compared


def test_angles_are_shown_and_drawn(runs: dict[str, angles.Run], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = angles.table(runs)
    assert len(rows) == 3 * RECIPE.steps
    assert [row["angle_degrees"] for row in rows[:4]] == 4 * [None]
    assert "exact, 2**-14" in angles.page(runs, RECIPE)
    angles.draw(runs, tmp_path / "angles.svg")
    assert ">angle to the stored gradient, degrees</text>" in (tmp_path / "angles.svg").read_text()


def test_cifar_in_a_folder_is_learned_with_the_papers_recipe(
    small_cifar: None, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    for layout in (cifar.CIFAR10, cifar.CIFAR100):
        write_cifar(tmp_path / "sets" / layout.folder, layout)
    arguments = ["--data", str(tmp_path / "sets"), "--networks", str(tiny), "--seeds", "3", "--steps", "2"]
    arguments += ["--batch", "4", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    assert accuracy.main(arguments) == 0
    for name in ("cifar10", "cifar100"):
        with (tmp_path / "out" / f"accuracy-{name}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [(row["network"], row["seed"], row["step"]) for row in rows] == [
            ("tiny", "3", "1"),
            ("tiny", "3", "2"),
        ]
        assert (tmp_path / "out" / f"accuracy-{name}.svg").exists()
        assert "reported" in (tmp_path / "out" / f"accuracy-{name}.md").read_text()
    before = (tmp_path / "out" / "accuracy-cifar10.csv").read_text().splitlines()
    arguments[1] = str(tmp_path / "sets" / cifar.CIFAR10.folder)
    arguments.insert(arguments.index("--steps"), "4")
    assert accuracy.main(arguments) == 0  # goes on from the finished run, and has another of a new seed
    after = (tmp_path / "out" / "accuracy-cifar10.csv").read_text().splitlines()
    assert after[: len(before)] == before and len(after) == len(before) + 2
    assert after[-1].startswith("tiny,4,2,") and after[-1].split(",")[3] != before[-1].split(",")[3]
    capsys.readouterr()


def test_the_papers_recipe_is_the_default_on_cifar() -> None:
    paper = accuracy.PAPER
    assert (paper.steps, paper.batch, paper.learning_rate, paper.warmup) == (80_000, 100, 0.1, 0)
    assert (paper.momentum, paper.weight_decay) == (0.9, 2e-4)


def test_a_folder_without_cifar_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert accuracy.main(["--data", str(tmp_path)]) == 2
    assert "has neither CIFAR-10 nor CIFAR-100. Unpack" in capsys.readouterr().err
