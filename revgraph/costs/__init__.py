"""Costs on fake tensors: the bytes and FLOPs of every node, without memory or arithmetic."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Iterator, Mapping
from dataclasses import replace
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from revgraph.costs.alone import Situation
from revgraph.costs.forms import Form, form_of
from revgraph.costs.isolating import Recorded, Way
from revgraph.costs.known import state_now
from revgraph.costs.sweeping import Sweep
from revgraph.courses import Course
from revgraph.graph import Cost, Graph, Node, Value
from revgraph.isolation import tensors_replaced, untouched
from revgraph.planning.plans import TERM, Decision
from revgraph.program import Program
from revgraph.storages import PARTS

__all__ = ["with_costs"]


# Bytes of a value up to which running on real tensors is faster than on fake ones.
SMALL = 2**16
# Up to this many heavy results, every choice among them is a course.
FEW = 2
# How a wiring is run again: the course's name, and whether backwards.
WIRED = (("rewire", True), ("wire", False))


def with_costs(program: Program, model: nn.Module, examples: Mapping[str, Any] | None = None) -> Graph:
    """The program's graph with the cost of every node.

    Each distinct node (same modules, same forms of inputs and gradients) runs once under each decision,
    alone, through the engine, on tensors without memory, or where all values are small on zeros, which is
    faster, unless a function refuses zeros. On zeros, too, where a value is sparse: torch has few kernels for
    those without memory. A node that cannot run so (its path depends on values) has no courses, and counts
    nothing in predictions. The
    `examples` of the inputs, by name, tell how many entries sparse ones have.
    """
    sparse = {
        name: form_of(each, name)
        for name, each in (examples or {}).items()
        if isinstance(each, Tensor) and each.layout in PARTS
    }
    own = any(each.layout in PARTS for each in (*model.parameters(), *model.buffers()))
    graph = None
    if any(value.nbytes > SMALL for value in program.graph.values) and not (sparse or own):
        graph = _costed(program, model, sparse, FakeTensorMode(allow_non_fake_inputs=True))
    graph = graph or _costed(program, model, sparse, None)
    assert graph is not None
    if (lacking := _without_costs(graph)) and not (sparse or own):
        other = _costed(program, model, sparse, FakeTensorMode(allow_non_fake_inputs=True))
        if other is not None and _without_costs(other) < lacking:
            return other
    return graph


def _without_costs(graph: Graph) -> int:
    """How many nodes have none. Some functions refuse zeros (the solution of a singular system)."""
    return sum(not node.cost.courses for node in graph.planned)


def _costed(
    program: Program, model: nn.Module, sparse: Mapping[str, Form], mode: FakeTensorMode | None
) -> Graph | None:
    """The graph with its costs; None where they are not to be found without memory."""
    state = state_now()
    with (
        untouched(model, mode),
        mode or tensors_replaced(model, {id(each): _replacement(each) for each in model.parameters()}),
        torch.enable_grad(),
    ):
        sweep = Sweep(program, model, sparse, None if state is None else (state, mode is None))
        sweep.forward()
        if mode is not None and any(isinstance(form, Form) and form.parts for form in sweep.forms.values()):
            return None
        loss = sweep.backward()
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        by_rows = {
            id(each)
            for module in model.modules()
            if getattr(module, "sparse", None) is True  # a model of its own may call anything `sparse`
            for each in module.parameters(recurse=False)
        }
        frees = _frees(program)
        found: dict[Hashable, dict[str, Course]] = {}
        nodes = tuple(
            replace(node, cost=_cost(node, sweep, found, names, by_rows, frees[node.name]))
            if node.name in sweep.situations
            else node
            for node in program.graph.nodes
        )
    values = tuple(_with_entries(value, sweep.forms.get(value.name)) for value in program.graph.values)
    return replace(program.graph, nodes=nodes, values=values, loss=loss)


def _with_entries(value: Value, form: Any) -> Value:
    """A value with its true bytes where it is sparse: a trace without memory does not know its entries."""
    if isinstance(form, Form) and form.parts and value.storage == value.name:
        return replace(value, nbytes=form.storage_bytes)
    return value


def _cost(
    node: Node,
    sweep: Sweep,
    found: dict[Hashable, dict[str, Course]],
    names: Mapping[int, str],
    sparse: Collection[int],
    frees: tuple[str, ...],
) -> Cost:
    """The cost of a node; `found` are the courses of nodes that are alike in all that courses hang on.

    `names` are those of parameters by their identities, and `sparse` those with sparse gradients.
    """
    at = sweep.situations[node.name]
    kept = sweep.record(at, "keep")
    alike = sweep.alike(at)
    if alike not in found:
        found[alike] = _courses(at, kept, sweep)
    courses = found[alike]
    if "keep" not in courses:
        return Cost(frees=frees)
    keep = courses["keep"]
    dropped = {event[1] for event in keep.forward if event[0] == "drop"}
    labels = [*((f"in{index}", name) for index, name in enumerate(node.inputs))]
    labels += [(f"out{index}", name) for index, name in enumerate(node.outputs)]
    pinned = [name for label, name in labels if label not in dropped and isinstance(sweep.forms[name], Form)]
    return Cost(
        saved_bytes=keep.held_bytes,
        saved_values=tuple(pinned),
        flops=keep.forward_work.flops,
        backward_flops=keep.backward_work.flops,
        heavy_results=len(kept.heavy) if kept is not None else 0,
        heavy_names=_heavy_names(at, kept),
        shared=tuple(names.get(id(tensor), "") for tensor in at.shared),
        frees=frees,
        courses=courses,
        shared_bytes=tuple(0 if id(tensor) in sparse else tensor.nbytes for tensor in at.shared),
    )


def _courses(at: Situation, kept: Recorded | None, sweep: Sweep) -> dict[str, Course]:
    """A node's courses by their names."""
    node = at.node
    courses: dict[str, Course] = {}
    for decision in _decisions(node):
        for results in ((), *_kept_results(kept, node, decision)):
            recorded = sweep.record(at, decision, results)
            if recorded is not None:
                courses["+".join((decision, *map(str, results)))] = recorded.course
    for name, backwards in WIRED if node.kind == "wiring" else ():
        recorded = sweep.record_wiring(at, backwards)
        if recorded is not None:
            courses[name] = recorded.course
    for way in _ways(node, courses):
        recorded = sweep.record_again(at, way)
        if recorded is not None:
            courses[way] = recorded.course
    return courses


