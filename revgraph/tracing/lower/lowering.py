"""From a traced graph to revgraph's own: the Graph as data, and the Program that runs it."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from revgraph.couplings import Additive, Coupling
from revgraph.expressions import Expression, expression, fill, leaves, map_leaves
from revgraph.graph import Graph, Node, verify
from revgraph.joint_bijections import Bijection, Packing, flat
from revgraph.program import Arithmetic, BijectionLaw, CouplingLaw, Difference, Law, Named, Operation, Program
from revgraph.rearrangements import Rearrangement, WiringModule
from revgraph.storages import blank_like
from revgraph.tracing.arguments import signature_of
from revgraph.tracing.find_couplings.check_inverses import CouplingExample
from revgraph.tracing.find_couplings.half_steps import HalfStep
from revgraph.tracing.find_couplings.report import CouplingReport, why_no_half_steps
from revgraph.tracing.guards.guards import Forms
from revgraph.tracing.lower.expressions import (
    as_call,
    expression_of,
    expression_of_conditions,
    expression_of_function,
    expression_of_terms,
    text_of,
    verb,
)
from revgraph.tracing.lower.graph_builder import GraphBuilder
from revgraph.tracing.lower.packing import Packer, why_no_streams
from revgraph.tracing.proxies import holds_tensors
from revgraph.tracing.structures import STRUCTURE
from revgraph.tracing.tracer import Tracer
from revgraph.tracing.wiring.recognize import is_wiring, rearrangement
from revgraph.tracing.wiring.slices import cut, cut_up
from revgraph.wiring import Wiring

# What carries no tensors, though it may have attributes.
PLAIN = (Tensor, int, float, bool, str, type(None), torch.dtype, torch.device, torch.Size, slice)


def lower(
    tracer: Tracer,
    graph: fx.Graph,
    half_steps: Mapping[fx.Node, HalfStep],
    arguments: dict[str, Any],
    named: dict[str, Any],
    name: str,
    findings: CouplingReport,
) -> tuple[Program, list[CouplingExample]]:
    """The program of a traced graph whose half-steps are known, and the couplings in it to be tried."""
    modules = dict(tracer.root.named_modules(remove_duplicate=False))
    lowering = _Lowering(tracer, graph, half_steps, modules, GraphBuilder(tracer.where), findings)
    results = lowering.write()
    builder, written = lowering.builder, _written(tracer)
    plain = verify(Graph(tuple(builder.nodes), tuple(builder.values.values()), name))
    program = Program(
        graph=replace(plain, findings=findings.lines(plain, tracer)),
        operations=tuple(_with_writes(each, written) for each in builder.operations),
        arguments=arguments,
        results=results,
        numbers={key: thing for key, thing in named.items() if not isinstance(thing, Tensor)},
        differentiable=frozenset(
            key for key, thing in named.items() if isinstance(thing, Tensor) and thing.requires_grad
        ),
        signature=signature_of(type(tracer.root)),
        guards=tracer.reads.guards(
            lambda scope: scope is not None and scope.is_gone(),
            {str(node.target) for node in graph.nodes if node.op == "call_module"},
            tracer.opaque,
            Forms.of(named, modules.values()) if tracer.open_exports() else None,
        ),
    )
    return program, lowering.examples


def _written(tracer: Tracer) -> list[str]:
    """The paths of the parameters that the traced calls wrote into."""
    ids = {id(each) for each in tracer.evaluator.writes.written}
    if not ids:
        return []
    return [path for path, each in tracer.root.named_parameters(remove_duplicate=False) if id(each) in ids]


def _with_writes(operation: Operation, written: list[str]) -> Operation:
    """An operation with those of the written parameters that its modules have."""
    run, law = operation.expression, operation.law
    owners = [*run.module_paths, *([law.path] if isinstance(law, (BijectionLaw, CouplingLaw)) else [])]
    starts = tuple(f"{owner}." if owner else "" for owner in owners)
    writes = [path for path in written if path.startswith(starts) or path in run.attribute_paths]
    return replace(operation, writes=tuple(writes)) if writes else operation


@dataclass
class _Lowering:
    tracer: Tracer
    graph: fx.Graph
    half_steps: Mapping[fx.Node, HalfStep]
    modules: Mapping[str, nn.Module]
    builder: GraphBuilder
    findings: CouplingReport
    done: set[fx.Node] = field(default_factory=set)
    examples: list[CouplingExample] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.packer = Packer(self.tracer, self.builder)

    def write(self) -> Any:
        """Write every node down; returns the form of the results."""
        inside = {node for each in self.half_steps.values() for node in (*each.region, *each.spine)}
        inside |= self.tracer.copies
        # What a coupling gives besides may be read before it is added: that waits for the coupling.
        awaited = {node for each in self.half_steps.values() for node in each.extra_results}
        waiting: list[fx.Node] = []
        for node in self.graph.nodes:
            if node in inside or node.op in ("get_attr", "output"):
                continue
            if self._awaits(node, awaited):
                waiting.append(node)
                awaited.add(node)
                continue
            ready = [node]
            while ready:
                for each in ready:
                    self._write(each)
                    awaited.discard(each)
                    if half_step := self.half_steps.get(each):
                        awaited.difference_update(half_step.extra_results)
                waiting = [each for each in waiting if each in awaited]
                ready = [each for each in waiting if not self._awaits(each, awaited)][:1]
        (output,) = (node for node in self.graph.nodes if node.op == "output")
        names = [self._result(each) for each in output.all_input_nodes]
        places = {each: name for each, name in zip(output.all_input_nodes, names, strict=True)}
        given: Any = output.args[0]
        results = fill(self.tracer.results, [places[each] for each in given])
        self.packer.drop_unread(results)
        returned = dict.fromkeys(leaf.name for leaf in leaves(results) if isinstance(leaf, Named))
        values = self.builder.only_values(tuple(returned))
        self.builder.nodes.append(Node(self.builder.unique("output"), "output", values, ()))
        return results

    def _awaits(self, node: fx.Node, awaited: set[fx.Node]) -> bool:
        half_step = self.half_steps.get(node)
        reads = node.all_input_nodes if half_step is None else (half_step.target, *half_step.others)
        return not awaited.isdisjoint(reads)

    def _write(self, node: fx.Node) -> None:
        if node in self.half_steps:
            self._half_step(self.half_steps[node])
        elif node in self.done or node in self.builder.names:
            return
        elif node.op == "placeholder":
            self._input(node)
        else:
            self._call(node)

    def _input(self, node: fx.Node) -> None:
        name = self.builder.unique(str(node.target))
        self.builder.names[node] = name
        fake = self.tracer.fakes[node]
        if isinstance(fake, Tensor):
            self.builder.add_value(name, fake)
            self.builder.nodes.append(Node(name, "input", (), (name,), expression="given by the caller"))

    def _half_step(self, half_step: HalfStep) -> None:
        """An addition found in the code, with the region that is its function."""
        node, where = half_step.addition, self.tracer.where
        called = [str(each.target) for each in half_step.region if each.op == "call_module"]
        module = called[0] if len(called) == 1 else ""
        name = self.builder.unique(module or self._scoped(node, node.name))
        term = expression_of_terms(
            half_step.region, half_step.others, half_step.terms, half_step.extra_results, where
        )
        reads = tuple(self.builder.name_of(other) for other in half_step.others)
        target = self.builder.name_of(half_step.target)
        texts = [text_of(each, set(half_step.region), self.builder.name_of) for each in half_step.terms]
        text = ", ".join(texts)
        if "F" in texts:
            text = f"F({', '.join(self.builder.only_values(reads))})"
        self.builder.names[node] = self.builder.add_value(name, self.tracer.fakes[node])
        text = f"{target} (+) {text}"
        extra_results = tuple(
            self._make(each, f"{name}.{index}") for index, each in enumerate(half_step.extra_results, 1)
        )
        self.builder.add_coupling(
            name,
            target,
            term,
            reads,
            half_step.law,
            module,
            text,
            where[node],
            extra_results,
            spoken=_spoken(half_step.law),
        )
        if not isinstance(half_step.law, Arithmetic) or half_step.law.is_linear:
            self._mark_additive()

    def _coupling_module(self, node: fx.Node, module: Coupling) -> None:
        """The half-steps of one call of a coupling module."""
        path, law, where = str(node.target), CouplingLaw(str(node.target)), self.tracer.where
        streams = [arg for arg in node.args if isinstance(arg, fx.Node)]
        state = [self.builder.name_of(stream) for stream in streams]
        many = len(module.names) > 1
        for index, function in enumerate(module.names or ("",)):
            place = ".".join(part for part in (path, function) if part)
            others = [*state[:index], *state[index + 1 :]] if function else []
            if function:
                term, extras = expression_of_function(place, len(others), node, where)
            else:
                term, extras = expression((), 0, ()), ()
            reads = (*others, *(self.builder.name_of(extra) for extra in extras))
            name = self.builder.unique(place or type(module).__name__.lower())
            self.builder.add_value(name, self._output_like(streams[index]))
            text = f"{place}({', '.join(self.builder.only_values(reads))})"
            text = f"{state[index]} (+) {text}" if function else f"{place}({state[index]})"
            spoken = words_of(type(module).__name__)
            self.builder.add_coupling(
                name, state[index], term, reads, law, place, text, where[node], spoken=spoken
            )
            if type(module) is Additive:
                self._mark_additive()
            if not type(module).__module__.startswith("revgraph."):
                self._note_example(name, law, term, state[index], (*others, *extras))
            state[index] = name
        if not many:
            self.builder.names[node] = state[0]
        for user in node.users if many else ():
            if user.target is operator.getitem and isinstance(user.args[1], int):
                self.builder.names[user] = state[user.args[1]]

    def _is_step(self, node: fx.Node) -> bool:
        """Whether a call is a step of a network of bijections."""
        return node.op == "call_module" and str(node.target) in self.tracer.steps

    def _bijection(self, node: fx.Node, module: nn.Module) -> str:
        """A call of a module with an inverse, as a coupling of its streams; or why it cannot be one."""
        fakes, where = self.tracer.fakes, self.tracer.where
        given, _ = flat(node.args)
        conditions, result = dict(node.kwargs), fakes[node]
        items, taken = list(node.users), list[fx.Node]()
        if not isinstance(module, Bijection):  # it returns its streams in a tuple, with a log-determinant
            module, result = Bijection(module), tuple(result[0])
            if conditions.pop("rev", False) is not False:
                return "it is called the way back"
            conditions.pop("jac", None)
            taken, items = items, [each for item in items for each in item.users]
        call = map_leaves(
            lambda leaf: fakes.get(leaf, leaf) if isinstance(leaf, fx.Node) else leaf,
            (tuple(node.args), conditions),
        )
        form = self.tracer.evaluator.evaluate("call_function", module.form_for, call, {})
        streams, others = given[: form.streams], given[form.streams :]
        made = result if isinstance(result, tuple) else (result,)
        if reason := why_no_streams(streams, (others, conditions), fakes, made):
            return reason
        term, extras = expression((), 0, ()), ()
        if others or conditions:
            term, extras = expression_of_conditions(others, conditions, where.get(node, ""), where)
        path = str(node.target)
        before = Packing.of([fakes[stream] for stream in streams])
        after = Packing.of(made, before)
        names = tuple(self.builder.name_of(stream) for stream in streams)
        target = self.packer.pack(path, names, before, node)
        reads = tuple(self.builder.name_of(extra) for extra in extras)
        name = self.builder.unique(path or type(module).__name__.lower())
        like = fakes[streams[0]]
        self.builder.add_value(name, self.tracer.keep(like.new_empty((len(like), *before.size))))
        spoken = (target,) if self.packer.holds(names) else names
        text = f"{path}({', '.join((*spoken, *self.builder.only_values(reads)))})"
        law = BijectionLaw(path, form, before, after)
        kind = words_of(type(module.module).__name__)
        self.builder.add_coupling(name, target, term, reads, law, path, text, where[node], spoken=kind)
        self._note_example(name, law, term, target, extras)
        outputs = self.packer.unpack(name, after, node)
        self.done.update(taken)
        if isinstance(result, tuple):
            self.builder.names.update((item, outputs[cast("int", item.args[1])]) for item in items)
        else:
            self.builder.names[node] = outputs[0]
        return ""

    def _note_example(
        self, name: str, law: Law, term: Expression, target: str, reads: tuple[str | fx.Node, ...]
    ) -> None:
        """Note a coupling of the user's, to be tried."""
        values = self.builder.fakes
        given = [values[each] if isinstance(each, str) else self.tracer.fakes[each] for each in reads]
        where = self.builder.nodes[-1].where
        self.examples.append(CouplingExample(name, where, term, law, values[target], given))

    def _mark_additive(self) -> None:
        """Note of the coupling written last that joining its target and term saves nothing."""
        self.builder.nodes[-1] = replace(self.builder.nodes[-1], additive=True)

    def _output_like(self, stream: fx.Node) -> Tensor:
        """A tensor of its own for a half-step's output, which has its target's form."""
        return self.tracer.keep(blank_like(self.tracer.fakes[stream]))

    def _call(self, node: fx.Node) -> None:
        """A call that is no half-step: a boundary, a wiring, or one that only makes numbers."""
        module = self.modules[str(node.target)] if node.op == "call_module" else None
        if module is not None and (isinstance(module, (Bijection, Coupling)) or self._is_step(node)):
            if not isinstance(module, Coupling):
                reason = self._bijection(node, module)
            elif not (reason := why_no_half_steps(node, module, self.tracer.fakes)):
                self._coupling_module(node, module)
            if not reason:
                return
            path, kind, where = str(node.target), type(module).__name__, self.tracer.where.get(node, "")
            spoken = f"{path!r} ({kind}{f', {where}' if where else ''})" if path else f"itself ({kind})"
            self.findings.boundaries[spoken] = reason
        fakes = self.tracer.fakes
        rearranges = is_wiring(node, self.tracer.root)
        if node.target is cut:
            node.target = cut_up  # a graph relies on it that the parts cover the whole; a function F does not
        in_pieces = rearranges and isinstance(fakes.get(node), (tuple, list))
        whole = in_pieces and _is_taken_whole(node, fakes[node])
        if whole:
            self.tracer.hold_to_structure(node)
        outputs = _take_all(node, self.graph, fakes) if whole else _items_of(node, fakes)
        copies = [each for each in node.all_input_nodes if each in self.tracer.copies]
        given = [
            read
            for each in node.all_input_nodes
            for read in (each.all_input_nodes if each in copies else [each])
        ]
        inputs = tuple(dict.fromkeys(other for other in given if other.op != "get_attr"))
        chain = dict.fromkeys(step for output in outputs for step in _path_to(output, node))
        self.done.update(chain)
        run = expression_of((*copies, node, *chain), inputs, outputs, self.tracer.where)
        reads = tuple(self.builder.name_of(other) for other in inputs)
        if module is None and not any(isinstance(fakes.get(output), Tensor) for output in outputs):
            makes = tuple(self.builder.add_plain(output) for output in outputs)
            self.builder.operations.append(Operation("", run, reads, makes))
            return
        path = str(node.target) if module is not None else ""
        spoken = type(module).__name__.lower() if module is not None else verb(node)
        name = self.builder.unique(path or self._scoped(node, spoken))
        makes = tuple(
            self._make(output, name if len(outputs) == 1 else f"{name}.{index}")
            for index, output in enumerate(outputs)
        )
        values, made = self.builder.only_values(reads), self.builder.only_values(makes)
        # A wiring that reads a value twice is none: it would have to give it back twice.
        undo: Rearrangement | None = None
        if isinstance(module, Wiring) and len(node.args) == len(set(node.args)):
            undo = WiringModule(path)
        if undo is None and values and made and (whole or not in_pieces):
            undo = rearrangement(node, fakes, self.modules, self.tracer.buffers)
        kind = "wiring" if undo is not None else "boundary"
        text = f"{path or verb(node)}({', '.join(values)})"
        where = self.tracer.where.get(node, "")
        self.builder.nodes.append(Node(name, kind, values, made, path, None, text, where))
        self.builder.operations.append(Operation(name, run, reads, makes, rearrangement=undo))

    def _make(self, output: fx.Node, name: str) -> str:
        fake = self.tracer.fakes.get(output)
        if not isinstance(fake, Tensor):
            return self.builder.add_plain(output)
        self.builder.names[output] = self.builder.add_value(name, fake)
        return name

    def _result(self, leaf: fx.Node) -> Named:
        if leaf.op == "get_attr" and leaf not in self.builder.names:  # a parameter returned as it is
            run = expression((as_call(leaf, {leaf: 0}, self.tracer.where),), 0, (0,))
            self.builder.operations.append(Operation("", run, (), (self.builder.add_plain(leaf),)))
        return Named(self.builder.name_of(leaf))

    def _scoped(self, node: fx.Node, name: str) -> str:
        scope = self.tracer.scope_of.get(node, "")
        return f"{scope}.{name}" if scope else name


