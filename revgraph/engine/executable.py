"""An executable: a program with a plan worked into it. What does not change between steps is worked out here.

Made once for a plan, and again when the model's modules are other ones: operations in order with their
functions written as Python (`writing.py`), values by number, what the forward stores and frees, the modules
that a node calls, and for every set of silent nodes the schedule's replays, lowered to numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from revgraph.engine import inlining
from revgraph.engine.contexts import HALF
from revgraph.engine.inlining import Inlined
from revgraph.engine.state import BATCH_NORMS, NodeModules, Probes
from revgraph.engine.writing import Function, listing, written
from revgraph.errors import GraphError, TraceError
from revgraph.expressions import Expression, leaves
from revgraph.gridding import OnGrid
from revgraph.planning.plans import TERM, Plan
from revgraph.planning.schedule import CAPTURING, Action, Schedule, lent_inputs, schedule, silent_nodes
from revgraph.planning.simulating import course_names
from revgraph.program import Arithmetic, Difference, Law, Named, Operation, Program, Sum
from revgraph.rearrangements import Rearrangement
from revgraph.streams import streams_of

if TYPE_CHECKING:
    from revgraph.engine.lean import LeanNodes


@dataclass(frozen=True, slots=True)
class PlannedOperation:
    """One operation under its plan. Values are numbers.

    `decision` is "keep", "invert", "recompute", or "wire" for what is never dropped. `tensors` are the node's
    inputs in the graph's order. `frees` are what nothing later reads, `stored` what is held for the backward;
    of `rebuilt` values the strides are noted, and where `runs_again` is set, a wiring's shapes. It
    `gives_again` where it may be run for its values alone, and not only for what autograd saves. It
    `lacks_target` where a replay does not read the target of a sum. `undoes_input` is its target if that is
    the caller's: it is rebuilt, though nothing reads it, to show how far the reconstruction has drifted by
    then. `results` are kept for replays, and with `keeps_statistics` those of batch normalization. A node
    `inlines` its function where that can keep either, or replay batch normalization on copies of its running
    statistics.
    """

    index: int
    node: str
    where: str
    decision: str
    expression: Expression
    function: Function
    reads: tuple[int, ...]
    makes: tuple[int, ...]
    tensors: tuple[int, ...]
    law: Law | None
    joint: Joint | None
    target: int | None
    target_name: str
    rearrangement: Rearrangement | None
    stored: tuple[int, ...]
    rebuilt: tuple[int, ...]
    frees: tuple[int, ...]
    results: tuple[int, ...]
    runs_again: bool
    gives_again: bool
    lacks_target: bool
    undoes_input: int | None
    modules: NodeModules
    inlines: bool
    keeps_statistics: bool

    def describe(self) -> str:
        """The node, and where it is declared."""
        return f"node {self.node!r}" + (f" ({self.where})" if self.where else "")


@dataclass(slots=True)
class ReplayStep:
    """A replay of the schedule, lowered: an operation and the numbers of values.

    `wanted` are those that its evaluation is to give. After the one that `is_last` the operation's forward
    is not asked for any more.
    """

    action: Action
    operation: PlannedOperation
    reads: tuple[int, ...]
    makes: tuple[int, ...]
    wanted: frozenset[int]
    frees: tuple[int, ...]
    captures: bool
    exact: bool
    is_wiring: bool
    is_last: bool


@dataclass(frozen=True, slots=True)
class Replays:
    """A schedule's replays: steps by position, and by operation the position that captures it (-1: none).

    `fixed` are the values that are stored or the caller's; `read` those of all that any step reads; `lent`
    are inputs that inversion gives back.
    """

    schedule: Schedule
    steps: list[ReplayStep]
    captured_at: list[int]
    begins: list[int]
    fixed: frozenset[int]
    read: frozenset[int]
    lent: frozenset[int]
    silent: frozenset[str]


NOT_MADE = object()
# How a coupling that only adds or subtracts joins its target with the term, and gives the target back.
Joint = tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]


class Executable:
    """Operations in order, and tables of what is looked at in every forward.

    `number` has each value's and plain number's place; `inputs` are those of the caller's that replays read.
    `drifts` counts for each operation the replays that gave other values than the forward and yet the same
    ones twice.
    """

    def __init__(self, model: nn.Module, program: Program, plan: Plan, whole: bool = True) -> None:
        """The `whole` model is watched for changes, or only the modules that the program's nodes use."""
        graph = program.graph
        self.plan = plan
        self.program = program
        self.names = [value.name for value in graph.values]
        operations = program.operations
        named = chain(graph.inputs, program.numbers, *((*each.reads, *each.makes) for each in operations))
        self.names += [name for name in dict.fromkeys(named) if name not in graph.value]
        self.number = {name: index for index, name in enumerate(self.names)}
        self.size = len(self.names)
        self._devices = {value.device.partition(":")[0] for value in graph.values}
        self.drifts: Counter[int] = Counter()
        self._replays: dict[tuple[frozenset[str], frozenset[int]], Replays] = {}
        self.operations = _Planning(self.number, model, program, plan).operations()
        used = chain.from_iterable(each.modules.modules for each in self.operations)
        modules = [*model.modules()] if whole else [*dict.fromkeys(used)]
        self._tables = [module._modules for module in modules]
        self._children = [*chain.from_iterable(map(dict.values, self._tables))]
        self._parameters = [module._parameters for module in modules]
        self._slots = [*self._parameters, *(module._buffers for module in modules)]
        self._slot_count = sum(map(len, self._slots))
        self.inputs = [self.number[name] for name in graph.inputs if name in plan.sources]
        self.lean: LeanNodes | None = None
        # On a grid (exact mode) inversion gives back the forward's values to the bit.
        self._on_grid = any([type(each.law) is OnGrid for each in program.operations])
        self._model = model
        self._inlined: dict[int, Any] = {}
        self._looks: dict[int, list[tuple[bool, bool]]] = {}
        self._probes: Probes | None = None
        for operation in self.operations:
            if operation.inlines:
                self.inlined(operation)

    def is_current(self) -> bool:
        """Whether the model has the modules that this was made for, each with as many tensors."""
        children = [*chain.from_iterable(map(dict.values, self._tables))]
        return children == self._children and sum(map(len, self._slots)) == self._slot_count

    def replays(self, silent: frozenset[str], gone: frozenset[int] = frozenset()) -> Replays:
        """What backward passes carry out, where `silent` nodes saved nothing and inputs are `gone`."""
        found = self._replays.get((silent, gone))
        if found is None:
            found = self._replays[silent, gone] = self._lowered(silent, gone)
        return found

    def inlined(self, operation: PlannedOperation) -> Inlined | None:
        """The inlined function of a node that keeps results of its calls, as its modules are now."""
        index, modules = operation.index, operation.modules.modules
        found = self._inlined.get(index, NOT_MADE)
        outdated = found is NOT_MADE or (found is not None and not found.is_clear())
        if outdated or (found is None and inlining.look_of(modules) != self._looks[index]):
            found = inlining.inlined(operation.expression, self._model, operation.results)
            self._inlined[index] = found
            self._looks[index] = inlining.look_of(modules)
        return found

    def spans_devices(self) -> bool:
        """Whether values or parameters are on several devices: then a backward pass has several threads."""
        found = {each.device for table in self._parameters for each in table.values() if each is not None}
        return len(found) > 1 or len(self._devices.union(device.type for device in found)) > 1

    def probes(self) -> Probes:
        """Probes of the parameters of nodes that are replayed, as they lie now."""
        if self._probes is None or not self._probes.is_current():
            replayed = (each.modules for each in self.operations if each.decision in ("invert", "recompute"))
            slots = chain.from_iterable(modules.parameters for modules in replayed)
            found = (module._parameters.get(name) for module, name in slots)
            self._probes = Probes({id(each): each for each in found if each is not None}.values())
        return self._probes

    def code(self) -> str:
        """The Python of every node's function, the forward, and what is replayed in a whole backward pass.

        Functions are shown with their layers opened where all of these are known, and else as they are
        called.
        """
        nodes = [each for each in self.operations if each.node]
        return listing(
            self.plan.graph.name,
            [(each, self._shown(each)) for each in nodes],
            self.replays(silent_nodes(self.plan)).steps,
            self.names,
            {id(module): path for path, module in self._model.named_modules()},
        )

    def _shown(self, operation: PlannedOperation) -> Inlined | Function:
        inlined = None
        if operation.decision in ("invert", "recompute"):
            inlined = inlining.inlined(operation.expression, self._model, operation.results)
        return inlined or operation.function

    @cached_property
    def begins(self) -> frozenset[int]:
        """The values that streams begin with."""
        return frozenset([self.number[name] for name in streams_of(self.program).beginnings])

    def again(self, way: str) -> ReplayStep:
        """A step that runs the only node again, besides its own stage: for recording what that takes.

        `again` gives an inverted coupling's target back, `rerun` the outputs, and `hold` these and captures.
        """
        (operation,) = self.operations
        inverts = way == "again"
        node = self.plan.graph.node[operation.node]
        others = tuple([self.number[name] for name in dict.fromkeys(node.others)])
        outputs = tuple([self.number[name] for name in node.outputs])
        reads = (*others, *outputs) if inverts else tuple(dict.fromkeys(operation.tensors))
        makes = (operation.target,) if inverts and operation.target is not None else outputs
        action: Action = "invert" if inverts else "rerun"
        captures = way == "hold"
        return ReplayStep(action, operation, reads, makes, frozenset(makes), (), captures, True, False, True)

    def _reads_no_more(self, whole: Schedule, silent: frozenset[str], lent: frozenset[str]) -> bool:
        """Whether the schedule without the lent inputs makes do with what this one leaves on the tape."""
        without = schedule(self.plan, silent, lent)
        held = {*self.plan.stored, *self.plan.graph.inputs}.difference(lent)
        needed = {name for each in without.replays for name in each.reads}.intersection(held)
        return needed.issubset(name for each in whole.replays for name in each.reads)

    def _lowered(self, silent: frozenset[str], gone: frozenset[int]) -> Replays:
        plan, place, names = self.plan, self.number.__getitem__, {self.names[each] for each in gone}
        whole = schedule(plan, silent, names)
        at = {operation.node: operation for operation in self.operations if operation.node}
        steps: list[ReplayStep] = []
        captured_at = [-1] * len(self.operations)
        read: set[int] = set()
        for each in whole.replays:
            operation = at[each.node]
            makes = tuple(map(place, each.makes))
            wanted = frozenset(makes)
            if operation.undoes_input is not None and each.action in ("invert", "invert_again"):
                wanted |= {operation.undoes_input}
            captures = each.action in CAPTURING
            if captures:
                captured_at[operation.index] = len(steps)
            reads = tuple(map(place, dict.fromkeys(each.reads)))
            read.update(reads)
            frees = tuple(map(place, each.frees))
            is_wiring = each.action in ("invert_wiring", "wire")
            steps.append(
                ReplayStep(
                    each.action,
                    operation,
                    reads,
                    makes,
                    wanted,
                    frees,
                    captures,
                    each.exact or self._on_grid,
                    is_wiring,
                    whole.last_at[each.node] == len(steps),
                )
            )
        fixed = frozenset(map(place, {*plan.stored, *plan.graph.inputs}.difference(names)))
        given_back = lent_inputs(plan)
        lent = frozenset(map(place, given_back.difference(names)))
        if lent and not names and not self._reads_no_more(whole, silent, given_back):
            lent = frozenset()
        return Replays(whole, steps, captured_at, whole.begins, fixed, frozenset(read), lent, silent)


