"""`python -m benchmarks.compiled_steps`: compiled training steps, under a plan and as torch.compile has them.

For each network a step of plain eager code, of the net, of torch.compile on the plain model without and with
memory budgets, and of rg.compile with both backends are timed in turns, in one run. Bytes are the allocators'
own: those held between forward and backward, and the most at once, without parameters and their gradients.

Each network has a process of its own, and a way that fails is a row with the reason. compiled_steps.json and
compiled_steps.md are written after each network; what was measured of others before stays in them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import revgraph as rg
from benchmarks.shared import machine, markdown_table, told_by, write_json, write_text
from benchmarks.tradeoff.networks import Network, language_model, shipped, transformer
from revgraph.compiling import compile
from revgraph.compiling.memory import allocated_bytes
from revgraph.engine.module import FIRST_COMPARED
from revgraph.trials import loss_of

RESULTS = Path(__file__).parent / "results"
BUDGETS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
QUICK_BUDGETS = (0.9, 0.7, 0.5, 0.3, 0.1)
WIDTH = 64
Made = tuple[rg.ReversibleModule, tuple[Tensor, ...], str]
Tell = Callable[[dict[str, Any]], None]


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


def networks(device: str) -> dict[str, Callable[[], Made]]:
    """For each network its net under a plan, its inputs, and its title."""

    def chain() -> Made:
        torch.manual_seed(0)
        x = torch.randn(32, 2 * WIDTH, device=device)
        net = rg.trace(Chain(16).to(device), x)
        decisions: Any = {node.name: "invert" for node in net.graph.planned if node.kind == "coupling"}
        net.plan = rg.decide(net.graph, decisions)
        return net, (x,), "Chain of 16 blocks of width 64, batch 32, all inverted"

    def of(network: Callable[[], Network]) -> Callable[[], Made]:
        def made() -> Made:
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


def study(made: Made, budgets: Sequence[float], rounds: int, tell: Tell) -> None:
    """All ways on one network: each compiled, then timed in turns, then weighed.

    It tells the title and what the plan foretells; of each way how long its first step took, or why it
    failed; and in the end of each its seconds (median) and bytes.
    """
    from torch._dynamo import config

    # One model is compiled in many ways; past its limit torch would run further ones as they are, in silence.
    with config.patch(recompile_limit=len(budgets) + 8, fail_on_recompile_limit_hit=True):
        _study(made, budgets, rounds, tell)


def _study(made: Made, budgets: Sequence[float], rounds: int, tell: Tell) -> None:
    net, inputs, title = made
    tell({"title": title, "plan_held_bytes": net.plan.held_bytes, "plan_peak_bytes": net.plan.peak_bytes})
    ways: dict[str, nn.Module] = {}
    for way, run in contenders(net, budgets):
        begun = time.perf_counter()
        try:
            step(run, inputs)
            first = time.perf_counter() - begun
            step(run, inputs)
        except Exception as error:
            tell({"way": way, "problem": _told(error)})
            continue
        ways[way] = run
        tell({"way": way, "compile_seconds": first})
    for _ in range(FIRST_COMPARED):  # in which the engine compares its replays, which takes time
        step(net, inputs)
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, run in ways.items():
            seconds[way].append(step(run, inputs))
    for way, each in seconds.items():
        tell({"way": way, "seconds": statistics.median(each)})
    for way, run in ways.items():
        try:
            peak, held = allocated_bytes(run, *inputs)
        except Exception as error:
            tell({"way": way, "problem": _told(error)})
            continue
        tell({"way": way, "held_bytes": held, "peak_bytes": peak})


def gathered(told: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What a process told of a network, with a row for each way."""
    found: dict[str, Any] = {}
    ways: dict[str, dict[str, Any]] = {}
    for each in told:
        (ways.setdefault(each["way"], {}) if "way" in each else found).update(each)
    return {**found, "ways": list(ways.values())}


