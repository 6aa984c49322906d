"""The order in which random numbers are drawn, which no half-step may change.

A net gives the model's numbers for the model's seed. That takes the same draws in the same order, and the
function of a half-step runs where its sum stands, which may be later than where the code called its parts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import fx, nn

from revgraph.tracing.find_couplings.half_steps import HalfStep, HalfStepSearch, readings_of

# Functions and torch's modules that draw random numbers.
RANDOM = re.compile(
    "drop|rand|bernoulli|normal|multinomial|poisson|uniform|exponential|rrelu|fractional|gumbel"
)
RANDOM_MODULES = (nn.modules.dropout._DropoutNd, nn.RReLU, nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)


def in_draw_order(search: HalfStepSearch, half_steps: dict[fx.Node, HalfStep]) -> dict[fx.Node, HalfStep]:
    """The half-steps without those that would draw random numbers in another order than the code does.

    A function runs where its sum stands. What it calls may stand before that, and other calls in between; and
    what reads its further results waits for it.
    """
    drawing = [node for node in search.flow.graph.nodes if _may_draw(node, search.flow.root)]
    while len(drawing) > 1:
        late = _late(search, half_steps, drawing)
        if late is None:
            return half_steps
        rest = {node: each for node, each in half_steps.items() if each is not late}
        half_steps = search.half_steps(readings_of(rest))
    return half_steps


def _late(
    search: HalfStepSearch, half_steps: Mapping[fx.Node, HalfStep], drawing: list[fx.Node]
) -> HalfStep | None:
    """A half-step by which random numbers are drawn later than others that the code draws after them."""
    order = search.flow.order
    owner = {node: each for each in half_steps.values() for node in each.region}
    # Where a call runs: at this place of the graph, before or after what else runs there; and by whose doing.
    places: dict[fx.Node, tuple[int, int]] = {
        each.addition: (order[each.addition], 0) for each in owner.values()
    }
    causes: dict[fx.Node, HalfStep] = {}
    while True:
        before = dict(places)
        for node in search.flow.graph.nodes:
            if node in owner:
                continue
            half_step = half_steps.get(node)
            reads = node.all_input_nodes if half_step is None else (half_step.target, *half_step.others)
            place = order[node], 0
            for each in reads:
                of = owner.get(each)
                waits = places.get(each, (0, 0)) if of is None else (places[of.addition][0], 1)
                if waits > place:
                    place, causes[node] = waits, causes[each] if of is None else of
            places[node] = place
        if places == before:
            break
    latest: fx.Node | None = None
    for node in drawing:
        of = owner.get(node)
        places[node] = place = places[node] if of is None else places[of.addition]
        if latest is not None and place < places[latest]:
            return owner.get(latest) or causes[latest]
        latest = node
    return None


def _may_draw(node: fx.Node, root: nn.Module) -> bool:
    """Whether a call may draw random numbers: of modules that are not known to draw none, it is assumed."""
    if node.op != "call_module":
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        return node.op in ("call_function", "call_method") and RANDOM.search(name) is not None
    return any(
        not type(each).__module__.startswith(("torch.nn.", "revgraph."))
        or isinstance(each, RANDOM_MODULES)
        or getattr(each, "dropout", 0.0) != 0.0
        for each in root.get_submodule(str(node.target)).modules()
    )
