"""`python -m benchmarks.limits`: the largest batch and the greatest depth that fit in a given memory.

Predicted first, by searching over batches and depths with plans that allocate nothing; then a training step
at the limit runs and is measured. Prints the table, and writes limits.csv, .md and .svg.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import torch

import revgraph as rg
from benchmarks.paper.charts import LOOKS, chart
from benchmarks.paper.networks import deepened, images
from benchmarks.shared import markdown_table, version, write_csv, write_text
from revgraph.planning import human_bytes, parse_bytes

RESULTS = Path(__file__).parent / "results"
NETWORK, BUDGET, BATCH, MOST_UNITS = "revnet-38", "200 MiB", 32, 64
ORDINARY, CHECKPOINTED, REVERSIBLE = "ordinary autograd", "checkpointed", "revgraph, within the budget"
ENDS = ("stem", "head")


@dataclass(frozen=True, slots=True)
class Limit:
    """The most `of` ("batch" or "units") that fits one way, with the step there predicted and measured.

    `next_bytes` is what one more takes at the least, and None where the search ended at its own limit.
    """

    of: str
    way: str
    most: int
    predicted_bytes: int
    measured_bytes: int
    flops_ratio: float
    next_bytes: int | None


def main(arguments: Sequence[str] | None = None) -> int:
    """Search, measure, print and write; the exit status is 0, 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.limits", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--budget", default=BUDGET, help=f"activation bytes at the peak ({BUDGET})")
    parser.add_argument("--batch", type=int, default=BATCH, help=f"while depth grows ({BATCH})")
    parser.add_argument("--units", type=int, default=3, help="a stage, while the batch grows (3)")
    parser.add_argument("--most-units", type=int, default=MOST_UNITS, help=f"to try ({MOST_UNITS})")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder to write to (benchmarks/results)")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        budget = parse_bytes(chosen.budget)
        found = limits(budget, chosen.units, chosen.batch, chosen.most_units)
    except rg.RevgraphError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    text = page(found, budget, chosen.units, chosen.batch)
    write_csv(chosen.out / "limits.csv", [asdict(each) for each in found])
    write_text(chosen.out / "limits.md", text)
    draw(found, budget, chosen.out / "limits.svg")
    print(text)
    return 0


def limits(budget: int, units: int, batch: int, most_units: int) -> list[Limit]:
    """Every way's largest batch for nets of `units` units a stage, and greatest depth for a batch.

    Raises:
        BudgetError: not even one image, or one unit a stage, fits some way.
    """
    found: list[Limit] = []
    for of, sizes in (
        ("batch", lambda size: (units, size)),
        ("units", lambda size: (size, batch)),
    ):
        most = most_units if of == "units" else None
        for way in (ORDINARY, CHECKPOINTED, REVERSIBLE):
            found.append(_limit(of, way, budget, sizes, most))
            print(f"{of}, {way}: {found[-1].most}", file=sys.stderr, flush=True)
    return found


def _limit(
    of: str, way: str, budget: int, sizes: Callable[[int], tuple[int, int]], most: int | None
) -> Limit:
    def fitting(size: int) -> rg.Plan | int:
        return plan_within(_graph(*sizes(size)), way, budget)

    start = 1 if way != REVERSIBLE or most is None else most
    if most is None:
        start = _guess(way, budget, sizes)
    size = largest(lambda each: not isinstance(fitting(each), int), start, most)
    plan = fitting(size) if size else fitting(1)
    if isinstance(plan, int):
        raise rg.BudgetError(
            f"{way}: not even a {of} of 1 fits {human_bytes(budget)}, it takes {human_bytes(plan)}. Raise "
            "--budget.",
            least_bytes=plan,
            node="",
        )
    following = None if size == most else fitting(size + 1)
    assert following is None or isinstance(following, int)
    units, batch = sizes(size)
    net = rg.load(deepened(NETWORK, units), batch=batch)
    net.plan = plan
    measured = rg.measure(net, images(net))
    return Limit(of, way, size, plan.peak_bytes, measured.peak_bytes, measured.flops_ratio, following)


@lru_cache(maxsize=64)
def _graph(units: int, batch: int) -> rg.Graph:
    return rg.load(deepened(NETWORK, units), batch=batch).graph


