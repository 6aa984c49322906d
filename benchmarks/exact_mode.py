"""`python -m benchmarks.exact_mode`: RevNet-38 learns the digits with and without exact mode.

The same weights, batches and recipe each time: activations stored, inverted in float32, and inverted in exact
mode at several resolutions. Prints the table, and writes exact_mode.json, exact_mode.md and exact_mode.svg.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.shared import machine, markdown_table, write_json, write_text

RESULTS = Path(__file__).parent / "results"
STEPS, BATCH = 400, 16
# Whether streams are on a grid, and of which resolution; whether activations are stored.
RUNS: dict[str, tuple[bool | float, bool]] = {
    "stored": (False, True),
    "inverted": (False, False),
    "exact, 2**-14": (2.0**-14, False),
    "exact, 2**-8": (2.0**-8, False),
    "exact, 2**-4": (2.0**-4, False),
}
COLOURS = ("#808080", "#3f86c9", "#2f9a72", "#c77d17", "#d9534a")


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, print and write; the exit status is 0."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.exact_mode", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--steps", type=int, default=STEPS, help=f"training steps a run ({STEPS})")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder to write to (benchmarks/results)")
    parser.add_argument("--no-chart", action="store_true", help="without matplotlib: no exact_mode.svg")
    chosen = parser.parse_args(arguments)
    conditions = {"machine": machine(), "steps": chosen.steps, "batch": BATCH}
    runs: dict[str, dict[str, Any]] = {}
    for name, (exact, stored) in RUNS.items():
        runs[name] = _trained(exact, stored, chosen.steps)
        print(f"{name}: test accuracy {runs[name]['test_accuracy']:.2%}", file=sys.stderr, flush=True)
    page = _page(runs, conditions)
    write_json(chosen.out / "exact_mode.json", {**conditions, "runs": runs})
    write_text(chosen.out / "exact_mode.md", page)
    if not chosen.no_chart:
        _draw(runs, chosen.out / "exact_mode.svg")
    print(page)
    return 0


def _trained(exact: bool | float, stored: bool, steps: int) -> dict[str, Any]:
    """The loss of every step, the tests, and how the gradients compare with stored ones at the end."""
    import torch

    import revgraph as rg
    from revgraph.training.batches import Batches
    from revgraph.training.data import load_data
    from revgraph.training.loop import fit
    from revgraph.training.metrics import CSV
    from revgraph.training.recipe import Recipe

    torch.set_num_threads(1)
    recipe = Recipe(steps=steps, batch=BATCH, learning_rate=0.05, warmup=20, weight_decay=1e-3)
    data = load_data("digits")
    torch.manual_seed(recipe.seed)
    net = rg.load("revnet-38", batch=BATCH, exact=exact)
    net.plan = rg.keep_all(net.graph) if stored else rg.decide(net.graph, {})
    with tempfile.TemporaryDirectory() as folder:
        result = fit(net, data, recipe, folder, evaluate_every=max(1, steps // 8), tensorboard=False)
        with (Path(folder) / CSV).open(newline="") as file:
            rows = list(csv.DictReader(file))
    assert result.test is not None
    images, _ = Batches(data, BATCH, recipe.seed).draw()
    report = rg.check(net, images)
    return {
        "loss": [float(row["loss"]) for row in rows],
        "tests": [(int(row["step"]), float(row["test_accuracy"])) for row in rows if row["test_accuracy"]],
        "test_accuracy": result.test.accuracy,
        "angle_degrees": report.angle_degrees,
        "drift": max(report.drift.values(), default=0.0),
    }


def _page(runs: dict[str, dict[str, Any]], conditions: dict[str, Any]) -> str:
    rows = [
        [
            name,
            f"{run['test_accuracy']:.2%}",
            f"{statistics.fmean(run['loss'][-50:]):.4f}",
            f"{run['angle_degrees']:.2g}",
            f"{run['drift']:.2g}",
        ]
        for name, run in runs.items()
    ]
    head = ["streams", "test accuracy", "loss, last 50 steps", "angle, degrees", "drift"]
    described = conditions["machine"]
    return (
        f"RevNet-38 on the embedded digits, {conditions['steps']} steps of {conditions['batch']} images, "
        f"seed 0; {described['cpu']}, Python {described['python']}, torch {described['libraries']['torch']} "
        f"on one thread.\n\n{markdown_table(head, rows)}\n\n"
        "Angle: between the gradient and that of stored activations, once trained. Drift: the largest error "
        "of a rebuilt value over its largest element. Training is chaotic: a difference of a rounding error "
        "in the first step is a different run in the end, so that accuracies differ by a few images anyway.\n"
    )


def _draw(runs: dict[str, dict[str, Any]], path: Path) -> None:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    ink = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color")
    style: Any = {"svg.fonttype": "none", "svg.hashsalt": "revgraph", "font.size": 11}
    with rc_context(style | dict.fromkeys(ink, "#808080")):
        figure = Figure(figsize=(9.6, 4.4), layout="constrained")
        losses, accuracies = figure.subplots(1, 2)
        for (name, run), colour in zip(runs.items(), COLOURS, strict=True):
            losses.plot(_smoothed(run["loss"]), color=colour, linewidth=1.6, label=name)
            accuracies.plot(*zip(*run["tests"], strict=True), "o-", color=colour, markersize=4, linewidth=1.6)
        losses.set(xlabel="step", ylabel="training loss, mean of 20 steps", yscale="log")
        accuracies.set(xlabel="step", ylabel="test accuracy")
        for axes in (losses, accuracies):
            axes.grid(alpha=0.35)
            axes.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside lower center", ncols=5, frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, transparent=True, metadata={"Date": None, "Title": "exact mode"})


def _smoothed(losses: Sequence[float], window: int = 20) -> list[float]:
    return [statistics.fmean(losses[max(0, end - window) : end]) for end in range(1, len(losses) + 1)]


if __name__ == "__main__":
    sys.exit(main())