def joint_of(law: Law | None) -> Joint | None:
    """The arithmetic of a rule that only adds or subtracts; None of any other."""
    if type(law) is Sum:
        alpha = law.alpha
        if alpha == 1:
            return torch.add, torch.sub
        return partial(torch.add, alpha=alpha), partial(torch.sub, alpha=alpha)
    if type(law) is Difference:
        return _from_term, _from_term
    if type(law) is Arithmetic and law.is_linear and law.terms == 1:
        return law.join, law.undo
    return None


def _from_term(x: Tensor, term: Tensor) -> Tensor:
    return term - x


def not_undone(operation: PlannedOperation, x: Tensor, y: Tensor) -> GraphError:
    """What to raise where a coupling changed the shape of its target."""
    return GraphError(
        f"{operation.describe()} turned its target {operation.target_name!r} of shape {list(x.shape)} into "
        f"shape {list(y.shape)}, which cannot be undone. Expand the target first, or keep the node: "
        f"decisions {{{operation.node!r}: 'keep'}}."
    )


def draws(operation: PlannedOperation) -> GraphError:
    """What to raise where the inverse of a net meets a function that draws random numbers."""
    return GraphError(
        f"node {operation.node!r} draws random numbers, so its inverse is not the one of any forward. "
        "Call net.eval() before net.inverse, or take the dropout out."
    )


