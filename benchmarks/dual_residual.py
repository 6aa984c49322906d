"""`python -m benchmarks.dual_residual`: a pretrained ResNet-32 is converted and finetuned in less memory.

ResNet-32 learns the digits 0 to 4, and is then finetuned on 5 to 9: as it is with activations stored,
converted and inverted, and as it is from random weights. Prints the tables, and writes dual_residual.json,
dual_residual.md and dual_residual.svg.
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

from benchmarks.dual_residual_depth import COEFFICIENTS, by_depth
from benchmarks.shared import machine, markdown_table, svg_of, write_json, write_text

RESULTS = Path(__file__).parent / "results"
PRETRAINING, FINETUNING, BATCH = 240, 80, 16
START, END = (1.0, 0.1), (0.5, 0.7)  # alpha and beta, moved in the first half of finetuning
RUNS = ("ordinary", "converted", "from random weights")
COLOURS = ("#808080", "#3f86c9", "#c77d17")
MIB = 2**20


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, measure, print and write; the exit status is 0."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.dual_residual", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder to write to (benchmarks/results)")
    parser.add_argument("--quick", action="store_true", help="a few steps, to try the program out")
    parser.add_argument("--no-chart", action="store_true", help="without matplotlib: no dual_residual.svg")
    chosen = parser.parse_args(arguments)
    steps = (4, 4) if chosen.quick else (PRETRAINING, FINETUNING)
    found = _finetuned(*steps)
    found["depths"] = by_depth(quick=chosen.quick)
    conditions = {
        "machine": machine(),
        "pretraining_steps": steps[0],
        "finetuning_steps": steps[1],
        "batch": BATCH,
        "alpha": [START[0], END[0]],
        "beta": [START[1], END[1]],
    }
    page = _page(found, conditions)
    write_json(chosen.out / "dual_residual.json", {**conditions, **found})
    write_text(chosen.out / "dual_residual.md", page)
    if not chosen.no_chart:
        _draw(found, chosen.out / "dual_residual.svg")
    print(page)
    return 0


def _finetuned(pretraining: int, finetuning: int) -> dict[str, Any]:
    """The pretrained network's score, its converted form's by beta, and every finetuning run."""
    import torch

    import revgraph as rg
    from revgraph.training.batches import Batches
    from revgraph.training.evaluating import evaluate
    from revgraph.training.recipe import Recipe

    torch.set_num_threads(1)
    first, second = _digits(range(5)), _digits(range(5, 10))
    pretrain = Recipe(steps=pretraining, batch=BATCH, learning_rate=0.05, warmup=min(20, pretraining))
    finetune = Recipe(steps=finetuning, batch=BATCH, learning_rate=0.01)
    torch.manual_seed(0)
    net = rg.load("resnet-32", batch=BATCH, classes=5)
    begin = {key: each.clone() for key, each in net.state_dict().items()}
    net.plan = rg.keep_all(net.graph)
    pretrained = _run(net, first, pretrain, pretraining)
    weights = {key: each.clone() for key, each in net.state_dict().items()}
    images, _ = Batches(second, BATCH, 0).draw()

    dual = rg.dual_residual(net, images)
    dual.plan = rg.keep_all(dual.graph)
    fidelity = []
    for alpha, beta in COEFFICIENTS:
        rg.set_dual_residual(dual, alpha=alpha, beta=beta)
        fidelity.append(evaluate(dual, first, batch=BATCH).accuracy)

    runs: dict[str, dict[str, Any]] = {}
    for name in RUNS:
        net.load_state_dict(begin if name == "from random weights" else weights)
        if name == "converted":
            runs[name] = _converted(dual, second, finetune, finetuning, images)
        else:
            runs[name] = _run(net, second, finetune, finetuning) | _measured(net, images)
    net.plan = rg.plan(net.graph, budget=runs["converted"]["peak_bytes"])
    return {
        "pretrained_accuracy": pretrained["test_accuracy"],
        "converted_accuracy": fidelity,
        "runs": runs,
        "recomputing": _measured(net, images),
    }


def _converted(dual: Any, data: Any, recipe: Any, steps: int, images: Any) -> dict[str, Any]:
    """The run of the converted network, inverted without anchors, and its gradients at both ends."""
    import revgraph as rg

    rg.set_dual_residual(dual, alpha=START[0], beta=START[1])
    dual.plan = rg.decide(dual.graph, {})
    schedule = rg.DualResidualSchedule(dual, max(1, steps // 2), alpha=END[0], beta=END[1])
    start = {**_measured(dual, images), **_checked(dual, images)}
    run = _run(dual, data, recipe, steps, schedule)
    return {**run, **start, "end": _checked(dual, images)}


def _run(net: Any, data: Any, recipe: Any, steps: int, schedule: Any = None) -> dict[str, Any]:
    """The loss of every step and the scores; a schedule moves on after each step."""
    from revgraph.training.loop import fit
    from revgraph.training.metrics import CSV, Row
    from revgraph.training.watching import Silent

    class Moving(Silent):
        def stepped(self, row: Row) -> None:
            if schedule is not None:
                schedule.step()

    with tempfile.TemporaryDirectory() as folder:
        every = max(1, steps // 8)
        result = fit(net, data, recipe, folder, evaluate_every=every, tensorboard=False, watch=Moving())
        with (Path(folder) / CSV).open(newline="") as file:
            rows = list(csv.DictReader(file))
    assert result.test is not None
    print(f"{data.name}: test accuracy {result.test.accuracy:.2%}", file=sys.stderr, flush=True)
    return {
        "loss": [float(row["loss"]) for row in rows],
        "tests": [(int(row["step"]), float(row["test_accuracy"])) for row in rows if row["test_accuracy"]],
        "test_accuracy": result.test.accuracy,
    }


def _measured(net: Any, images: Any) -> dict[str, Any]:
    import revgraph as rg

    found = rg.measure(net, images)
    return {"held_bytes": found.held_bytes, "peak_bytes": found.peak_bytes, "flops_ratio": found.flops_ratio}


def _checked(net: Any, images: Any) -> dict[str, Any]:
    import revgraph as rg

    report = rg.check(net, images)
    return {"angle_degrees": report.angle_degrees, "drift": max(report.drift.values(), default=0.0)}


def _digits(wanted: range) -> Any:
    """The embedded digits of these classes, which are counted from 0."""
    from dataclasses import replace

    from revgraph.training.digits import load_digits
    from revgraph.training.images import Images, mean_image

    data = load_digits()

    def chosen(images: Images) -> Images:
        keep = (images.labels >= wanted.start) & (images.labels < wanted.stop)
        return Images(images.pixels[keep], images.labels[keep] - wanted.start)

    train, test = chosen(data.train), chosen(data.test)
    name = f"digits {wanted.start} to {wanted.stop - 1}"
    return replace(
        data, name=name, classes=len(wanted), train=train, test=test, mean=mean_image(train.pixels)
    )


def _page(found: dict[str, Any], conditions: dict[str, Any]) -> str:
    runs, depths = found["runs"], found["depths"]
    described = conditions["machine"]

    def row(name: str, memory: dict[str, Any], run: dict[str, Any] | None) -> list[str]:
        return [
            name,
            f"{run['test_accuracy']:.2%}" if run else "as stored",
            f"{statistics.fmean(run['loss'][-20:]):.3f}" if run else "as stored",
            f"{memory['held_bytes'] / MIB:.1f}",
            f"{memory['peak_bytes'] / MIB:.1f}",
            f"{memory['flops_ratio']:.3f}",
        ]

    head = ["finetuning on 5 to 9", "test accuracy", "loss, last 20 steps", "held, MiB", "peak, MiB", "FLOPs"]
    scratch = runs["from random weights"]
    rows = [
        row("ordinary, activations stored", runs["ordinary"], runs["ordinary"]),
        row("ordinary, recomputing", found["recomputing"], None),
        row("converted, inverted", runs["converted"], runs["converted"]),
        row("ordinary, from random weights", scratch, scratch),
    ]
    names = [f"alpha {alpha:g}, beta {beta:g}" for alpha, beta in COEFFICIENTS]
    scores = [["test accuracy on 0 to 4", *(f"{score:.2%}" for score in found["converted_accuracy"])]]
    drifts = [
        [
            f"{each['blocks']} blocks, {dtype}",
            *("overflow" if drift is None else f"{drift:.1g}" for drift in drifts),
        ]
        for each in depths
        for dtype, drifts in each["drift"].items()
    ]
    plans = list(depths[0]["plans"])
    peaks = [
        [str(each["blocks"]), *(f"{peak / MIB:.2f}, x{flops:.2f}" for peak, flops in each["plans"].values())]
        for each in depths
    ]
    (alpha, last_alpha), (beta, last_beta) = conditions["alpha"], conditions["beta"]
    start, end = runs["converted"], runs["converted"]["end"]
    return (
        f"ResNet-32, {conditions['pretraining_steps']} steps on the digits 0 to 4 (test accuracy "
        f"{found['pretrained_accuracy']:.2%}), then {conditions['finetuning_steps']} on 5 to 9, in batches "
        f"of {conditions['batch']}, seed 0; {described['cpu']}, Python {described['python']}, torch "
        f"{described['libraries']['torch']} on one thread.\n\n{markdown_table(head, rows)}\n\n"
        f"In the first half of finetuning alpha moves from {alpha:g} to {last_alpha:g} and beta from "
        f"{beta:g} to {last_beta:g}. The gradient is {start['angle_degrees']:.2g} degrees off that of stored "
        f"activations before (drift {start['drift']:.1g}), and {end['angle_degrees']:.2g} after (drift "
        f"{end['drift']:.1g}); there are no anchors. Recomputing: as little as fits the converted network's "
        "peak, without a change to the network.\n\nThe pretrained network once converted, without "
        f"finetuning:\n\n{markdown_table(['', *names], scores)}\n\nThe largest drift of a run of so many "
        "blocks, relative, inverted without anchors, at random weights. From about 1 on gradients are "
        f"worthless:\n\n{markdown_table(['', *names], drifts)}\n\nBytes at the peak for such a run, in MiB, "
        "and FLOPs; the ordinary network recomputes as little as fits the converted one's peak:\n\n"
        f"{markdown_table(['blocks', *plans], peaks)}\n"
    )


def _draw(found: dict[str, Any], path: Path) -> None:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    ink = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color")
    style: Any = {"svg.fonttype": "none", "svg.hashsalt": "revgraph", "font.size": 11}
    with rc_context(style | dict.fromkeys(ink, "#808080")):
        figure = Figure(figsize=(9.6, 4.4), layout="constrained")
        accuracies, memory = figure.subplots(1, 2, width_ratios=(3, 2))
        for name, colour, marker in zip(RUNS, COLOURS, "os^", strict=True):
            points = zip(*found["runs"][name]["tests"], strict=True)
            accuracies.plot(*points, f"{marker}-", color=colour, markersize=5, linewidth=1.6, label=name)
        accuracies.set(xlabel="step", ylabel="test accuracy on the digits 5 to 9")
        bars = {
            "ordinary,\nstored": (found["runs"]["ordinary"], COLOURS[0]),
            "ordinary,\nrecomputing": (found["recomputing"], COLOURS[0]),
            "converted": (found["runs"]["converted"], COLOURS[1]),
        }
        peaks = [each["peak_bytes"] / MIB for each, _ in bars.values()]
        drawn = memory.bar(list(bars), peaks, color=[colour for _, colour in bars.values()], width=0.6)
        memory.bar_label(drawn, fmt="%.1f", color="#808080", padding=2)
        memory.set(ylabel="activation MiB at the peak, batch of 16")
        memory.margins(y=0.1)
        for axes in (accuracies, memory):
            axes.grid(alpha=0.35, axis="y" if axes is memory else "both")
            axes.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside lower center", ncols=3, frameon=False)
        write_text(path, svg_of(figure, "dual-residual finetuning"))


if __name__ == "__main__":
    sys.exit(main())
