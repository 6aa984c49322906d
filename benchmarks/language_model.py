"""`python -m benchmarks.language_model`: a reversible transformer learns English text, byte by byte.

The shipped reversible-lm, every coupling inverted, trains on the documentation inside Python and is tested on
the last tenth of it. Prints the tables and some lines it writes, and writes language_model.json, .md, .svg.
"""

from __future__ import annotations

import argparse
import bz2
import lzma
import math
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.shared import machine, markdown_table, svg_of, write_json, write_text

if TYPE_CHECKING:
    from revgraph.training.comparing import Comparison
    from revgraph.training.text import Text

RESULTS = Path(__file__).parent / "results"
STEPS, BATCH, EVALUATE_EVERY = 800, 16, 50
QUICK = {"width": 16, "depth": 1, "heads": 2, "length": 64}
PROMPT, WRITTEN, TEMPERATURE, WIDTH = b"The statement ", 480, 0.7, 88
INK, TRAINING, TEST = "#808080", "#3f86c9", "#c77d17"
LINES = ((0, (1, 1)), (0, (5, 2)), (0, (5, 2, 1, 2)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, print and write; the exit status is 0."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.language_model", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--steps", type=int, default=STEPS, help=f"training steps ({STEPS})")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder to write to (benchmarks/results)")
    parser.add_argument("--quick", action="store_true", help="six steps of a tiny network, to try it out")
    parser.add_argument("--no-chart", action="store_true", help="without matplotlib: no language_model.svg")
    chosen = parser.parse_args(arguments)
    found = _trained(6, QUICK) if chosen.quick else _trained(chosen.steps, {})
    page = _page(found)
    write_json(chosen.out / "language_model.json", found)
    write_text(chosen.out / "language_model.md", page)
    if not chosen.no_chart:
        _draw(found, chosen.out / "language_model.svg")
    print(page)
    return 0


def _trained(steps: int, sizes: dict[str, int]) -> dict[str, Any]:
    """All that is reported: the curves, the step measured both ways, what it writes, and yardsticks."""
    import torch
    from rich.console import Console

    import revgraph as rg
    from revgraph.training.batches import Batches
    from revgraph.training.comparing import compare
    from revgraph.training.generating import generate
    from revgraph.training.loop import fit
    from revgraph.training.metrics import read_rows
    from revgraph.training.progress import Bar
    from revgraph.training.text import LENGTH, load_text
    from revgraph.training.usual import usual_recipe

    torch.set_num_threads(1)
    text = load_text(length=sizes.get("length", LENGTH))
    recipe = usual_recipe(text, steps=steps, batch=BATCH)
    torch.manual_seed(recipe.seed)
    net = rg.load("reversible-lm", batch=BATCH, **sizes)
    net.plan = rg.decide(net.graph, {})  # everything inverted
    with tempfile.TemporaryDirectory() as folder, Bar(Console(stderr=True), text.samples) as bar:
        result = fit(net, text, recipe, folder, evaluate_every=EVALUATE_EVERY, tensorboard=False, watch=bar)
        rows = read_rows(folder)
    inputs, _ = Batches(text, BATCH, recipe.seed).draw()
    length = text.train.length
    written = generate(net, PROMPT, WRITTEN, length=length, temperature=TEMPERATURE, seed=recipe.seed)
    return {
        "machine": machine(),
        "steps": steps,
        "batch": BATCH,
        "window": length,
        "parameters": sum(weight.numel() for weight in net.parameters()),
        "training_bytes": len(text.train.bytes),
        "test_bytes": len(text.test.bytes),
        "seconds": result.seconds,
        "loss": [row.loss for row in rows],
        "tests": [
            {"step": row.step, "bits_per_byte": row.test_bits_per_byte, "accuracy": row.test_accuracy}
            for row in rows
            if row.test_bits_per_byte is not None
        ],
        "yardsticks": _yardsticks(text),
        "one_step": _step(compare(net, inputs)),
        "temperature": TEMPERATURE,
        "prompt": PROMPT.decode(),
        "written": written.decode("utf-8", "replace"),
    }


def _yardsticks(text: Text) -> dict[str, float]:
    """Bits per byte of the test that need no network: its bytes' own frequencies, and what packers take more.

    A packer's figure is by how much its archive of the whole text is larger than that of the training part.
    """
    import torch

    train = bytes(text.train.bytes.tolist())
    whole = bytes(torch.cat([text.train.bytes, text.test.bytes]).tolist())
    test = whole[len(train) :]
    chances = [count / len(test) for count in Counter(test).values()]
    more = {
        name: 8 * (len(pack(whole)) - len(pack(train))) / len(test)
        for name, pack in (("bzip2", bz2.compress), ("xz", lambda data: lzma.compress(data, preset=9)))
    }
    return {"single bytes": -sum(chance * math.log2(chance) for chance in chances), **more}


def _step(comparison: Comparison) -> dict[str, Any]:
    sides = {"stored": comparison.stored, "inverted": comparison.inverted}
    return {
        "angle_degrees": comparison.angle,
        **{
            name: {
                "held_bytes": side.held_bytes,
                "held_bytes_predicted": side.plan.held_bytes,
                "peak_bytes": side.peak_bytes,
                "peak_bytes_predicted": side.plan.peak_bytes,
                "flops": side.flops,
                "seconds": side.seconds,
            }
            for name, side in sides.items()
        },
    }


def _page(found: dict[str, Any]) -> str:
    described, step = found["machine"], found["one_step"]
    tests = found["tests"]
    shown = [each for each in tests if each["step"] in _few([each["step"] for each in tests])]
    curve = [
        [
            f"{each['step']:,}",
            f"{statistics.fmean(found['loss'][max(0, each['step'] - EVALUATE_EVERY) : each['step']]):.3f}",
            f"{each['bits_per_byte'] * math.log(2):.3f}",
            f"{each['bits_per_byte']:.3f}",
            f"{each['accuracy']:.1%}",
        ]
        for each in shown
    ]
    head = ["step", f"training loss, last {EVALUATE_EVERY}", "test loss", "test bits per byte", "bytes right"]
    yardsticks = ", ".join(f"{name} {bits:.2f}" for name, bits in found["yardsticks"].items())
    return (
        f"reversible-lm, {found['parameters']:,} parameters, every coupling inverted; {found['steps']:,} "
        f"steps of {found['batch']} windows of {found['window']} bytes, seed 0, in {found['seconds']:.0f} "
        f"seconds; {found['training_bytes']:,} bytes to train, the next {found['test_bytes']:,} to test; "
        f"{described['cpu']}, Python {described['python']}, torch {described['libraries']['torch']} on one "
        f"thread.\n\n{markdown_table(head, curve)}\n\n"
        f"For comparison, bits per byte of the same test without a network: {yardsticks}. The first is the "
        "entropy of the test's single bytes, the others are what the test adds to an archive of the training "
        "text.\n\n"
        f"One training step of {found['batch']} windows, once trained:\n\n{_both(step)}\n\n"
        f"The two gradients are {step['angle_degrees']:.2g} degrees apart.\n\n"
        f'What it writes after "{found["prompt"].strip()}", at temperature {found["temperature"]}:\n\n'
        f"```text\n{_wrapped(found['prompt'] + found['written'])}\n```\n"
    )


def _both(step: dict[str, Any]) -> str:
    rows: list[list[str]] = []
    for name, key, scale, form in (
        ("held MiB, measured", "held_bytes", 2**20, ".2f"),
        ("held MiB, predicted", "held_bytes_predicted", 2**20, ".2f"),
        ("peak MiB, measured", "peak_bytes", 2**20, ".2f"),
        ("peak MiB, predicted", "peak_bytes_predicted", 2**20, ".2f"),
        ("GFLOPs, measured", "flops", 1e9, ".2f"),
        ("seconds, measured", "seconds", 1, ".3f"),
    ):
        stored, inverted = step["stored"][key], step["inverted"][key]
        sides = (format(stored / scale, form), format(inverted / scale, form))
        rows.append([name, *sides, f"{inverted / stored:.3f}"])
    return markdown_table(["activations", "stored", "inverted", "inverted / stored"], rows)


def _few(steps: Sequence[int], most: int = 8) -> set[int]:
    """At most so many of the steps, the first and the last among them."""
    every = max(1, math.ceil((len(steps) - 1) / (most - 1)))
    return {steps[0], *reversed(steps[::-1][::every])}


def _wrapped(text: str) -> str:
    """Lines of at most `WIDTH` characters, broken at spaces, with what cannot be printed replaced."""
    import textwrap

    clean = "".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in text)
    lines = [textwrap.fill(line, WIDTH, drop_whitespace=False) for line in clean.splitlines()]
    return "\n".join(line.rstrip() for line in "\n".join(lines).splitlines())