def refuse_half(node: str, name: str, dtype: torch.dtype, traced: str) -> None:
    """Hold a coupling's target to the precision that it was traced with.

    Raises:
        TraceError: it is in half precision, and was not.
    """
    if dtype in HALF and traced not in ("float16", "bfloat16"):
        now = str(dtype).removeprefix("torch.")
        raise TraceError(
            f"coupling {node!r} is to give back {name!r}, which is {now} in this call and "
            f"was {traced} in the trace: a sum in half precision cannot be undone well. Keep the "
            "streams in float32 and run the functions under autocast; or trace the model as it is "
            "now, and permit it with half_streams=True."
        )


class _Planning:
    """Works a plan into a program's operations."""

    def __init__(self, number: dict[str, int], model: nn.Module, program: Program, plan: Plan) -> None:
        self.model = model
        self.program = program
        self.graph = program.graph
        self.plan = plan
        self.place = number.__getitem__
        self.stored = {*plan.stored, *self.graph.inputs}
        self.wirings = {each.node for each in plan.sources.values() if each.how in ("rewired", "wired")}
        self.reruns = {each.node for each in plan.sources.values() if each.how == "recomputed"}
        self.last: dict[str, int] = {}
        for index, operation in enumerate(program.operations):
            self.last.update(dict.fromkeys(operation.reads, index))
            if operation.target is not None:
                self.last[operation.target] = index
        self.frees: dict[int, list[int]] = {}
        self.returned = set(named_in(program.results))
        self.courses = course_names(plan)
        for name, index in self.last.items():
            if name not in self.returned and name in number:
                self.frees.setdefault(index, []).append(number[name])

    def operations(self) -> list[PlannedOperation]:
        return [self._planned(each, index) for index, each in enumerate(self.program.operations)]

    def _slots(self, paths: Sequence[str]) -> set[tuple[nn.Module, str]]:
        """The modules that have these parameters, each with its name there."""
        places = [path.rpartition(".") for path in paths]
        return {(self.model.get_submodule(owner), name) for owner, _, name in places}

    def _planned(self, operation: Operation, index: int) -> PlannedOperation:
        place, plan, sources, stored = self.place, self.plan, self.plan.sources, self.stored
        node = self.graph.node.get(operation.node)
        decision = plan.decisions.get(operation.node, "wire")
        target, law = operation.target, operation.law
        held: list[int] = []
        rebuilt: list[int] = []
        frees = self.frees.get(index, [])
        for name in operation.makes:
            if name in sources:
                (held if name in stored else rebuilt).append(place(name))
            if name not in self.last and name not in self.returned:
                frees.append(place(name))
        function = written(operation.expression, self.model)
        called = dict.fromkeys(function.owners)
        if law is not None:
            called.update(dict.fromkeys(law.modules(self.model)))
        for module in function.modules:
            called[module] = None
            if module._modules:
                called.update(dict.fromkeys(module.modules()))
        modules = NodeModules.of(tuple(called) if decision != "wire" else (), self._slots(operation.writes))
        results = tuple(plan.results.get(operation.node, ()))
        live = decision in ("invert", "recompute")
        # What is inverted and asked for no target runs as if it were recomputed.
        has_norm = _has_batch_norm(modules) and not (law is not None and law.evaluates_modules)
        statistics = live and has_norm and self.courses[operation.node].startswith("recompute")
        additive = node is not None and node.additive and target is not None
        undoes = decision == "invert" and target is not None and target in self.graph.inputs
        return PlannedOperation(
            index=index,
            node=operation.node,
            where=node.where if node is not None else "",
            decision=decision,
            expression=operation.expression,
            function=function,
            reads=tuple(map(place, operation.reads)),
            makes=tuple(map(place, operation.makes)),
            tensors=tuple(map(place, node.inputs)) if node is not None else (),
            law=law,
            joint=joint_of(law),
            target=None if target is None else place(target),
            target_name=target or "",
            rearrangement=operation.rearrangement,
            stored=tuple(held),
            rebuilt=tuple(rebuilt),
            frees=tuple(frees),
            results=results,
            runs_again=operation.node in self.wirings,
            gives_again=decision == "invert" or operation.node in self.reruns,
            lacks_target=additive and decision == "recompute",
            undoes_input=place(target or "") if undoes else None,
            modules=modules,
            inlines=live and ((bool(results) and TERM not in results) or has_norm),
            keeps_statistics=statistics,
        )


def _has_batch_norm(modules: NodeModules) -> bool:
    return any(isinstance(slot[0], BATCH_NORMS) for slot in modules.buffers)


def named_in(tree: Any) -> Iterator[str]:
    """The values that a tree of results names."""
    return (leaf.name for leaf in leaves(tree) if isinstance(leaf, Named))
