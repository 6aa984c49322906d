"""Partition: a plan's schedule, lowered into the joint graph of forward and backward that AOTAutograd made.

In comes a joint graph with marks (`marking`), out go the graphs of forward and backward without. What comes
back when is not decided here: the backward is written instruction by instruction of the schedule.

    invert, recompute, ...   the operators of the node's forward once more, on the values that its reads have
                             by then; an inverted target by the coupling's own `uncouple`
    invert_wiring            the inverse of the wiring
    backward                 the operators of the node's backward, reading what was captured for it

How it is known what is whose: marks cut the graph into regions, the forward and the backward operators of
each node. A region reads values by marks alone, so that "the value as node k reads it" is one node of the
joint graph, and stands for the stored value where k is kept, and for the one at hand in k's replay otherwise.

What is kept true:
- Every operator of a backward that reads something of a forward reads the copy that the node's replay made.
- Random numbers are drawn once: what an operator drew is saved, or drawn again from a seed that is.
- Buffers are written once, by the forward; what reads one that a forward writes reads a copy made before.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from revgraph.compiling.choices import captured, is_cheap
from revgraph.compiling.marking import MARK, MARK_GRADIENT, Marked, filled, owned_by
from revgraph.compiling.regions import (
    Reading,
    ancestors,
    is_dense,
    is_saved,
    is_small,
    is_tangent,
    read_by,
    value_of,
    writes,
    written_inputs,
)
from revgraph.engine.executable import refuse_half
from revgraph.engine.selective_recompute import is_heavy
from revgraph.errors import PlanError
from revgraph.planning.plans import TERM, Plan
from revgraph.planning.schedule import CAPTURING, REPLAYING, Instruction, Schedule, schedule
from revgraph.program import Operation

aten = torch.ops.aten
Decompositions = Mapping[Any, Callable[..., Any]]


@dataclass(frozen=True, slots=True)
class Partition:
    """The joint graph in the schedule's order, what of it is saved for the backward, and the schedule."""

    joint: fx.GraphModule
    saved: list[fx.Node]
    saved_numbers: list[fx.Node]
    schedule: Schedule


def partitioned(
    joint: fx.GraphModule,
    forward_outputs: int,
    marked: Marked,
    plan: Plan,
    decompositions: Decompositions | None = None,
    fuses: bool = False,
) -> Partition:
    """The joint graph of a marked program, without marks and with a backward as the plan's schedule has it.

    For a compiler that `fuses`, choices are made within nodes (`choices`), and replays on the forward's own
    values take statistics and the like from there, which costs few bytes and saves a pass over large ones.

    Raises:
        PlanError: what a node does cannot be repeated or undone in a compiled graph.
        TraceError: a stream to be inverted is in half precision, and was not when the net was traced.
    """
    reading = Reading(joint, forward_outputs, marked)
    return _Lowering(reading, marked, plan, decompositions, fuses).lowered()


@dataclass(slots=True)
class _Context:
    """Where a region's operators are looked up: as the forward had them, or as a replay has.

    `copies` are nodes of the new graph by those of the old one that they stand for, `values` the values that
    the replay read.
    """

    node: str
    is_replay: bool
    copies: dict[fx.Node, fx.Node] = field(default_factory=dict)
    values: dict[str, fx.Node] = field(default_factory=dict)


