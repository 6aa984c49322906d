"""`python -m benchmarks.reading`: what a training step of RevNet-110 holds, for docs/reading.md.

Writes the tables of that page, the report that it opens, and the picture of the README with its line. All of
it is predicted, and nothing is run; seconds in the line are those that `benchmarks.reading_seconds` measured.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import revgraph as rg
from benchmarks.shared import machine, markdown_table, version, write_text
from revgraph.planning import human_bytes
from revgraph.planning.accounting import holdings

RESULTS = Path(__file__).parent / "results"
NETWORK, BATCH, BUDGET = "revnet-110", 100, "500 MiB"
SECONDS = "reading-seconds.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write all; the exit status is 0."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.reading", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder to write to")
    folder = parser.parse_args(arguments).out
    graph = rg.load(NETWORK, batch=BATCH).graph
    plans = {
        "ordinary autograd (`rg.keep_all`)": rg.keep_all(graph),
        "every coupling inverted (`rg.decide(graph, {})`)": rg.decide(graph, {}),
        'least peak (`rg.plan(graph, budget="least")`)': rg.plan(graph, budget="least"),
        f'within {BUDGET} (`rg.plan(graph, budget="{BUDGET}")`)': rg.plan(graph, budget=BUDGET),
    }
    inverted, least = list(plans.values())[1:3]
    write_text(folder / "reading-plans.md", _comparison(plans))
    write_text(folder / "reading-inverted.md", _held(inverted))
    write_text(folder / "reading-least.md", _held(least))
    rg.draw(least, folder / "pictures" / f"{NETWORK}.html")
    usual = rg.plan(graph)
    measured = json.loads((RESULTS / SECONDS).read_text(encoding="utf-8"))
    write_text(folder / "reading-hill.md", _sentence(usual, measured))
    rg.draw(usual, folder / "pictures" / f"{NETWORK}-hill.svg", show="hill")
    for table in ("plans", "inverted", "least", "hill"):
        print((folder / f"reading-{table}.md").read_text())
    return 0


def _sentence(plan: rg.Plan, measured: dict[str, Any]) -> str:
    """What the plan comes to, in the words of the README."""
    seconds = f"{measured['plan_seconds']:.2f} s a step in place of {measured['ordinary_seconds']:.2f} s"
    return (
        f"RevNet-110 at a batch of {BATCH}: ordinary training takes {human_bytes(plan.ordinary_bytes)} of "
        f"activations at its peak, the default plan {human_bytes(plan.peak_bytes)}, at "
        f"{plan.flops_ratio:.2f} times the FLOPs and {measured['ratio']:.2f} times the time: {seconds}, "
        "measured on one core of a CPU.\n"
    )


def _comparison(plans: dict[str, rg.Plan]) -> str:
    rows = [
        [
            name,
            plan.peak_at,
            human_bytes(plan.peak_bytes),
            human_bytes(plan.held_bytes),
            f"x{plan.flops_ratio:.3f}",
            f"x{plan.time_ratio:.3f}",
        ]
        for name, plan in plans.items()
    ]
    table = markdown_table(["plan", "peaks in", "peak", "held at the turn", "FLOPs", "time"], rows, left=2)
    on = f"Python {machine()['python']} and torch {version('torch')}"
    return f"{table}\n\n{NETWORK}, batch {BATCH}; predicted with {on}.\n"


def _held(plan: rg.Plan) -> str:
    """What waits at the turn from forward to backward, and why."""
    rows: list[list[str]] = []
    results: dict[str, list[int]] = defaultdict(list)
    notes: list[int] = []
    *nodes, caller = holdings(plan)
    for each in nodes:
        name, decision = each.node, plan.decisions.get(each.node)
        if each.stored_bytes:
            made = [value for value, _ in each.values]
            shapes = {"x".join(map(str, plan.graph.value[value].shape)) for value in made}
            said = ", ".join(f"`{value}`" for value in made)
            rows.append(
                [f"{said}, {', '.join(shapes)}", _reason(plan, made[0]), human_bytes(each.stored_bytes)]
            )
        if decision == "keep" and each.own_bytes:
            rows.append(
                [f"internals of `{name}`", "kept, as in ordinary training", human_bytes(each.own_bytes)]
            )
        elif plan.results.get(name):
            results[name.partition(".")[0]].append(each.own_bytes)
        elif each.own_bytes:
            notes.append(each.own_bytes)
    rows.sort(key=lambda row: row[0].startswith("internals"))
    for stage, found in results.items():
        what = f"results inside {len(found)} nodes of `{stage}`"
        rows.append([what, "so that their convolutions do not run twice", human_bytes(sum(found))])
    if notes:
        what = f"means and variances in {len(notes)} nodes"
        rows.append([what, "a replay takes BatchNorm's from the forward", human_bytes(sum(notes))])
    rows.append(["the output and the loss", "", human_bytes(caller.nbytes)])
    rows.append(["**all of it**", "", f"**{human_bytes(plan.held_bytes)}**"])
    return markdown_table(["what", "why", "bytes"], rows, left=2) + "\n"


def _reason(plan: rg.Plan, name: str) -> str:
    """Whose backward needs a stored value that nothing gives back."""
    readers = [node for node in plan.graph.nodes if name in node.inputs]
    for node in readers:
        if node.kind == "boundary":
            return f"`{node.name}` reads it, a boundary: it cannot be undone"
    for node in readers:
        if plan.decisions.get(node.name) == "recompute" and node.target == name:
            return f"`{node.name}` starts from it, and is recomputed, not inverted"
    return "it is read by " + ", ".join(f"`{node.name}`" for node in readers)


if __name__ == "__main__":
    sys.exit(main())