def _guess(way: str, budget: int, sizes: Callable[[int], tuple[int, int]]) -> int:
    """About the batch that fits, for bytes hardly differ from one image to the next."""
    few, many = 4, 8
    least = [_least_bytes(_graph(*sizes(size)), way) for size in (few, many)]
    each = (least[1] - least[0]) / (many - few)
    return max(1, int(few + (budget - least[0]) / each))


def _least_bytes(graph: rg.Graph, way: str) -> int:
    found = plan_within(graph, way, 1)
    assert isinstance(found, int)
    return found


def plan_within(graph: rg.Graph, way: str, budget: int) -> rg.Plan | int:
    """One way's plan if it keeps within the budget, else the bytes that it takes at the least.

    Checkpointed is what `torch.utils.checkpoint` around every function and every entry of a stage does:
    inputs are stored and the inside is computed again.
    """
    if way == REVERSIBLE:
        try:
            return rg.plan(graph, budget=budget)
        except rg.BudgetError as error:
            return error.least_bytes
    if way == ORDINARY:
        plan = rg.keep_all(graph)
    else:
        inner = (node.name for node in graph.planned if node.name not in ENDS)
        plan = rg.decide(graph, dict.fromkeys(inner, "recompute"))
    return plan if plan.peak_bytes <= budget else plan.peak_bytes


def largest(fits: Callable[[int], bool], start: int, most: int | None = None) -> int:
    """The largest whole number that fits, 0 if none does, no more than `most`; found from `start` on.

    What is smaller than one that fits has to fit as well.

    Example:
        >>> largest(lambda number: number <= 37, start=5), largest(lambda number: True, start=5, most=9)
        (37, 9)
    """
    good, bad, stride = 0, None if most is None else most + 1, 1
    tried = start
    while bad is None or bad - good > 1:
        if fits(tried):
            good = max(good, tried)
            tried += stride
        else:
            bad = tried
            tried -= stride
        stride *= 2
        if bad is not None and not good < tried < bad:
            tried = (good + bad) // 2
    return good


def page(found: Sequence[Limit], budget: int, units: int, batch: int) -> str:
    """What fits, what it takes, and what one more would take."""
    rows = [
        [
            f"{each.way}",
            f"{each.most:,}{'' if each.next_bytes else ' or more'} {_unit(each.of)}",
            f"{12 * (each.most if each.of == 'units' else units) + 2:,}",
            f"{each.predicted_bytes:,}",
            f"{each.measured_bytes:,}",
            f"x{each.flops_ratio:.3f}",
            f"{each.next_bytes:,}" if each.next_bytes else "not tried",
        ]
        for each in found
    ]
    head = ["", "most", "layers", "predicted", "measured", "FLOPs", "one more takes"]
    return (
        f"RevNets with the stages of RevNet-38 within {budget:,} activation bytes ({human_bytes(budget)}): "
        f"the largest batch with {units} units a stage, and the most units a stage with {batch} images; "
        f"torch {version('torch')}. Bytes are at the peak of a step, FLOPs over ordinary autograd's.\n\n"
        f"{markdown_table(head, rows)}\n\n"
        "Checkpointed: every function and every first unit of a stage is computed again from its stored "
        "inputs. One more takes: the peak predicted for it, with revgraph's plan of the least.\n"
    )


def _unit(of: str) -> str:
    return "images" if of == "batch" else "units"


def draw(found: Sequence[Limit], budget: int, path: Path) -> None:
    """The limits as bars, batches left and units right."""
    title = f"The largest batch and the greatest depth within {human_bytes(budget)}"
    looks = dict(zip((ORDINARY, CHECKPOINTED, REVERSIBLE), (LOOKS[0], LOOKS[3], LOOKS[5]), strict=True))
    with chart(path, title, (9.6, 3.4), grid="x") as figure:
        panels = figure.subplots(1, 2, sharey=True)
        for axes, of in zip(panels, ("batch", "units"), strict=True):
            mine = [each for each in found if each.of == of]
            bars = axes.barh(
                [each.way for each in mine],
                [each.most for each in mine],
                color=[looks[each.way][0] for each in mine],
                height=0.6,
            )
            labels = [f"{each.most:,}{'' if each.next_bytes else ' or more'}" for each in mine]
            axes.bar_label(bars, labels, padding=4)
            axes.set_xlabel("largest batch, images" if of == "batch" else "greatest depth, units a stage")
            axes.margins(x=0.35)
        panels[0].invert_yaxis()


if __name__ == "__main__":
    sys.exit(main())