def _draw(found: dict[str, Any], path: Path) -> None:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    ink = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color")
    style: Any = {"svg.fonttype": "none", "svg.hashsalt": "revgraph", "font.size": 11}
    bits = [loss / math.log(2) for loss in found["loss"]]
    with rc_context(style | dict.fromkeys(ink, INK)):
        figure = Figure(figsize=(8.4, 4.6), layout="constrained")
        axes = figure.subplots()
        axes.plot(range(1, len(bits) + 1), bits, color=TRAINING, linewidth=0.9, label="training, each batch")
        tests = [(each["step"], each["bits_per_byte"]) for each in found["tests"]]
        axes.plot(*zip(*tests, strict=True), "o-", color=TEST, markersize=5, linewidth=2, label="test")
        for (name, level), line in zip(found["yardsticks"].items(), LINES, strict=True):
            axes.axhline(level, color=INK, linestyle=line, linewidth=1.3, label=f"{name}, {level:.2f}")
        axes.set(xlabel="step", ylabel="bits per byte", ylim=(0, None), title="reversible-lm on English text")
        axes.grid(alpha=0.35)
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside lower center", ncols=5, frameon=False)
        write_text(path, svg_of(figure, "reversible-lm"))


if __name__ == "__main__":
    sys.exit(main())
