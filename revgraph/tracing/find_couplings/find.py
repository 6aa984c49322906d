"""Half-steps found in traced arithmetic: sums `y = x + F(others)` and the like that can be undone.

A half-step is one line of a reversible block: Gomez et al. 2017 write a block as `y1 = x1 + F(x2)`, `y2 = x2
+ G(y1)`, which are two of them. In code it is no module but an addition somewhere, with the modules of F
called before it. Four questions decide whether a sum is one:

1. Is the call arithmetic that can be undone? (`readings`: sums, differences, products with what is never
   zero)
2. Does it gain something? Ordinary networks are full of sums that could be undone and gain nothing by it: the
   output of an attention and the values around it, a bias on its scores, a condition inside a block. (`flow`)
3. Can it be undone? F is closed and does not need the target. (`half_steps`)
4. Does it leave the order of random draws as it is? (`draw_order`)

Questions 2 and 3 each need the other's answer: a stream leads over sums that are half-steps, and F may depend
on the target over half-steps. So they take turns, each starting from what the other left, until nothing
changes. At last those are given up that lie inside another one's F (`_absorb`): a coupling inside F would be
run again with F whatever happens, and only ends it.

`find_half_steps` sees all modules opened. Folding then closes those that hold no half-step, after which
`refine_half_steps` finds the same half-steps with the regions that the folded graph has.

Everything here is linear in the number of nodes, but for functions inside functions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import fx, nn

from revgraph.tracing.find_couplings.draw_order import in_draw_order
from revgraph.tracing.find_couplings.flow import Flow, on_streams
from revgraph.tracing.find_couplings.half_steps import HalfStep, HalfStepSearch, readings_of
from revgraph.tracing.find_couplings.readings import Reading, readings
from revgraph.tracing.scopes import ModuleScope

MOST_GATHERED = 3
"""Values larger than its result that a sum's function may read where the sum moves no stream of its own."""


def find_half_steps(
    graph: fx.Graph,
    root: nn.Module,
    fakes: Mapping[fx.Node, Any],
    streams: set[fx.Node],
    scopes: list[ModuleScope],
    sums_only: bool = False,
) -> dict[fx.Node, HalfStep]:
    """The half-steps of a traced graph, by their additions.

    `streams` are values known to lie on a stream: what coupling modules return. With `sums_only`, no product
    is part of a half-step.
    """
    flow = Flow(graph, root, fakes, streams)
    search = HalfStepSearch(flow)
    innermost = _innermost(scopes)
    possible = {
        node: found
        for node in graph.nodes
        if (
            found := [
                each
                for each in readings(node, fakes, sums_only)
                if all(innermost.get(call) is innermost.get(node) for call in each.spine)
            ]
        )
    }
    for found in possible.values():
        found.sort(key=lambda reading: flow.rank(reading, possible.keys()))
    forks = flow.sums_of(possible)
    possible = on_streams(flow, possible)
    while True:
        half_steps = search.half_steps(possible)
        worth = on_streams(flow, readings_of(half_steps), forks)
        if worth == possible:
            break
        possible = worth
    for node in reversed(list(half_steps)):
        if node in half_steps:
            _absorb(search, half_steps, node, scopes)
    half_steps = {node: each for node, each in half_steps.items() if not _gathers(flow, each)}
    return in_draw_order(search, search.half_steps(readings_of(half_steps)))


def _gathers(flow: Flow, half_step: HalfStep) -> bool:
    """Whether a half-step that moves no stream of its own holds to the end what many small terms are made of.

    Such is a flow's sum of log determinants, each a sum over some layer's scales: by themselves, these terms
    are there as soon as their layers are, and the scales can go.
    """
    target = flow.base[half_step.target]
    is_begun = target.op == "placeholder" or target in flow.streams
    if is_begun or any(each is not half_step.addition for each in flow.readers[target]):
        return False
    size = flow.fakes[target].numel()
    larger = [each for each in half_step.others if flow.is_tensor(each) and flow.fakes[each].numel() > size]
    return len(larger) > MOST_GATHERED and not flow.is_part_of_split(target)


def _innermost(scopes: list[ModuleScope]) -> dict[fx.Node, ModuleScope]:
    """The module call in which each node was made; what goes on in another one is not read along with it,
    or both would have to stay open."""
    found: dict[fx.Node, ModuleScope] = {}
    for scope in scopes:  # those inside come first
        for node in scope.nodes:
            found.setdefault(node, scope)
    return found


def refine_half_steps(
    graph: fx.Graph,
    root: nn.Module,
    fakes: Mapping[fx.Node, Any],
    streams: set[fx.Node],
    found: Mapping[fx.Node, HalfStep],
) -> dict[fx.Node, HalfStep]:
    """The same half-steps with their regions found anew in a graph whose modules were settled since."""
    search = HalfStepSearch(Flow(graph, root, fakes, streams))
    again: dict[fx.Node, Sequence[Reading]] = {}
    for node, half_step in found.items():
        known = half_step.reading
        again[node] = [
            each for each in readings(node, fakes) if (each.law, each.places) == (known.law, known.places)
        ]
    return in_draw_order(search, search.half_steps(again))


def _absorb(
    search: HalfStepSearch, found: dict[fx.Node, HalfStep], node: fx.Node, scopes: list[ModuleScope]
) -> None:
    """Give up half-steps that lie inside the F of the half-step at `node` and lead nowhere else."""
    flow = search.flow
    while True:
        half_step = found[node]
        inside = {*half_step.region, *half_step.reading.spine}
        near = {other for other in half_step.others if other in found and _serves(flow, other, inside)}
        if not near:
            return
        reading = half_step.reading
        everything = set(search.region(reading.spine, reading.terms, set()))
        begun = {flow.base[each.target] for each in found.values()}
        for given_up in _inner(flow, found, node, everything, near, scopes):
            wider = search.half_step(reading, found.keys() - given_up, begun) if given_up else None
            if wider is not None and set(wider.region) >= given_up:
                break
        else:
            return
        found[node] = wider
        for other in given_up:
            del found[other]


def _serves(flow: Flow, node: fx.Node, inside: set[fx.Node]) -> bool:
    return all(user in inside or user in flow.guard_calls for user in node.users)


def _inner(
    flow: Flow,
    found: Mapping[fx.Node, HalfStep],
    node: fx.Node,
    everything: set[fx.Node],
    near: set[fx.Node],
    scopes: list[ModuleScope],
) -> Iterator[set[fx.Node]]:
    """What to give up among `everything`: all of it, what modules compute by themselves, what is `near`.

    Half-steps that move a stream on in the open stay: such a one reads its target last of all, and that is no
    sum which is given up itself. In a module that is an F as a whole it is given up all the same.
    """
    inner = {other for other in everything if other in found}
    open_ones: set[fx.Node] = set()
    for other in sorted(inner, key=flow.order.__getitem__):
        target = flow.base[found[other].target]
        if _is_last_reader(flow, found[other]) and (target not in inner or target in open_ones):
            open_ones.add(other)
    in_modules: set[fx.Node] = set()
    for scope in scopes:
        if not near.isdisjoint(scope.nodes):
            nodes = set(scope.nodes)
            computing = {each for each in nodes if flow.is_tensor(each) and each.op != "get_attr"}
            if node not in nodes and computing <= everything:
                in_modules |= inner & nodes
    yield (inner - open_ones) | in_modules
    yield in_modules
    yield near - open_ones


def _is_last_reader(flow: Flow, half_step: HalfStep) -> bool:
    place = flow.order[half_step.addition]
    return all(flow.order[each] <= place for each in flow.readers[flow.base[half_step.target]])
