"""`python -m benchmarks.planning_quality`: what plans compute again in shares of ordinary training's bytes.

Plans are chosen by FLOPs, so that figures compare with those of others. Everything is counted, and runs give
the same table. Textbook segments within the same bytes stand beside. Prints the table, and writes
planning_quality.json and planning_quality.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import revgraph as rg
from benchmarks.planning_networks import NETWORKS
from benchmarks.shared import markdown_table, write_json, write_text
from revgraph.planning.judging import Judge
from revgraph.planning.posing import pose
from revgraph.planning.solver.line import Line
from revgraph.planning.solver.textbook import textbook_segments

RESULTS = Path(__file__).parent / "results"
SHARES = (0.1, 0.2, 0.3, 0.5, 0.7)
BUDGETS = 25


def main(arguments: Sequence[str] | None = None) -> int:
    """Plan, print and write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.planning_quality", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help="the two smallest networks, to try it out")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder to write to (benchmarks/results)")
    parser.add_argument("--only", action="append", choices=NETWORKS, help="a network (all); may be repeated")
    chosen = parser.parse_args(arguments)
    names = chosen.only or list(NETWORKS)[: 2 if chosen.quick else None]
    rows = []
    for name in names:
        rows.append(quality(name, NETWORKS[name]()))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    text = _page(rows)
    print(text)
    write_text(chosen.out / "planning_quality.md", text)
    write_json(chosen.out / "planning_quality.json", {"networks": rows})
    return 0


def quality(name: str, graph: rg.Graph) -> dict[str, Any]:
    """FLOPs within each share of ordinary training's peak, ours and textbook segments' (None: no plan)."""
    kept = rg.keep_all(graph)
    plans = rg.frontier(graph, points=10**6, cost="flops")
    textbook = list(_textbook(graph))
    digest = hashlib.sha256(repr([_decided(plan) for plan in plans]).encode()).hexdigest()[:12]
    return {
        "network": name,
        "nodes": len(graph.planned),
        "keep_all_bytes": kept.peak_bytes,
        "least_bytes": plans[0].peak_bytes,
        "least_flops": plans[0].flops_ratio,
        "free_bytes": next(plan.peak_bytes for plan in plans if plan.flops_ratio == 1.0),
        "within": [_cheapest(plans, share * kept.peak_bytes) for share in SHARES],
        "textbook": [_cheapest(textbook, share * kept.peak_bytes) for share in SHARES],
        "broken": broken_promises(graph, plans, textbook),
        "plans": digest,
    }


def broken_promises(graph: rg.Graph, plans: Sequence[rg.Plan], textbook: Sequence[rg.Plan]) -> list[str]:
    """What does not hold of plans by FLOPs: what fits is not refused, more bytes never cost more, and nothing
    that is known is cheaper in the same bytes (the frontier, textbook segments, plans of one decision)."""
    broken: list[str] = []
    low, high = plans[0].peak_bytes, rg.keep_all(graph).peak_bytes
    budgets = [low + (high - low) * step // (BUDGETS - 1) for step in range(BUDGETS)]
    found = [rg.plan(graph, budget, cost="flops") for budget in budgets]
    for budget, plan, before in zip(budgets, found, [None, *found], strict=False):
        if plan.peak_bytes > budget:
            broken.append(f"{plan.peak_bytes:,} bytes in a budget of {budget:,}")
        if before is not None and plan.flops_ratio > before.flops_ratio:
            broken.append(f"x{plan.flops_ratio} at {budget:,} bytes, x{before.flops_ratio} with less")
    everything = (
        dict.fromkeys((node.name for node in graph.planned), each) for each in ("keep", "recompute")
    )
    known = [*plans, *textbook, rg.decide(graph, {}), *(rg.decide(graph, each) for each in everything)]
    for each in known:
        cheapest = _cheapest(plans, each.peak_bytes)
        if cheapest is None or cheapest > each.flops_ratio:
            broken.append(f"x{cheapest} at {each.peak_bytes:,} bytes, where x{each.flops_ratio} is known")
    return broken


def _cheapest(plans: Sequence[rg.Plan], budget: float) -> float | None:
    return min((plan.flops_ratio for plan in plans if plan.peak_bytes <= budget), default=None)


def _textbook(graph: rg.Graph) -> Any:
    posed = pose(graph, "flops")
    judge = Judge(posed)
    for solution in textbook_segments(Line(posed.problem)):
        judged = judge(solution)
        if judged is not None:
            yield judge.plan(judged)


def _decided(plan: rg.Plan) -> Any:
    chosen = plan.decisions, plan.stored, plan.results, plan.holds, plan.drops
    return *chosen, plan.peak_bytes, plan.flops_ratio


def _page(rows: Sequence[dict[str, Any]]) -> str:
    shares = [f"at {share:.1f}" for share in SHARES]
    head = ["", "nodes", "least", "FLOPs", "free", *shares, "broken", "plans"]
    return (
        "Shares are of ordinary training's peak. *Least* is the least peak and *FLOPs* what it takes, *free* "
        "the least peak without a FLOP more. *At 0.3* are the FLOPs of the cheapest plan within that share, "
        f"and of textbook segments. *Broken* is how many promises are: at {BUDGETS} budgets nothing that "
        "fits is refused, more bytes never cost more, and no plan of the frontier, of textbook segments or "
        "of one decision is cheaper in the same bytes. *Plans* is a digest of all plans of the frontier, "
        "which is the same on every run.\n\n" + markdown_table(head, [_cells(row) for row in rows]) + "\n"
    )


def _cells(row: dict[str, Any]) -> list[str]:
    whole = row["keep_all_bytes"]
    pairs = zip(row["within"], row["textbook"], strict=True)
    return [
        row["network"],
        f"{row['nodes']:,}",
        f"{row['least_bytes'] / whole:.3f}",
        f"x{row['least_flops']:.3f}",
        f"{row['free_bytes'] / whole:.3f}",
        *(f"{_ratio(ours)} / {_ratio(theirs)}" for ours, theirs in pairs),
        str(len(row["broken"])),
        row["plans"],
    ]


def _ratio(ratio: float | None) -> str:
    return "-" if ratio is None else f"x{ratio:.4f}"


if __name__ == "__main__":
    sys.exit(main())
