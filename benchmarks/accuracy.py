"""`python -m benchmarks.accuracy`: does a RevNet learn as well as the ResNet of its size?

ResNet-32 with its activations stored and RevNet-38 with its inverted, on the embedded digits with several
seeds; with `--data FOLDER`, on CIFAR-10 or CIFAR-100 (or both) with the paper's recipe. Prints the table, and
writes accuracy.csv, .md and .svg, for CIFAR accuracy-cifar10.csv and so on.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import Any

import torch

import revgraph as rg
from benchmarks.paper.charts import LOOKS, chart, legend
from benchmarks.paper.training import Trained, train
from benchmarks.shared import machine, markdown_table, write_csv, write_text
from revgraph.errors import DataError
from revgraph.measuring import activation_bytes
from revgraph.planning import human_bytes
from revgraph.training import cifar, demo
from revgraph.training.batches import Batches
from revgraph.training.data import load_data
from revgraph.training.images import Data
from revgraph.training.recipe import Recipe

RESULTS = Path(__file__).parent / "results"
# Of about equal size: the ResNet is trained with its activations stored, and the RevNet with its inverted.
NETWORKS = ("resnet-32", "revnet-38")
DIGITS = replace(demo.RECIPE, steps=300)
PAPER = Recipe(steps=80_000)
# Test errors in percent, as reported by Gomez et al. 2017.
REPORTED = {
    "cifar10": {"resnet-32": 7.14, "revnet-38": 7.24, "resnet-110": 5.74, "revnet-110": 5.76,
                "resnet-164": 5.24, "revnet-164": 5.17},
    "cifar100": {"resnet-32": 29.95, "revnet-38": 28.96, "resnet-110": 26.44, "revnet-110": 25.40,
                 "resnet-164": 23.37, "revnet-164": 23.69},
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Model:
    """A network with its runs by seed; the peak is that of a training step, measured."""

    name: str
    parameters: int
    peak_bytes: int
    runs: Mapping[int, Trained]

    @property
    def errors(self) -> list[float]:
        """The share of wrong answers on the test at the end, by seed."""
        return [1 - run.test.accuracy for run in self.runs.values()]


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, print and write; the exit status is 0, 2 for bad input and 130 if it was interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--data", type=Path, help="folder of CIFAR's binary files (the embedded digits)")
    parser.add_argument("--networks", nargs="+", default=NETWORKS, help="names or YAML files (those two)")
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2), help="one run each (0 1 2)")
    parser.add_argument("--steps", type=int, help=f"of a run ({DIGITS.steps}, on CIFAR {PAPER.steps})")
    parser.add_argument("--batch", type=int, help=f"images a step ({DIGITS.batch}, on CIFAR {PAPER.batch})")
    parser.add_argument("--runs", type=Path, help="folder to keep the runs in, and to go on from")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder to write to (benchmarks/results)")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1 if chosen.data is None else torch.get_num_threads())
    try:
        for name in ["digits"] if chosen.data is None else sets_in(chosen.data):
            _experiment(name, chosen)
    except rg.RevgraphError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    return 0


def sets_in(folder: Path) -> list[str]:
    """The CIFAR sets whose binary files are in a folder, as `load_data` names them.

    Raises:
        DataError: there is neither.
    """
    found = [
        f"{layout.name}:{folder}"
        for layout in (cifar.CIFAR10, cifar.CIFAR100)
        if (folder / layout.folder).is_dir() or (folder / layout.train[0].name).is_file()
    ]
    if not found:
        raise DataError(
            f"{str(folder)!r} has neither CIFAR-10 nor CIFAR-100. Unpack {cifar.CIFAR10.archive} or "
            f"{cifar.CIFAR100.archive} there, the binary versions, or leave --data out for the digits."
        )
    return found


def _experiment(name: str, chosen: argparse.Namespace) -> None:
    data = load_data(name)
    recipe = DIGITS if data.name == "digits" else PAPER
    steps = chosen.steps or recipe.steps
    recipe = replace(
        recipe, steps=steps, batch=chosen.batch or recipe.batch, warmup=min(recipe.warmup, steps)
    )
    with tempfile.TemporaryDirectory() as temporary:
        runs = (chosen.runs or Path(temporary)) / data.name
        models = [trained(each, data, recipe, chosen.seeds, runs) for each in chosen.networks]
    text = page(models, data, recipe)
    stem = "accuracy" if data.name == "digits" else f"accuracy-{data.name}"
    write_csv(chosen.out / f"{stem}.csv", table(models))
    write_text(chosen.out / f"{stem}.md", text)
    draw(models, data, chosen.out / f"{stem}.svg")
    print(text)


def trained(name: str, data: Data, recipe: Recipe, seeds: Sequence[int], folder: Path) -> Model:
    """A network trained once for every seed, which sets its weights and batches."""
    label = Path(name).stem
    runs: dict[int, Trained] = {}
    parameters = peak = 0
    for seed in seeds:
        torch.manual_seed(seed)
        net = rg.load(name, batch=recipe.batch, classes=data.classes)
        net.plan = rg.decide(net.graph, {})  # which inverts all couplings; a ResNet has none
        parameters = sum(weight.numel() for weight in net.parameters())
        images, _ = Batches(data, recipe.batch, seed).draw()
        peak, _ = activation_bytes(net, images)
        runs[seed] = train(net, data, replace(recipe, seed=seed), folder / f"{label}-{seed}")
        accuracy = runs[seed].test.accuracy
        print(f"{label}, seed {seed}: test accuracy {accuracy:.2%}", file=sys.stderr, flush=True)
    return Model(label, parameters, peak, runs)


def table(models: Sequence[Model]) -> list[dict[str, Any]]:
    """A row for every step of every run."""
    return [
        {
            "network": model.name,
            "seed": seed,
            "step": row.step,
            "loss": row.loss,
            "test_accuracy": row.test_accuracy,
        }
        for model in models
        for seed, run in model.runs.items()
        for row in run.rows
    ]


def page(models: Sequence[Model], data: Data, recipe: Recipe) -> str:
    """Errors over the seeds, beside the paper's where it has them."""
    reported = REPORTED.get(data.name)
    head = ["", "parameters", "peak bytes", "test error", "least", "most", "loss, last 50 steps"]
    head += ["reported"] if reported else []
    rows = []
    for model in models:
        loss = statistics.fmean(run.last_loss for run in model.runs.values())
        row = [model.name, f"{model.parameters:,}", human_bytes(model.peak_bytes)]
        row += [f"{each:.2%}" for each in (statistics.fmean(model.errors), *_ends(model.errors))]
        row += [f"{loss:.4f}"]
        if reported:
            row.append(f"{reported[model.name]:.2f}%" if model.name in reported else "")
        rows.append(row)
    described, seeds = machine(), ", ".join(map(str, models[0].runs))
    return (
        f"{data.name}, {len(data.train):,} images and {len(data.test):,} to test; {recipe.steps:,} steps of "
        f"{recipe.batch} images, seeds {seeds}; {described['cpu']}, Python {described['python']}, torch "
        f"{described['libraries']['torch']}.\n\n{markdown_table(head, rows)}\n\n"
        "Peak bytes are the activations of a step, measured: a ResNet's stored, a RevNet's inverted. "
        "Test errors and losses are means over the seeds.\n"
    )