def _spoken(law: Law) -> str:
    """What the arithmetic of a half-step that was found in the code is called."""
    if not isinstance(law, Arithmetic):
        return "difference" if isinstance(law, Difference) else "additive"
    sums = ("add", "sub", "addcmul", "addcdiv")
    return "additive" if all(step.kind in sums for step in law.steps) else "affine"


def words_of(kind: str) -> str:
    """A class's name in words.

    >>> words_of("Affine"), words_of("ActNorm"), words_of("InvertibleConv1x1")
    ('affine', 'act norm', 'invertible conv1x1')
    """
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", kind).strip("_").lower()


def _items_of(node: fx.Node, fakes: Mapping[fx.Node, Any]) -> tuple[fx.Node, ...]:
    """The node itself, or the items that are read of it where it is a container of tensors."""
    if not _is_container(fakes.get(node)):
        return (node,)
    taken = [user for user in node.users if user.target is operator.getitem or user.target is getattr]
    found = [item for user in taken for item in _items_of(user, fakes)]
    return tuple(dict.fromkeys(found)) or (node,)


def _take_all(node: fx.Node, graph: fx.Graph, fakes: MutableMapping[fx.Node, Any]) -> tuple[fx.Node, ...]:
    """Every item of a tuple of tensors in its order; those that nothing reads are added to the graph."""
    fake = fakes[node]
    taken = {cast("int", user.args[1]): user for user in node.users if user.target is operator.getitem}
    for index in range(len(fake)):
        if index not in taken:
            with graph.inserting_after(node):
                taken[index] = graph.call_function(operator.getitem, (node, index))
            fakes[taken[index]] = fake[index]
    return tuple(taken[index] for index in range(len(fake)))


def _is_taken_whole(node: fx.Node, fake: Sequence[Any]) -> bool:
    """Whether the code goes by all the pieces that a tensor falls into, or asks for so many.

    If it reads some of them by their places, there may be more of them for other inputs.
    """
    taken = {cast("int", user.args[1]) for user in node.users if user.target is operator.getitem}
    asked = (*node.args[1:2], *node.kwargs.values())
    return STRUCTURE in node.meta or len(taken) == len(fake) or node.op == "call_module" or len(fake) in asked


def _path_to(item: fx.Node, node: fx.Node) -> list[fx.Node]:
    """The calls that lead from a node to an item of it."""
    path: list[fx.Node] = []
    while item is not node:
        path.insert(0, item)
        item = cast("fx.Node", item.args[0])
    return path


def _is_container(fake: Any) -> bool:
    """Whether a result is a container of tensors, or an object that may carry some."""
    return holds_tensors(fake) or not (isinstance(fake, PLAIN) or not hasattr(fake, "__dict__"))