class _Lowering:
    def __init__(
        self,
        reading: Reading,
        marked: Marked,
        plan: Plan,
        decompositions: Decompositions | None,
        fuses: bool,
    ) -> None:
        self.reading = reading
        self.marked = marked
        self.plan = plan
        self.graph = plan.graph
        self.decompositions = decompositions
        self.new = fx.Graph()
        self.originals: dict[fx.Node, fx.Node] = {}
        self.gradients: dict[fx.Node, fx.Node] = {}
        self.contexts: dict[str, _Context] = {}
        self.at_hand: dict[str, fx.Node] = {}
        self.before_writing: dict[fx.Node, fx.Node] = {}
        self.written = written_inputs(reading)
        self.asked = self._asked()
        self.kept = {name: self._kept_results(name) for name in plan.results}
        silent = (each.name for each in self.graph.planned if not self.asked.get(each.name))
        self.schedule = schedule(plan, frozenset(silent))
        for each in self.schedule if fuses else ():
            if each.action in CAPTURING and each.exact:
                self.kept.setdefault(each.node, []).extend(self._small_results(each.node))
        self.fuses = fuses
        self.captured = self._captured() if fuses else self.asked
        self.held = {node for found in self.captured.values() for node in found}

    def lowered(self) -> Partition:
        reading = self.reading
        self._refuse_half()
        for node in reading.nodes:
            if node.op in ("placeholder", "get_attr"):
                self.originals[node] = self.new.node_copy(node)
        for node in reading.nodes:
            if node.op == "placeholder" and node in self.written:
                self._copy_before_writing(node)
        taken = self._taken()
        for node in reading.nodes:  # in order: a result of several tensors lives until the last is taken out
            is_operator = node.op == "call_function" and node not in reading.backward
            needed = node in reading.forward or node in taken or is_saved(node)
            if is_operator and needed and not writes(node):
                self.original(node)
        self.forward_results = self._distinct(
            [self._forward_result(each) for each in reading.forward_results]
        )
        for node in reading.nodes:
            if node not in reading.backward and writes(node):
                self.original(node)
        forward_nodes = set(self.new.nodes)
        for each in self.schedule:
            if each.action in REPLAYING:
                self._replay(each)
            elif each.action == "backward":
                self._backward_of(each.node)
        results = [self._backward_result(each) for each in reading.backward_results]
        output = self.new.output((*self.forward_results, *results))
        output.meta = dict(reading.output.meta)
        joint = fx.GraphModule(reading.joint, self.new)
        joint.graph.lint()
        used = self._used_by(results, forward_nodes)
        numbers = [node for node in used if not isinstance(value_of(node), Tensor)]
        saved = [node for node in used if isinstance(value_of(node), Tensor)]
        return Partition(joint, saved, numbers, self.schedule)

    # The forward, as it is

    def original(self, node: fx.Node) -> fx.Node:
        """The node of the new graph's forward that stands for one of the old one's."""
        found = self.originals.get(node)
        if found is None:
            first: Any = node.args[0] if node.target is MARK else None
            found = self._copied(node, self.original) if first is None else self.original(first)
            self.originals[node] = found
        return found

    def _copied(self, node: fx.Node, at: Callable[[fx.Node], fx.Node]) -> fx.Node:
        copied = self.new.node_copy(node, at)
        copied.meta = {
            key: each for key, each in node.meta.items() if key not in ("partitioner_tag", "seq_nr")
        }
        return copied

    def _copy_before_writing(self, node: fx.Node) -> None:
        """A copy of an input that the forward writes, for what reads it in the backward."""
        original = self.originals[node]
        copied = self.new.call_function(aten.clone.default, (original,))
        copied.meta = {"val": original.meta["val"]}
        self.before_writing[node] = copied

    def _forward_result(self, node: Any) -> Any:
        return self.original(node) if isinstance(node, fx.Node) else node

    def _distinct(self, results: list[Any]) -> list[Any]:
        """The forward's results, no tensor twice: autograd takes each result for a tensor of its own."""
        seen = set[Any]()
        for index, each in enumerate(results):
            if isinstance(each, fx.Node) and isinstance(value_of(each), Tensor):
                if each in seen or each.op == "placeholder":
                    results[index] = self.new.call_function(aten.alias.default, (each,))
                    results[index].meta = {"val": each.meta["val"]}
                seen.add(each)
        return results

    def _taken(self) -> set[fx.Node]:
        """What the backward takes from the forward as it is there."""
        reading, plan = self.reading, self.plan
        taken = {reading.made[name] for name in plan.stored if name in reading.made}
        for name, found in self.captured.items():
            if plan.decisions.get(name, "keep") == "keep":
                taken.update(node for node in found if node.target is not MARK)
        return taken.union(*self.kept.values())

    # What the backward asks for

    def _asked(self) -> dict[str, list[fx.Node]]:
        """For each node what its region has to give to the backward: results of operators, values it read."""
        reading = self.reading
        asked: dict[str, set[fx.Node]] = {}
        seen: set[fx.Node] = set()
        for node in reading.nodes:
            if node not in reading.backward or node.op != "call_function":
                continue
            pending = [each for each in read_by(node) if each not in reading.backward]
            while pending:
                each = pending.pop()
                if (
                    each in seen
                    or each.op != "call_function"
                    or not isinstance(value_of(each), (Tensor, tuple, list))
                ):
                    continue
                seen.add(each)
                if each in reading.of_parameters:
                    continue
                if each.target is not MARK and reading.is_backward_only(each):
                    pending += read_by(each)
                elif each in reading.region:
                    asked.setdefault(reading.region[each], set()).add(each)
                elif each.target is MARK:  # a value where it is made, read by no node: by the results alone
                    asked.setdefault(reading.mark(each).node, set()).add(each)
        for each in reading.backward_results:
            if isinstance(each, fx.Node) and each not in reading.backward and each in reading.region:
                asked.setdefault(reading.region[each], set()).add(each)
        return {name: sorted(found, key=reading.place.__getitem__) for name, found in asked.items()}

    def _kept_results(self, name: str) -> list[fx.Node]:
        """The operators of a node whose results the plan keeps, and the leaves of its term."""
        reading, wanted = self.reading, self.plan.results[name]
        found: list[fx.Node] = []
        count = 0
        for node in reading.nodes:
            if reading.region.get(node) != name or node in reading.backward:
                continue
            if is_heavy(node.target) and self._is_of_function(node, name):
                if count in wanted:
                    multiple = isinstance(value_of(node), (tuple, list))
                    found += [each for each in node.users if each in reading.region] if multiple else [node]
                count += 1
        if TERM in wanted:
            found += reading.terms.get(name, {}).values()
        return found

    def _captured(self) -> dict[str, list[fx.Node]]:
        """For a kept node what its forward is to hold, for any other what its replay is to capture.

        That is all that is asked for: a compiler joins work that one graph does twice, and holds its result.
        """
        reading, plan = self.reading, self.plan
        stored = {*plan.stored, *self.graph.inputs}
        free = {mark for (_, value), mark in reading.read.items() if value in stored}
        free.update(reading.made[name].args[0] for name in stored if name in reading.made)  # pyright: ignore
        return {
            name: captured(reading, asked, free) if plan.decisions.get(name, "keep") == "keep" else asked
            for name, asked in self.asked.items()
        }

    def _is_dropped(self, node: fx.Node) -> bool:
        """Whether a result is not held, but computed again where the backward reads it."""
        return self.fuses and node not in self.held and is_cheap(node)

    def _small_results(self, name: str) -> list[fx.Node]:
        """What a node computes on the way to what its backward asks for, and is small."""
        reading = self.reading
        found = ancestors(self.asked.get(name, ()), MARK)
        return [
            node
            for node in found
            if reading.region.get(node) == name and node not in reading.of_parameters and is_small(node)
        ]

    def _is_of_function(self, node: fx.Node, name: str) -> bool:
        """Whether an operator belongs to a node's function, and not to the law that joins its term."""
        terms = [each.args[0] for each in self.reading.terms.get(name, {}).values()]
        return not terms or node in ancestors(terms)

    def _refuse_half(self) -> None:
        for name, decision in self.plan.decisions.items():
            target = self.graph.node[name].target
            if decision != "invert" or target not in self.reading.made:
                continue
            refuse_half(
                name, target, value_of(self.reading.made[target]).dtype, self.graph.value[target].dtype
            )

    # Replays

    def _replay(self, step: Instruction) -> None:
        """Write an instruction into the backward."""
        if step.action == "invert_wiring":
            self._invert_wiring(step)
        else:
            self._evaluate(step)
        for name in step.frees:
            self.at_hand.pop(name, None)

    def _evaluate(self, step: Instruction) -> None:
        """A node's function once more; what it makes is at hand then, and what it captures in its context."""
        reading, node = self.reading, self.graph.node[step.node]
        context = _Context(step.node, is_replay=True)
        context.values = {name: self._value_at(name, step) for name in step.reads}
        captures = step.action in CAPTURING
        asked = self.asked.get(step.node, []) if captures else []
        if captures:
            self.contexts[step.node] = context
            for each in self.kept.get(step.node, ()):
                context.copies[each] = self.original(each)
        target = node.target
        takes_back = step.action in ("invert", "invert_again") and target is not None
        after: list[fx.Node] = []
        if takes_back:
            assert target is not None
            reads_target = reading.read.get((node.name, target))
            wanted = target in step.makes or reads_target in ancestors(asked, MARK)
            leads = ancestors(reading.terms.get(node.name, {}).values(), MARK)
            after = [each for each in asked if each not in leads]
            for each in asked:
                if each in leads:
                    self._at(each, context)
            if wanted:
                back = self._uncoupled(node.name, target, context)
                context.values[target] = back
                if target in step.makes:
                    self.at_hand[target] = back
        for each in after if takes_back else asked:
            self._at(each, context)
        if not takes_back:
            for name in step.makes:
                self.at_hand[name] = self._at(reading.made[name].args[0], context)  # pyright: ignore

    def _value_at(self, name: str, step: Instruction) -> fx.Node:
        """A value as it is at hand: rebuilt, stored, or the caller's."""
        found = self.at_hand.get(name)
        if found is not None:
            return found
        if name in self.plan.stored or name in self.graph.inputs:
            if name in self.reading.made:
                return self.original(self.reading.made[name])
            raise PlanError(
                f"value {name!r}, which {step.node!r} reads in its replay, is not in the compiled graph"
            )
        raise PlanError(f"value {name!r}, which {step.node!r} reads in its replay, is not at hand there")

    def _uncoupled(self, name: str, target: str, context: _Context) -> fx.Node:
        """A coupling's target from its output and its term."""
        reading, operation = self.reading, self.marked.operations[name]
        law = operation.law
        assert law is not None
        marks = [each for _, each in sorted(reading.terms.get(name, {}).items())]
        terms = [self._at(each, context) for each in marks]
        y = context.values[operation.makes[0]]
        tree = self._term_tree(operation, [each.meta["val"] for each in marks])
        owned = self._owned(operation, reading.made.get(operation.makes[0]))
        like = self._like(target, reading.made[operation.makes[0]])

        def undo(y: Tensor, *rest: Tensor) -> Tensor:
            terms_, others = rest[: len(marks)], rest[len(marks) :]
            with _replaced(self.marked.root, dict(zip(owned, others, strict=True))):
                return law.uncouple(self.marked.root, y, filled(tree, terms_))

        (found,) = self._inlined(undo, [y, *terms, *owned.values()])
        return self._laid_out(found, like)

    def _term_tree(self, operation: Operation, values: Sequence[Tensor]) -> Any:
        """A coupling's term, with any tensors in it."""
        if len(values) == 1 and not getattr(operation.law, "evaluates_modules", False):
            single = not hasattr(operation.law, "terms") or operation.law.terms == 1  # pyright: ignore
            if single:
                return values[0]
        if not values and not operation.expression.outputs:
            return None
        return self._run_on_fakes(operation)

    def _run_on_fakes(self, operation: Operation) -> Any:
        reading = self.reading
        given: list[Any] = []
        for name in operation.reads:
            node = reading.made.get(name)
            given.append(node.meta["val"] if node is not None else None)
        mode = next(each.fake_mode for each in given if isinstance(each, Tensor))  # pyright: ignore
        before, mode.allow_non_fake_inputs = mode.allow_non_fake_inputs, True
        try:
            with mode, torch.no_grad():
                return self.marked.functions[operation.node](*given)[0]
        finally:
            mode.allow_non_fake_inputs = before

    def _owned(self, operation: Operation, mark: fx.Node | None) -> dict[str, fx.Node]:
        """The parameters and buffers that undo an operation, by their paths."""
        paths = owned_by(operation, self.marked.root)
        if not paths:
            return {}
        assert mark is not None
        nodes: Any = mark.args[1]
        return {path: self._input(each) for path, each in zip(paths, nodes, strict=True)}

    def _input(self, node: fx.Node) -> fx.Node:
        return self.before_writing.get(node) or self.originals[node]

    def _invert_wiring(self, step: Instruction) -> None:
        operation = self.marked.operations[step.node]
        rearrangement, node = operation.rearrangement, self.graph.node[step.node]
        assert rearrangement is not None
        reading = self.reading
        given = [self._value_at(name, step) for name in operation.makes]
        shapes = [self._shape(name, reading.read.get((node.name, name))) for name in node.inputs]
        marks = [reading.made[name] for name in operation.makes if name in reading.made]
        owned = self._owned(operation, marks[0] if marks else None)
        count = len(given)

        def undo(*tensors: Tensor) -> tuple[Tensor, ...]:
            with _replaced(self.marked.root, dict(zip(owned, tensors[count:], strict=True))):
                return tuple(rearrangement.inverse(self.marked.root, list(tensors[:count]), shapes))

        found = self._inlined(undo, [*given, *owned.values()])
        for name, value in zip(node.inputs, found, strict=True):
            if name in step.makes:
                self.at_hand[name] = self._laid_out(value, self._like(name, None))

    def _shape(self, name: str, mark: fx.Node | None) -> torch.Size:
        mark = mark or self.reading.made.get(name)
        return value_of(mark).shape if mark is not None else torch.Size(self.graph.value[name].shape)

    def _like(self, name: str, other: fx.Node | None) -> Tensor:
        """What a value of the forward was like."""
        node = self.reading.made.get(name) or other
        assert node is not None
        return value_of(node)

    def _laid_out(self, node: fx.Node, like: Tensor) -> fx.Node:
        """A rebuilt value with the strides of the forward's, as operators choose their ways by these."""
        value = value_of(node)
        if value.stride() == like.stride() or value.shape != like.shape or not is_dense(like):
            return node

        order = sorted(range(like.dim()), key=lambda dim: like.stride()[dim], reverse=True)
        back = sorted(range(like.dim()), key=order.__getitem__)

        def lay_out(value: Tensor) -> Tensor:
            return value.permute(order).clone(memory_format=torch.contiguous_format).permute(back)

        (found,) = self._inlined(lay_out, [node])
        return found

    def _inlined(self, function: Callable[..., Any], given: Sequence[fx.Node]) -> list[fx.Node]:
        """A function's operators on nodes of the new graph, and its results."""
        values = [value_of(each) for each in given]
        mode: Any = next(each.fake_mode for each in values if hasattr(each, "fake_mode"))
        traced = _functional(function, values, mode, self.decompositions)
        copies: dict[fx.Node, fx.Node] = {}
        place = iter(given)
        results: Any = ()
        for node in traced.graph.nodes:
            if node.op == "placeholder":
                copies[node] = next(place)
            elif node.op == "output":
                results = node.args[0]
            elif node.op == "get_attr":
                raise PlanError(
                    "an inverse uses a tensor that is neither an input nor a parameter or buffer of its "
                    "module, which a compiled graph cannot take in. Register it as a buffer."
                )
            else:
                copies[node] = self._copied(node, copies.__getitem__)
        found = results if isinstance(results, (tuple, list)) else (results,)
        return [copies[each] for each in found]

    def _at(self, node: fx.Node, context: _Context | None) -> fx.Node:
        """A node of the old graph as a context has it: copied, where it is not there yet."""
        if node.op != "call_function":
            return self._input(node)
        if context is not None and node in context.copies:
            return context.copies[node]
        reading = self.reading
        if node.target is MARK:
            mark = reading.mark(node)
            if context is not None and context.is_replay and mark.kind == "read":
                if mark.value not in context.values:
                    raise PlanError(
                        f"{context.node!r} asks for {mark.value!r}, which its replay does not read"
                    )
                return context.values[mark.value]
            first: Any = node.args[0]
            found = self._at(first, context) if mark.kind == "term" else self.original(node)
        elif not isinstance(value_of(node), (Tensor, tuple, list)):
            return self.original(node)  # numbers are small
        elif is_saved(node):
            found = self.original(node)
        elif context is None or not context.is_replay:
            is_there = node in reading.forward and node in self.originals
            if is_there and node not in reading.of_parameters and not self._is_dropped(node):
                found = self.originals[node]
            elif node.target is operator.getitem:
                found = self.original(node)
            else:
                found = self._copied(node, lambda each: self._at(each, context))
        else:
            found = self._repeated(node, context)
        if context is not None:
            context.copies[node] = found
        return found

    def _repeated(self, node: fx.Node, context: _Context) -> fx.Node:
        """An operator of a node's forward once more, without what it would write."""
        if node.is_impure():
            raise PlanError(
                f"{context.node!r} runs {node.target}, which has side effects, so that it cannot be run "
                f"again in a compiled backward. Keep the node: decisions {{{context.node!r}: 'keep'}}."
            )
        if node.target is aten._native_batch_norm_legit_functional.default and node.args[5] is True:
            x, weight, bias, _, _, _, momentum, eps = node.args
            args = [None if each is None else self._at(each, context) for each in (x, weight, bias)]  # pyright: ignore
            found = self.new.call_function(
                aten._native_batch_norm_legit.no_stats, (*args, True, momentum, eps)
            )
            found.meta = {"val": tuple(node.meta["val"])[:3]}
            return found
        return self._copied(node, lambda each: self._at(each, context))

    # Backwards

    def _backward_of(self, name: str) -> None:
        """The operators of a node's backward, and what sums the gradients that it gives."""
        for node in self.reading.backward_of.get(name, ()):
            self._gradient(node)

    def _gradient(self, node: fx.Node) -> fx.Node:
        """An operator of the backward, after those that it reads from."""
        pending = [node]
        while pending:
            each = pending[-1]
            if each in self.gradients:
                pending.pop()
                continue
            if each.op == "placeholder":
                self.gradients[each] = self.originals[each]
                continue
            missing = [
                one
                for one in each.all_input_nodes
                if one in self.reading.backward and one not in self.gradients
            ]
            if missing:
                pending += missing
                continue
            pending.pop()
            if each.target is MARK_GRADIENT:
                self.gradients[each] = self.gradients[each.args[0]]  # pyright: ignore
            else:
                read = set(read_by(each))
                self.gradients[each] = self._copied(
                    each, lambda one, read=read: self._read_in_backward(one, read)
                )
                _forget_statistics(self.gradients[each])
            pending += [user for user in each.users if self._only_sums(user)]
        return self.gradients[node]

    def _only_sums(self, node: fx.Node) -> bool:
        """Whether an operator belongs to no node, and all that it reads is there: as gradients of one value.

        Their sum is made at once, so that no two of them wait.
        """
        reading = self.reading
        if node not in reading.backward or node in reading.backward_region or node in self.gradients:
            return False
        return node.op == "call_function" and all(each in self.gradients for each in node.all_input_nodes)

    def _read_in_backward(self, node: fx.Node, read: set[fx.Node]) -> fx.Node:
        if node in self.reading.backward:
            return self.gradients[node]
        if node not in read:  # it is not looked at
            return self.originals[node]
        return self._at(node, self._context_of(node))

    def _context_of(self, node: fx.Node) -> _Context | None:
        """The context of the region that a node is in, as far as it is known by now."""
        name = self.reading.region.get(node)
        if name is None:
            return None
        context = self.contexts.get(name)
        if context is None:
            replayed = self.plan.decisions.get(name, "keep") != "keep" and self.asked.get(name)
            if replayed and node not in self.reading.of_parameters:
                raise PlanError(f"the schedule has no replay of {name!r} before its backward")
            context = self.contexts[name] = _Context(name, is_replay=False)
        return context

    def _backward_result(self, node: Any) -> Any:
        if not isinstance(node, fx.Node):
            return node
        if node in self.reading.backward:
            return self._gradient(node)
        return self._at(node, self._context_of(node))

    def _used_by(self, results: Sequence[Any], forward: set[fx.Node]) -> list[fx.Node]:
        """What the backward takes from the forward, in its order."""
        seen: set[fx.Node] = set()
        used: set[fx.Node] = set()
        pending = [each for each in results if isinstance(each, fx.Node)]
        while pending:
            node = pending.pop()
            if node in seen:
                continue
            seen.add(node)
            if node in forward:
                if not (node.op == "placeholder" and is_tangent(node)) and node.op != "get_attr":
                    used.add(node)
            else:
                pending += node.all_input_nodes
        return [node for node in self.new.nodes if node in used]


