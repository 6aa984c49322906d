"""`python -m benchmarks.flows`: flows trained by maximum likelihood, in bytes that depth leaves alone.

RealNVP learns two moons in the plane, and a Glow-like flow the embedded digits. Prints the tables, and writes
flows.json, flows.md, flows.csv (the training curves), flows.svg (curves, bytes) and flow_samples.svg.
"""

from __future__ import annotations

import argparse
import csv
import gc
import io
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import revgraph as rg
from benchmarks.flow_pictures import draw_curves, draw_samples
from benchmarks.shared import machine, markdown_table, write_json, write_text
from revgraph.storages import StorageTracker

RESULTS = Path(__file__).parent / "results"
STEPS, BATCH, SEED = 1500, 128, 0
DEPTHS = (4, 8, 16, 32, 64)
DEPTH_BATCH = 256
LEVELS, MARGIN = 17, 0.05
SIDE = 8


@dataclass(frozen=True, slots=True)
class Learned:
    """A trained flow: the loss of every step, the likelihood of held-out data, and samples."""

    losses: list[float]
    before: float
    after: float
    samples: Tensor
    undone: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, measure, print and write; the exit status is 0."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.flows", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--steps", type=int, default=STEPS, help=f"training steps of each flow ({STEPS})")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder to write to (benchmarks/results)")
    parser.add_argument("--no-chart", action="store_true", help="without matplotlib: no pictures")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    moons, digits = moons_data(SEED), digits_data(SEED)
    tell("the moons")
    plane = learn("realnvp", moons, chosen.steps, nats(2), blocks=6)
    tell("the digits")
    images = learn("glow", digits, chosen.steps, bits_per_pixel, prepare=logits)
    tell("bytes at growing depth")
    table = {depth: bytes_at(depth) for depth in DEPTHS}
    page = written(plane, images, table, machine(), chosen.steps)
    write_text(chosen.out / "flows.md", page)
    write_text(chosen.out / "flows.csv", curves(plane, images))
    write_json(chosen.out / "flows.json", figures(plane, images, table, chosen.steps))
    if not chosen.no_chart:
        draw_curves(plane.losses, images.losses, table, chosen.out / "flows.svg")
        pictures = pixels(images.samples).reshape(-1, SIDE, SIDE)
        originals = (digits[1] / (LEVELS - 1)).reshape(-1, SIDE, SIDE)
        draw_samples(moons[1], plane.samples, originals, pictures, chosen.out / "flow_samples.svg")
    print(page)
    return 0


def moons_data(seed: int) -> tuple[Tensor, Tensor]:
    """Points on two half circles with noise, for training and held out: [2000, 2] and [1000, 2]."""
    from sklearn.datasets import make_moons

    points, _ = make_moons(3000, noise=0.06, random_state=seed)
    every = torch.from_numpy(points).float()
    return every[:2000], every[2000:]


def digits_data(seed: int) -> tuple[Tensor, Tensor]:
    """scikit-learn's digits, levels from 0 to 16: [1437, 1, 8, 8] for training, [360, 1, 8, 8] held out."""
    from sklearn.datasets import load_digits

    loaded: Any = load_digits()
    levels = torch.from_numpy(loaded.images).float().unsqueeze(1)
    order = torch.randperm(len(levels), generator=torch.Generator().manual_seed(seed))
    return levels[order[:1437]], levels[order[1437:]]


def logits(levels: Tensor) -> Tensor:
    """Images made continuous with fresh uniform noise, squeezed into (0, 1), then their logit.

    So does RealNVP (Dinh et al. 2017, section 4.1). Noise that stayed the same would be learned by heart.
    """
    squeezed = MARGIN + (1 - 2 * MARGIN) * (levels + torch.rand(levels.shape)) / LEVELS
    return squeezed.log() - (1 - squeezed).log()


def pixels(values: Tensor) -> Tensor:
    """From logits back to brightness between 0 and 1."""
    return ((values.sigmoid() - MARGIN) / (1 - 2 * MARGIN)).clamp(0, 1)


def log_likelihood(net: rg.ReversibleModule, x: Tensor) -> Tensor:
    """log p(x) per sample, [N]: that of the outputs under a standard normal, and the log-determinant."""
    outputs, log_det = net.with_log_det(x)
    each = outputs if isinstance(outputs, tuple) else (outputs,)
    normal = sum((y.square() + math.log(2 * math.pi)).flatten(1).sum(1) for y in each)
    return log_det - normal / 2


def nats(size: int) -> Callable[[float, Tensor], float]:
    """Negative log-likelihood in nats a dimension."""
    return lambda mean, _: -mean / size