def _heavy_names(at: Situation, kept: Recorded | None) -> tuple[str, ...]:
    """What a node's heavy operators are called, no two alike: by module in the node, or by what they do.

    >>> from types import SimpleNamespace as Fake
    >>> heavy = [(9, 8, (0, "conv1")), (9, 8, (0, "2 (Conv2d)")), *[(9, 8, (None, "product"))] * 2]
    >>> run = Fake(module_paths=("stage.unit.f",), attribute_paths=())
    >>> _heavy_names(Fake(operation=Fake(expression=run)), Fake(heavy=heavy))
    ('conv1', '2 (Conv2d)', 'product 1', 'product 2')
    """
    if kept is None:
        return ()
    run = at.operation.expression
    owners = [*run.module_paths, *run.attribute_paths]
    names: list[str] = []
    for _, _, (place, inside) in kept.heavy:
        outer = "" if place is None or (inside and len(owners) == 1) else owners[place].rpartition(".")[2]
        name = ".".join(part for part in (outer, inside) if part)
        names.append("product" if name.isdecimal() else name)
    count = Counter(names)
    seen: Counter[str] = Counter()
    for index, name in enumerate(names):
        if count[name] > 1:
            seen[name] += 1
            names[index] = f"{name} {seen[name]}"
    return tuple(names)


def _decisions(node: Node) -> tuple[Decision, ...]:
    if node.kind == "coupling":
        return "keep", "invert", "recompute"
    return ("keep", "recompute") if node.kind == "boundary" else ("keep",)


def _kept_results(kept: Recorded | None, node: Node, decision: Decision) -> Iterator[tuple[int, ...]]:
    """The choices of heavy results to keep besides that are worth a course: few, by FLOPs for their bytes.

    The term is kept to invert; a sum that is asked for no target is then as if recomputed, term and all.
    """
    if kept is None or decision == "keep":
        return
    worth = [index for index, (flops, nbytes, _) in enumerate(kept.heavy) if flops and nbytes]
    worth.sort(key=lambda index: -kept.heavy[index][0] / kept.heavy[index][1])
    if len(worth) <= FEW:
        for size in range(1, len(worth) + 1):
            yield from (tuple(sorted(chosen)) for chosen in combinations(worth, size))
    else:
        for size in sorted({1, 2, len(worth) // 4, len(worth) // 2, 3 * len(worth) // 4, len(worth)}):
            yield tuple(sorted(worth[:size]))
    if (decision == "invert" or node.additive) and len(node.outputs) == 1:
        yield (TERM,)


def _ways(node: Node, courses: Mapping[str, Course]) -> tuple[Way, ...]:
    if node.kind == "wiring":
        return ()
    return ("rerun", "hold") if node.kind == "boundary" else ("rerun", "hold", "again")


def _frees(program: Program) -> dict[str, tuple[str, ...]]:
    """For each node the values that the forward lets go of once it and the plain operations after it ran."""
    graph = program.graph
    last: dict[str, str] = {}
    at = ""
    for operation in program.operations:
        at = operation.node or at
        reads = operation.reads if operation.target is None else (*operation.reads, operation.target)
        last.update(dict.fromkeys((*reads, *operation.makes), at))
    frees: dict[str, list[str]] = {operation.node: [] for operation in program.operations if operation.node}
    for name, node in last.items():
        if name in graph.value and name not in graph.outputs and node:
            frees[node].append(name)
    return {node: tuple(names) for node, names in frees.items()}


def _replacement(parameter: Tensor) -> nn.Parameter:
    data = parameter.detach()
    return nn.Parameter(data.clone() if data.is_inference() else data, parameter.requires_grad)