def _forget_statistics(node: fx.Node) -> None:
    if node.target is aten.native_batch_norm_backward.default and node.args[7] is True:
        node.args = (*node.args[:3], None, None, *node.args[5:])


class _replaced:
    """A block in which a module has other tensors in the place of its own."""

    def __init__(self, root: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        self.slots: list[tuple[dict[str, Any], str, Any]] = []
        for path, tensor in tensors.items():
            owner, _, name = path.rpartition(".")
            module = root.get_submodule(owner)
            table: Any = module._parameters if name in module._parameters else module._buffers
            self.slots.append((table, name, tensor))

    def __enter__(self) -> None:
        self.slots = [(table, name, _swap(table, name, tensor)) for table, name, tensor in self.slots]

    def __exit__(self, *_: Any) -> None:
        for table, name, tensor in self.slots:
            table[name] = tensor


def _swap(table: dict[str, Any], name: str, tensor: Any) -> Any:
    before, table[name] = table[name], tensor
    return before


def _functional(
    function: Callable[..., Any], values: Sequence[Any], mode: Any, decompositions: Decompositions | None
) -> fx.GraphModule:
    """The operators that a function runs, none of which writes into a tensor."""

    def run(*given: Any) -> Any:
        with torch.no_grad():
            return function(*given)

    table = dict(decompositions or {})
    with mode:
        traced = make_fx(run, decomposition_table=table, tracing_mode="real")(*values)
        if any(writes(node) for node in traced.graph.nodes):
            pure = torch.func.functionalize(traced, remove="mutations")
            traced = make_fx(pure, decomposition_table=table, tracing_mode="real")(*values)
    return traced