def bits_per_pixel(mean: float, held_out: Tensor) -> float:
    """Negative log-likelihood in bits a pixel of 17 levels: the logit's own volume is taken out again."""
    squeezed = held_out.sigmoid()
    volume = (squeezed * (1 - squeezed)).log() + math.log(LEVELS / (1 - 2 * MARGIN))
    per_image = mean - volume.flatten(1).sum(1).mean().item()
    return -per_image / (SIDE * SIDE * math.log(2))


def learn(
    name: str,
    data: tuple[Tensor, Tensor],
    steps: int,
    score: Callable[[float, Tensor], float],
    prepare: Callable[[Tensor], Tensor] = lambda batch: batch,
    **parameters: Any,
) -> Learned:
    """Train a shipped flow with Adam by maximum likelihood, under the plan of the least peak.

    `prepare` makes what the flow sees of what the data hold.
    """
    torch.manual_seed(SEED)
    training, held_out = data[0], prepare(data[1])
    net = rg.load(name, batch=BATCH, **parameters)
    rg.initialize(net, prepare(training[: 2 * BATCH]))

    def scored() -> float:
        with torch.no_grad():
            return score(log_likelihood(net, held_out).mean().item(), held_out)

    before = scored()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
    losses = []
    for step in range(steps):
        batch = prepare(training[torch.randint(len(training), (BATCH,))])
        optimizer.zero_grad()
        loss = -log_likelihood(net, batch).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 50.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item() / training[0].numel())
        if (step + 1) % max(1, steps // 10) == 0:
            tell(f"  step {step + 1} of {steps}: {statistics.fmean(losses[-50:]):.3f} nats a dimension")
    net.eval()
    with torch.no_grad():
        outputs = net(held_out)
        each = outputs if isinstance(outputs, tuple) else (outputs,)
        undone = (net.inverse(*each) - held_out).abs().max().item()
        samples = net.inverse(*(torch.randn_like(y) for y in each))
    return Learned(losses, before, scored(), samples, undone)


def bytes_at(blocks: int) -> dict[str, int]:
    """Activation bytes at the peak of a training step of RealNVP, for ordinary autograd and for our plan."""
    net = rg.load("realnvp", batch=DEPTH_BATCH, blocks=blocks)
    x = torch.randn(DEPTH_BATCH, 2)
    found: dict[str, int] = {}
    for name, plan in (("ordinary", rg.keep_all(net.graph)), ("inverted", rg.decide(net.graph, {}))):
        net.plan = plan
        gc.collect()
        gc.disable()
        try:
            with StorageTracker([x, *net.parameters(), *net.buffers()]) as tracker:
                (-log_likelihood(net, x).mean()).backward()
            gradients = [each.grad for each in net.parameters() if each.grad is not None]
            found[name] = tracker.peak(without=gradients)
        finally:
            gc.enable()
            net.zero_grad()
    return found


def written(
    plane: Learned, images: Learned, table: dict[int, dict[str, int]], described: dict[str, Any], steps: int
) -> str:
    """The page of results."""
    learned = [
        ["RealNVP, two moons", "nats a dimension", *row_of(plane)],
        ["Glow-like, digits", "bits a pixel", *row_of(images)],
    ]
    sizes = [[str(depth), f"{each['ordinary']:,}", f"{each['inverted']:,}"] for depth, each in table.items()]
    return (
        f"{steps} steps of Adam with batches of {BATCH}, seed {SEED}; {described['cpu']}, "
        f"Python {described['python']}, torch {described['libraries']['torch']} on one thread.\n\n"
        + markdown_table(
            ["flow", "negative log-likelihood, held out", "before", "after", "undone to"], learned
        )
        + "\n\nBefore: with ActNorm fitted to a first batch. Undone to: the largest error of held-out data "
        "after the flow and its inverse.\n\n"
        + markdown_table(["blocks", "ordinary autograd, bytes", "inverted, bytes"], sizes)
        + f"\n\nActivation bytes at the peak of a step of RealNVP with {DEPTH_BATCH} points, measured.\n"
    )


def row_of(learned: Learned) -> list[str]:
    """The figures of a flow as they are shown."""
    return [f"{learned.before:.3f}", f"{learned.after:.3f}", f"{learned.undone:.1e}"]


def figures(plane: Learned, images: Learned, table: dict[int, dict[str, int]], steps: int) -> dict[str, Any]:
    """The results as data."""
    return {
        "machine": machine(),
        "steps": steps,
        "batch": BATCH,
        "flows": {
            name: {"before": each.before, "after": each.after, "undone": each.undone}
            for name, each in (("realnvp", plane), ("glow", images))
        },
        "peak_bytes": {str(depth): each for depth, each in table.items()},
    }


def curves(plane: Learned, images: Learned) -> str:
    """The losses of every step as CSV, in nats a dimension."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["step", "realnvp", "glow"])
    rows.writerows(
        (step, *pair) for step, pair in enumerate(zip(plane.losses, images.losses, strict=True), 1)
    )
    return text.getvalue()


def tell(text: str) -> None:
    """Show progress."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
