"""`python -m benchmarks.compiled_steps`: compiled training steps, under a plan and as torch.compile has them.

For each network a step of plain eager code, of the net, of torch.compile on the plain model without and with
memory budgets, and of rg.compile with both backends are timed in turns, in one run. Bytes are the allocators'
own: those held between forward and backward, and the most at once, without parameters and their gradients.
Prints the tables, and writes compiled_steps.json and compiled_steps.md.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import revgraph as rg
from benchmarks.shared import machine, markdown_table, write_json, write_text
from benchmarks.tradeoff.networks import Network, language_model, shipped, transformer
from revgraph.compiling import compile
from revgraph.compiling.memory import allocated_bytes
from revgraph.engine.module import FIRST_COMPARED
from revgraph.trials import loss_of

RESULTS = Path(__file__).parent / "results"
BUDGETS = (0.9, 0.7, 0.5, 0.3, 0.1)
WIDTH = 64


@dataclass(frozen=True)
class Figures:
    """What one way to take a step takes: CPU seconds (median), compile seconds, and bytes."""

    way: str
    seconds: float
    compile_seconds: float
    held_bytes: int
    peak_bytes: int


class Chain(nn.Module):
    """Additive blocks of perceptrons on the halves of the input."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(rg.Additive(perceptron(), perceptron()) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        for block in self.blocks:
            a, b = block(a, b)
        return torch.cat([a, b], 1)


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))


def networks(device: str) -> dict[str, Callable[[], tuple[rg.ReversibleModule, tuple[Tensor, ...], str]]]:
    """For each network its net under a plan, its inputs, and its title."""

    def chain() -> tuple[rg.ReversibleModule, tuple[Tensor, ...], str]:
        torch.manual_seed(0)
        x = torch.randn(32, 2 * WIDTH, device=device)
        net = rg.trace(Chain(16).to(device), x)
        decisions: Any = {node.name: "invert" for node in net.graph.planned if node.kind == "coupling"}
        net.plan = rg.decide(net.graph, decisions)
        return net, (x,), "Chain of 16 blocks of width 64, batch 32, all inverted"

    def of(
        network: Callable[[], Network],
    ) -> Callable[[], tuple[rg.ReversibleModule, tuple[Tensor, ...], str]]:
        def made() -> tuple[rg.ReversibleModule, tuple[Tensor, ...], str]:
            built = network()
            net, inputs = built.net.to(device), tuple(each.to(device) for each in built.inputs)
            return net, inputs, f"{built.title}, default plan"

        return made

    return {
        "chain": chain,
        "revnet-38": of(lambda: shipped("revnet-38", 32)),
        "transformer": of(lambda: transformer(blocks=6, batch=8, length=64, width=128)),
        "resnet-32": of(lambda: shipped("resnet-32", 32)),
        "gpt": of(lambda: language_model(blocks=6, batch=8, length=64, width=128)),
    }


def contenders(net: rg.ReversibleModule, budgets: Sequence[float]) -> Iterator[tuple[str, nn.Module]]:
    """Ways to take a step, all with the same parameters."""
    model = net.__dict__["_model"]
    yield "plain, eager", model
    yield "revgraph, eager", net
    yield "torch.compile", torch.compile(model, backend=_inductor(None))
    for budget in budgets:
        yield f"torch.compile, memory budget {budget}", torch.compile(model, backend=_inductor(budget))
    yield 'rg.compile, "aot"', compile(net, "aot")
    yield 'rg.compile, "inductor"', compile(net, "inductor")


def _inductor(budget: float | None) -> Callable[..., Any]:
    """Torch's compiler with a memory budget; each is a backend of its own, so that no code is shared."""
    from torch._functorch import config
    from torch._inductor.compile_fx import compile_fx

    def compiled(graph: Any, inputs: Any) -> Any:
        with config.patch(activation_memory_budget=1.0 if budget is None else budget):
            return compile_fx(graph, inputs)

    return compiled


def step(run: nn.Module, inputs: tuple[Tensor, ...]) -> float:
    """The CPU seconds of a step; on a GPU, the seconds."""
    for parameter in run.parameters():
        parameter.grad = None
    synchronize()
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    begun = clock()
    loss_of(run(*inputs)).backward()
    synchronize()
    return clock() - begun


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def study(
    net: rg.ReversibleModule, inputs: tuple[Tensor, ...], budgets: Sequence[float], rounds: int
) -> list[Figures]:
    """All ways on one network: each compiled, then timed in turns, then weighed."""
    ways = dict(contenders(net, budgets))
    first = {}
    for way, run in ways.items():
        begun = time.perf_counter()
        step(run, inputs)
        first[way] = time.perf_counter() - begun
        print(f"  {way}: first step {first[way]:.1f} s", file=sys.stderr, flush=True)
    for run in ways.values():
        step(run, inputs)
    for _ in range(FIRST_COMPARED):  # in which the engine compares its replays, which takes time
        step(net, inputs)
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, run in ways.items():
            seconds[way].append(step(run, inputs))
    figures: list[Figures] = []
    for way, run in ways.items():
        peak, held = allocated_bytes(run, *inputs)
        figures.append(Figures(way, statistics.median(seconds[way]), first[way], held, peak))
    return figures


def section(title: str, plan: rg.Plan, figures: Sequence[Figures]) -> str:
    plain = figures[0].seconds
    rows = [
        (
            each.way,
            f"{each.seconds * 1e3:.1f}",
            f"{each.seconds / plain:.2f}",
            f"{each.held_bytes / 1e6:.3f}",
            f"{each.peak_bytes / 1e6:.3f}",
            f"{each.compile_seconds:.1f}",
        )
        for each in figures
    ]
    head = ("step", "ms", "of plain", "held, MB", "peak, MB", "first step, s")
    foretold = f"The plan foretells {plan.held_bytes / 1e6:.3f} MB held and {plan.peak_bytes / 1e6:.3f} MB."
    return f"### {title}\n\n{markdown_table(head, rows)}\n\n{foretold}\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compiled_steps", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder to write to (benchmarks/results)")
    parser.add_argument("--only", action="append", help="a network by name (all); may be given again")
    parser.add_argument("--rounds", type=int, default=15, help="timed steps of each way (15)")
    parser.add_argument("--budgets", type=float, nargs="*", default=BUDGETS, help="memory budgets of torch")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda")
    chosen = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    results: dict[str, Any] = {"machine": machine(), "threads": 1, "load_average": os.getloadavg()[0]}
    text: list[str] = []
    for name, build in networks(chosen.device).items():
        if chosen.only is not None and name not in chosen.only:
            continue
        print(name, file=sys.stderr, flush=True)
        torch._dynamo.reset()
        net, inputs, title = build()
        figures = study(net, inputs, chosen.budgets, chosen.rounds)
        results[name] = [copy.copy(vars(each)) for each in figures]
        text.append(section(title, net.plan, figures))
        print(text[-1], flush=True)
        conditions = results["machine"]
        foot = (
            f"{conditions['cpu']}, one thread, torch {conditions['libraries']['torch']}; medians of "
            f"{chosen.rounds} steps each, in turns. First steps compile; torch's cache on disk was in use.\n"
        )
        write_json(chosen.out / "compiled_steps.json", results)
        write_text(chosen.out / "compiled_steps.md", "\n".join([*text, foot]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