def measured(name: str, chosen: argparse.Namespace) -> dict[str, Any]:
    """What is found of a network by a process of its own, and under what conditions."""
    budgets = [str(each) for each in chosen.budgets]
    options = ["--rounds", str(chosen.rounds), "--device", chosen.device, "--budgets", *budgets]
    load = os.getloadavg()[0]
    told, problem = told_by(["-m", "benchmarks.compiled_steps", "--one", name, *options], chosen.seconds)
    conditions = {"machine": machine(), "threads": 1, "rounds": chosen.rounds}
    loads = {"load_average": [load, os.getloadavg()[0]]}
    return {"title": name, **gathered(told), "problem": problem, **conditions, **loads}


def page(networks: dict[str, dict[str, Any]]) -> str:
    """The tables of all networks."""
    return "\n".join(section(each) for each in networks.values())


def section(found: dict[str, Any]) -> str:
    """A network's table, with what its plan foretells, what failed, and the conditions."""
    plain = next((each.get("seconds") for each in found["ways"] if each["way"] == "plain, eager"), None)
    rows = [_row(each, plain) for each in found["ways"]]
    head = ("step", "ms", "of plain", "held, MB", "peak, MB", "first step, s")
    parts = [f"### {found['title']}", markdown_table(head, rows) if rows else ""]
    if "plan_held_bytes" in found:
        held, peak = (found[key] / 1e6 for key in ("plan_held_bytes", "plan_peak_bytes"))
        parts.append(f"The plan foretells {held:.3f} MB held and {peak:.3f} MB.")
    parts += [f"{each['way']}: {each['problem']}" for each in found["ways"] if "problem" in each]
    if found["problem"]:
        parts.append(f"The process ended early: {found['problem']}")
    loads = " to ".join(f"{each:.1f}" for each in found["load_average"])
    version = found["machine"]["libraries"]["torch"]
    parts.append(
        f"{found['machine']['cpu']}, one thread, torch {version}, load average {loads}; medians of "
        f"{found['rounds']} steps each, in turns. First steps compile, or take what the cache on disk has."
    )
    return "\n\n".join(each for each in parts if each) + "\n"


def _row(found: dict[str, Any], plain: float | None) -> tuple[str, ...]:
    def told(key: str, text: Callable[[float], str]) -> str:
        return text(found[key]) if key in found else "-"

    return (
        found["way"],
        told("seconds", lambda each: f"{each * 1e3:.1f}"),
        told("seconds", lambda each: f"{each / plain:.2f}" if plain else "-"),
        told("held_bytes", lambda each: f"{each / 1e6:.3f}"),
        told("peak_bytes", lambda each: f"{each / 1e6:.3f}"),
        told("compile_seconds", lambda each: f"{each:.1f}"),
    )


def _told(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; the exit status is 1 if something failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compiled_steps", description=__doc__.partition("\n")[0]
    )
    names = tuple(networks("cpu"))
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder to write to (benchmarks/results)")
    parser.add_argument("--only", action="append", choices=names, help="a network (all); may be given again")
    parser.add_argument("--quick", action="store_true", help="five memory budgets and fewer steps")
    parser.add_argument("--rounds", type=int, help="timed steps of each way (21, quick 7)")
    parser.add_argument("--budgets", type=float, nargs="*", help="memory budgets of torch (.1 to .9)")
    parser.add_argument("--seconds", type=int, default=3600, help="before a network is given up (3,600)")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda")
    parser.add_argument("--one", choices=names, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.rounds is None:
        chosen.rounds = 7 if chosen.quick else 21
    if chosen.budgets is None:
        chosen.budgets = QUICK_BUDGETS if chosen.quick else BUDGETS
    if chosen.one:
        warnings.simplefilter("ignore")
        torch.set_num_threads(1)
        study(networks(chosen.device)[chosen.one](), chosen.budgets, chosen.rounds, _print)
        return 0
    path = chosen.out / "compiled_steps.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    failed = False
    for name in chosen.only or names:
        print(name, file=sys.stderr, flush=True)
        found = results[name] = measured(name, chosen)
        failed |= bool(found["problem"]) or any("problem" in each for each in found["ways"])
        results = {each: results[each] for each in names if each in results}
        print(section(found), flush=True)
        write_json(path, results)
        write_text(chosen.out / "compiled_steps.md", page(results))
    return int(failed)


def _print(found: dict[str, Any]) -> None:
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    sys.exit(main())