def _ends(values: Sequence[float]) -> tuple[float, float]:
    return min(values), max(values)


def draw(models: Sequence[Model], data: Data, path: Path) -> None:
    """Losses and test errors by step: the mean over the seeds as a line, from least to most as a band."""
    with chart(path, f"Training losses and test errors on {data.name} by step") as figure:
        left, right = figure.subplots(1, 2)
        for model, (colour, shape) in zip(models, cycle(LOOKS[i] for i in (2, 5, 3, 4)), strict=False):
            runs = list(model.runs.values())
            losses = list(zip(*(run.smoothed for run in runs), strict=True))
            steps = range(1, len(losses) + 1)
            left.plot(steps, list(map(statistics.fmean, losses)), color=colour, linewidth=1.6)
            left.fill_between(steps, *zip(*map(_ends, losses), strict=True), color=colour, alpha=0.2)
            tested = [step for step, _ in runs[0].tests]
            errors = list(zip(*([1 - right for _, right in run.tests] for run in runs), strict=True))
            means = list(map(statistics.fmean, errors))
            right.plot(tested, means, color=colour, marker=shape, linewidth=1.6, label=model.name)
            right.fill_between(tested, *zip(*map(_ends, errors), strict=True), color=colour, alpha=0.2)
        left.set(xlabel="step", ylabel="training loss, mean of 20 steps", yscale="log")
        right.set(xlabel="step", ylabel="test error", yscale="log")
        right.yaxis.set_major_formatter(lambda value, _: f"{value:.2g}")
        legend(figure, len(models), right.get_legend_handles_labels()[0])


if __name__ == "__main__":
    sys.exit(main())
