"""`python -m benchmarks.angles`: gradients from stored and from rebuilt activations, during training.

RevNet-38 learns the digits with activations stored, inverted, and inverted in exact mode at several
resolutions: the same weights, batches and recipe each time. Prints the table, and writes angles.csv, .md and
.svg.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import revgraph as rg
from benchmarks.paper.charts import LOOKS, chart, legend
from benchmarks.paper.training import Comparing, Trained, train
from benchmarks.shared import machine, markdown_table, write_csv, write_text
from revgraph.training.batches import Batches
from revgraph.training.data import load_data
from revgraph.training.demo import RECIPE
from revgraph.training.images import Data
from revgraph.training.recipe import Recipe

RESULTS = Path(__file__).parent / "results"
NETWORK, STEPS, COMPARISONS = "revnet-38", 400, 20
STORED = "stored"
# Whether streams are on a grid, and of which resolution.
RUNS: dict[str, bool | float] = {
    STORED: False,
    "inverted": False,
    "exact, 2**-14": 2.0**-14,
    "exact, 2**-8": 2.0**-8,
    "exact, 2**-4": 2.0**-4,
}


@dataclass(frozen=True, slots=True)
class Run:
    """One run, and by step how its gradients compare with stored ones; the run that stores has none."""

    trained: Trained
    compared: Mapping[int, rg.GradientReport]


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, print and write; the exit status is 0."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.angles", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--steps", type=int, default=STEPS, help=f"training steps a run ({STEPS})")
    parser.add_argument("--seed", type=int, default=0, help="for weights and batches (0)")
    parser.add_argument("--only", action="append", choices=RUNS, help="a run (all); may be given again")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder to write to (benchmarks/results)")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    recipe = replace(RECIPE, steps=chosen.steps, warmup=min(RECIPE.warmup, chosen.steps), seed=chosen.seed)
    data = load_data("digits")
    runs: dict[str, Run] = {}
    for name in RUNS:
        if chosen.only is None or name in chosen.only:
            runs[name] = trained(name, data, recipe)
            accuracy = runs[name].trained.test.accuracy
            print(f"{name}: test accuracy {accuracy:.2%}", file=sys.stderr, flush=True)
    text = page(runs, recipe)
    write_csv(chosen.out / "angles.csv", table(runs))
    write_text(chosen.out / "angles.md", text)
    draw(runs, chosen.out / "angles.svg")
    print(text)
    return 0


def trained(name: str, data: Data, recipe: Recipe, network: Any = NETWORK) -> Run:
    """The run called `name`, compared 20 times on the first batch."""
    torch.manual_seed(recipe.seed)
    net = rg.load(network, batch=recipe.batch, exact=RUNS[name])
    net.plan = rg.keep_all(net.graph) if name == STORED else rg.decide(net.graph, {})
    images, _ = Batches(data, recipe.batch, recipe.seed).draw()
    comparing = None if name == STORED else Comparing(net, images, max(1, recipe.steps // COMPARISONS))
    with tempfile.TemporaryDirectory() as folder:
        result = train(net, data, recipe, Path(folder), comparing)
    return Run(result, comparing.found if comparing is not None else {})


def table(runs: Mapping[str, Run]) -> list[dict[str, Any]]:
    """A row for every step of every run."""
    rows = []
    for name, run in runs.items():
        for row in run.trained.rows:
            report = run.compared.get(row.step)
            rows.append(
                {
                    "run": name,
                    "step": row.step,
                    "loss": row.loss,
                    "test_accuracy": row.test_accuracy,
                    "angle_degrees": report.angle_degrees if report else None,
                    "largest_drift": _drift(report) if report else None,
                }
            )
    return rows


def page(runs: Mapping[str, Run], recipe: Recipe) -> str:
    """How the runs ended, and how far their gradients were off on the way."""
    head = ["activations", "test accuracy", "loss, last 50 steps", "angle at step 1", "largest", "at the end"]
    head.append("largest drift")
    rows = []
    for name, run in runs.items():
        angles = [report.angle_degrees for report in run.compared.values()]
        row = [name, f"{run.trained.test.accuracy:.2%}", f"{run.trained.last_loss:.4f}"]
        row += [f"{angle:.2g}" for angle in (angles[0], max(angles), angles[-1])] if angles else [""] * 3
        row.append(f"{max(map(_drift, run.compared.values())):.2g}" if angles else "")
        rows.append(row)
    described = machine()
    return (
        f"RevNet-38 on the embedded digits, {recipe.steps} steps of {recipe.batch} images, seed "
        f"{recipe.seed}; {described['cpu']}, Python {described['python']}, torch "
        f"{described['libraries']['torch']} on one thread.\n\n{markdown_table(head, rows)}\n\n"
        "Angle: in degrees, between the gradient and that of stored activations with the weights after "
        "that step. Drift: the largest error of a rebuilt value over its largest element. Training is "
        "chaotic: a difference of a rounding error in the first step is a different run in the end, so that "
        "accuracies differ by a few images anyway.\n"
    )


def draw(runs: Mapping[str, Run], path: Path) -> None:
    """Losses, accuracies and angles by step."""
    title = "RevNet-38 on the digits: losses, accuracies and the angles between gradients"
    with chart(path, title, (12, 4.6)) as figure:
        losses, accuracies, angles = figure.subplots(1, 3)
        for name, run in runs.items():
            colour, shape = LOOKS[list(RUNS).index(name)]
            losses.plot(run.trained.smoothed, color=colour, linewidth=1.6)
            looks = {"color": colour, "marker": shape, "markersize": 5, "linewidth": 1.4}
            accuracies.plot(*zip(*run.trained.tests, strict=True), label=name, **looks)
            if run.compared:
                degrees = [report.angle_degrees for report in run.compared.values()]
                angles.plot(list(run.compared), degrees, **looks)
        losses.set(ylabel="training loss, mean of 20 steps", yscale="log")
        accuracies.set(ylabel="test accuracy")
        angles.set_yscale("symlog", linthresh=1e-6)
        angles.set(ylabel="angle to the stored gradient, degrees", ylim=(-1e-7, None))
        for axes in figure.axes:
            axes.set_xlabel("step")
        legend(figure, len(runs), accuracies.get_legend_handles_labels()[0])


def _drift(report: rg.GradientReport) -> float:
    return max(report.drift.values(), default=0.0)


if __name__ == "__main__":
    sys.exit(main())
