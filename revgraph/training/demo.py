"""`python -m revgraph.training.demo`: RevNet-38 learns real digits with its activations inverted.

It then measures a training step with activations stored and inverted, and writes the plan's picture, the
metrics and the checkpoint.
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional

import revgraph as rg
from revgraph.planning.plans import human_bytes
from revgraph.training.batches import Batches
from revgraph.training.comparing import Comparison, compare
from revgraph.training.data import load_data
from revgraph.training.loop import Result, fit
from revgraph.training.metrics import CSV
from revgraph.training.progress import Bar
from revgraph.training.recipe import Recipe

TARGET = 0.97
# Few images and few steps: a small batch makes the most of them, a lower rate goes with it, and weights decay
# faster than in the paper's run, which is 100 times as long.
RECIPE = Recipe(steps=800, batch=16, learning_rate=0.05, warmup=20, weight_decay=1e-3)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demonstration; the exit status is 0, or 1 if the net did not reach 97 % on the test."""
    parser = argparse.ArgumentParser(prog="python -m revgraph.training.demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder to write to")
    out: Path = parser.parse_args(arguments).out
    console = Console(highlight=False)
    try:
        return _run(out, console)
    except rg.RevgraphError as error:
        console.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        console.print("Aborted.")
        return 130


def _run(out: Path, console: Console) -> int:
    began = time.perf_counter()
    with console.status("reading the digits and RevNet-38"):
        data = load_data("digits")
        torch.manual_seed(RECIPE.seed)
        net = rg.load("revnet-38", batch=RECIPE.batch)
    weights = sum(weight.numel() for weight in net.parameters())
    console.print(
        f"RevNet-38, {weights:,} parameters; digits, {len(data.train):,} images and {len(data.test)} to test"
    )
    console.print(net.plan.summary(), soft_wrap=True, markup=False)
    with console.status("timing a step"):
        batch = Batches(data, RECIPE.batch, RECIPE.seed).draw()
        estimate = _duration(RECIPE.steps * _step_seconds(net, *batch))
    console.print(f"This takes {estimate} on this machine: {RECIPE.steps} steps, a test, and measuring.")
    with Bar(console) as bar:
        # Before the learning rate falls, BatchNorm's averages lag behind the weights, and a test would say
        # more about that than about what was learned. So there is one, at the end.
        result = fit(
            net, data, RECIPE, out, overwrite=True, evaluate_every=RECIPE.steps, save_every=100, watch=bar
        )
    if result.interrupted or result.test is None:
        stop = f"Interrupted after step {result.step} of {result.steps}, and saved in {out}."
        console.print(stop, markup=False, soft_wrap=True)
        return 130
    with console.status("measuring") as status:
        comparison = compare(net, batch[0], progress=status.update)
        picture = out / "plan.svg"
        rg.draw(net.plan, picture)
    console.print(_table(comparison))
    console.print(f"angle between the two gradients: {comparison.angle:.2g} degrees")
    for name, path in (("plan", picture), ("metrics", out / CSV), ("checkpoint", result.checkpoint.folder)):
        console.print(f"{name + ':':<11} {path}", markup=False, soft_wrap=True)
    return _verdict(result, time.perf_counter() - began, console)


def _step_seconds(net: rg.ReversibleModule, images: Tensor, labels: Tensor) -> float:
    """Seconds of a training step, the second one, on a copy: the net stays as it is."""
    copied = copy.deepcopy(net).train()
    began = 0.0
    for _ in range(2):
        began = time.perf_counter()
        functional.cross_entropy(copied(images), labels).backward()
    return time.perf_counter() - began


def _duration(seconds: float) -> str:
    """Seconds in words, rounded up.

    >>> _duration(20), _duration(61)
    ('less than a minute', 'about 2 minutes')
    """
    minutes = math.ceil(seconds / 60)
    return "less than a minute" if minutes < 2 else f"about {minutes} minutes"


def _table(comparison: Comparison) -> Table:
    stored, inverted = comparison.stored, comparison.inverted
    table = Table(title=f"one training step of {comparison.batch} images", title_justify="left")
    table.add_column("activations")
    for name in ("stored", "inverted", "inverted / stored"):
        table.add_column(name, justify="right")
    rows: list[tuple[str, Callable[[float], str], float, float]] = [
        ("held bytes, measured", _bytes, stored.held_bytes, inverted.held_bytes),
        ("held bytes, predicted", _bytes, stored.plan.held_bytes, inverted.plan.held_bytes),
        ("peak bytes, measured", _bytes, stored.peak_bytes, inverted.peak_bytes),
        ("peak bytes, predicted", _bytes, stored.plan.peak_bytes, inverted.plan.peak_bytes),
        ("FLOPs, measured", _billions, stored.flops, inverted.flops),
        ("FLOPs, predicted", _times, stored.plan.flops_ratio, inverted.plan.flops_ratio),
        ("seconds, measured", _seconds, stored.seconds, inverted.seconds),
    ]
    for name, show, one, two in rows:
        table.add_row(name, show(one), show(two), f"{two / one:.3f}")
    return table


def _bytes(count: float) -> str:
    return human_bytes(int(count))


def _billions(count: float) -> str:
    return f"{count / 1e9:.3f} G"


def _times(ratio: float) -> str:
    return f"x{ratio:.3f}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.3f}"


def _verdict(result: Result, seconds: float, console: Console) -> int:
    assert result.test is not None
    accuracy = (
        f"{result.test.accuracy:.1%} of {result.test.labels} test images right, after {seconds:.0f} s in all"
    )
    if result.test.accuracy >= TARGET:
        console.print(f"{accuracy}.", markup=False, soft_wrap=True)
        return 0
    failure = f"{accuracy}: that is below the {TARGET:.0%} which this demonstration promises."
    console.print(failure, markup=False, soft_wrap=True)
    return 1


if __name__ == "__main__":
    sys.exit(main())
