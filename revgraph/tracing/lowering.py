"""From a traced graph to revgraph's own: the Graph as data, and the Program that runs it."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from revgraph.couplings import Coupling
from revgraph.errors import GraphError
from revgraph.expressions import Call, Expression, Register, expression, map_leaves
from revgraph.graph import Graph, Node, Value, verify
from revgraph.program import CouplingLaw, Law, Named, Operation, Program, Rearrangement, WiringModule
from revgraph.tracing.arguments import signature_of
from revgraph.tracing.finding import HalfStep
from revgraph.tracing.shadows import holds_tensors
from revgraph.tracing.tracer import Tracer
from revgraph.tracing.wirings import rearrangement
from revgraph.wiring import Wiring


def lower(
    tracer: Tracer,
    graph: fx.Graph,
    half_steps: Mapping[fx.Node, HalfStep],
    arguments: dict[str, Any],
    named: dict[str, Any],
    name: str,
) -> Program:
    """The program of a traced graph whose half-steps are known."""
    modules = dict(tracer.root.named_modules(remove_duplicate=False))
    return _Lowering(tracer, graph, half_steps, modules).program(arguments, named, name)


@dataclass
class _Lowering:
    tracer: Tracer
    graph: fx.Graph
    half_steps: Mapping[fx.Node, HalfStep]
    modules: Mapping[str, nn.Module]
    nodes: list[Node] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)
    values: dict[str, Value] = field(default_factory=dict)
    names: dict[fx.Node, str] = field(default_factory=dict)
    taken: Counter[str] = field(default_factory=Counter)
    storages: dict[int, str] = field(default_factory=dict)

    def program(self, arguments: dict[str, Any], named: dict[str, Any], name: str) -> Program:
        inside = {node for half_step in self.half_steps.values() for node in half_step.region}
        for node in self.graph.nodes:
            if node in self.half_steps:
                self._half_step(self.half_steps[node])
            elif node in inside or node in self.names or node.op == "get_attr":
                continue
            elif node.op == "placeholder":
                self._input(node)
            elif node.op == "output":
                results = map_leaves(self._result, node.args[0])
            else:
                self._call(node)
        read = dict.fromkeys(
            leaf.name
            for leaf in _leaves(results)
            if isinstance(leaf, Named) and leaf.name in self.values
        )
        self.nodes.append(Node(self._unique("output"), "output", tuple(read), ()))
        data = Graph(tuple(self.nodes), tuple(self.values.values()), name)
        return Program(
            graph=verify(data),
            operations=tuple(self.operations),
            arguments=arguments,
            results=results,
            numbers={key: thing for key, thing in named.items() if not isinstance(thing, Tensor)},
            differentiable=frozenset(
                key for key, thing in named.items() if isinstance(thing, Tensor) and thing.requires_grad
            ),
            signature=signature_of(type(self.tracer.root)),
        )

    def _input(self, node: fx.Node) -> None:
        label = self._unique(str(node.target))
        if not isinstance(self.tracer.shadows[node], Tensor):
            self.names[node] = label
            return
        name = self._value(node, label)
        self.nodes.append(Node(name, "input", (), (name,), expression="given by the caller"))

    def _half_step(self, half_step: HalfStep) -> None:
        node = half_step.addition
        modules = [str(each.target) for each in half_step.region if each.op == "call_module"]
        base = modules[0] if len(modules) == 1 else _join(self.tracer.scope_of.get(node, ""), node.name)
        others = half_step.others
        term, reads = self._expression(half_step.region, others, (half_step.term,))
        self._coupling(
            node, self._unique(base), self._name(half_step.target), term, reads, half_step.law,
            module=modules[0] if len(modules) == 1 else "",
            function=modules[0] if len(modules) == 1 else " ".join(_verb(each) for each in half_step.region),
        )  # fmt: skip

    def _coupling(
        self,
        node: fx.Node | None,
        name: str,
        target: str,
        term: Expression,
        reads: tuple[str, ...],
        law: Law,
        *,
        module: str,
        function: str,
        like: fx.Node | None = None,
    ) -> str:
        if node is not None:
            self._value(node, name)
        else:
            before = self.values[target]
            self.values[name] = Value(name, before.shape, before.dtype, _bytes(before), name)
        values = tuple(read for read in reads if read in self.values)
        self.nodes.append(
            Node(
                name=name,
                kind="coupling",
                inputs=(target, *values),
                outputs=(name,),
                module=module,
                target=target,
                expression=f"{target} (+) {function or 'F'}({', '.join(values)})",
                where=self.tracer.where.get(node or like, "") if (node or like) is not None else "",
            )
        )
        self.operations.append(Operation(name, term, reads, (name,), law, target))
        return name

    def _call(self, node: fx.Node) -> None:
        module = self.modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, Coupling) and len(set(node.args)) == len(node.args):
            self._coupling_module(node, module)
            return
        shadow = self.tracer.shadows.get(node)
        outputs = self._outputs(node, shadow)
        others = tuple(dict.fromkeys(other for other in node.all_input_nodes if other.op != "get_attr"))
        for other in others:
            self._name(other)
        items = self._item_chain(node, outputs)
        run, reads = self._expression((node, *items), others, outputs)
        tensors = [out for out in outputs if isinstance(self.tracer.shadows.get(out), Tensor)]
        if not tensors and not (module is not None):
            for out in outputs:
                self.names[out] = self._unique(f"#{out.name}")
            self.operations.append(Operation("", run, reads, tuple(self.names[out] for out in outputs)))
            return
        path = str(node.target) if module is not None else ""
        base = self._unique(path or _join(self.tracer.scope_of.get(node, ""), _verb(node)))
        makes = []
        for index, out in enumerate(outputs):
            label = base if len(outputs) == 1 else f"{base}.{index}"
            makes.append(self._value(out, label) if out in tensors else self._plain(out))
        undo: Rearrangement | None
        if isinstance(module, Wiring):
            undo = WiringModule(path)
        else:
            undo = rearrangement(node, self.tracer.shadows, self.modules)
        values = tuple(read for read in reads if read in self.values)
        if undo is not None and (len(values) != len(set(values)) or not values or not tensors):
            undo = None
        self.nodes.append(
            Node(
                name=base,
                kind="wiring" if undo is not None else "boundary",
                inputs=values,
                outputs=tuple(make for make in makes if make in self.values),
                module=path,
                expression=f"{path or _verb(node)}({', '.join(values)})",
                where=self.tracer.where.get(node, ""),
            )
        )
        self.operations.append(Operation(base, run, reads, tuple(makes), rearrangement=undo))

    def _coupling_module(self, node: fx.Node, module: Coupling) -> None:
        """The half-steps of one call of a coupling module."""
        path = str(node.target)
        law = CouplingLaw(path)
        streams = [self._name(arg) for arg in node.args if isinstance(arg, fx.Node)]
        if len(streams) != len(node.args):
            raise GraphError(f"coupling {path!r} is called with arguments that are not tensors")
        if len(module.names) <= 1:
            target, *others = streams
            functions = [(name, 0, others) for name in module.names] or [("", 0, [])]
        else:
            others = []
            functions = [(name, index, None) for index, name in enumerate(module.names)]
        state = list(streams)
        for function, index, given in functions:
            read = state[:index] + state[index + 1 :] if given is None else given
            term, reads = self._function(_join(path, function) if function else "", read, node)
            state[index] = self._coupling(
                None, self._unique(_join(path, function) if function else path), state[index], term, reads, law,
                module=_join(path, function) if function else path, function=_join(path, function), like=node,
            )  # fmt: skip
        if len(module.names) <= 1:
            self.names[node] = state[0]
            return
        for user in list(node.users):
            if user.target is operator.getitem and isinstance(user.args[1], int):
                self.names[user] = state[user.args[1]]

    def _function(self, path: str, reads: list[str], node: fx.Node) -> tuple[Expression, tuple[str, ...]]:
        """The term of a half-step of a coupling module: its function called on the other streams."""
        if not path:
            return expression((), 0, ()), ()
        outside = [other for value in node.kwargs.values() for other in _fx_nodes(value)]
        inputs: list[Any] = [*reads, *(other for other in outside if other.op != "get_attr")]
        places = {item: index for index, item in enumerate(dict.fromkeys(inputs))}
        calls: list[Call] = []
        for other in outside:
            if other.op == "get_attr" and other not in places:
                places[other] = len(places)
                calls.append(self._as_call(other, {}, places[other]))
        kwargs = {
            key: map_leaves(lambda leaf: Register(places[leaf]) if isinstance(leaf, fx.Node) else leaf, value)
            for key, value in node.kwargs.items()
        }
        args = tuple(Register(places[read]) for read in reads)
        result = len(places)
        calls.append(Call("module", path, args, kwargs, result, (), self.tracer.where.get(node, "")))
        count = len(dict.fromkeys(inputs))
        names = tuple(item if isinstance(item, str) else self._name(item) for item in dict.fromkeys(inputs))
        return expression(calls, count, (result,)), names

    def _outputs(self, node: fx.Node, shadow: Any) -> tuple[fx.Node, ...]:
        """The node itself, or the items taken of it where it is a container of tensors."""
        if isinstance(shadow, Tensor) or not (holds_tensors(shadow) or _is_opaque(shadow)):
            return (node,)
        found: list[fx.Node] = []
        for user in node.users:
            if user.target is operator.getitem or user.target is getattr:
                found += self._outputs(user, self.tracer.shadows.get(user))
        complete = isinstance(shadow, (tuple, list)) and (
            node.op != "call_module" or isinstance(self.modules[str(node.target)], Wiring)
        )
        taken = {out.args[1] for out in found}
        if complete and taken != set(range(len(shadow))):
            for index in range(len(shadow)):
                if index not in taken:
                    with self.graph.inserting_after(node):
                        item = self.graph.call_function(operator.getitem, (node, index))
                    self.tracer.shadows[item] = shadow[index]
                    found.append(item)
        if complete:
            found.sort(key=lambda out: out.args[1])  # pyright: ignore[reportArgumentType]
        return tuple(dict.fromkeys(found)) or (node,)

    def _item_chain(self, node: fx.Node, outputs: tuple[fx.Node, ...]) -> tuple[fx.Node, ...]:
        chain: dict[fx.Node, None] = {}
        for out in outputs:
            path: list[fx.Node] = []
            while out is not node:
                path.append(out)
                out = out.args[0]  # pyright: ignore[reportAssignmentType]
            chain.update(dict.fromkeys(reversed(path)))
        return tuple(chain)

    def _expression(
        self, region: Iterable[fx.Node], others: tuple[fx.Node, ...], outputs: tuple[fx.Node, ...]
    ) -> tuple[Expression, tuple[str, ...]]:
        places = {other: index for index, other in enumerate(others)}
        calls: list[Call] = []
        for node in (*region, *(out for out in outputs if out.op == "get_attr")):
            for other in node.all_input_nodes:
                if other.op == "get_attr" and other not in places:
                    places[other] = len(places)
                    calls.append(self._as_call(other, places, places[other]))
            if node not in places:
                places[node] = len(places)
                calls.append(self._as_call(node, places, places[node]))
        results = tuple(places[out] for out in outputs)
        return expression(calls, len(others), results), tuple(self._name(other) for other in others)

    def _as_call(self, node: fx.Node, places: Mapping[fx.Node, int], result: int) -> Call:
        register = lambda leaf: Register(places[leaf]) if isinstance(leaf, fx.Node) else leaf  # noqa: E731
        kind: Any = {
            "call_module": "module", "call_function": "function", "call_method": "method", "get_attr": "attribute"
        }[node.op]  # fmt: skip
        args, kwargs = map_leaves(register, tuple(node.args)), map_leaves(register, dict(node.kwargs))
        return Call(kind, node.target, args, kwargs, result, (), self.tracer.where.get(node, ""))

    def _result(self, leaf: Any) -> Any:
        if not isinstance(leaf, fx.Node):
            return leaf
        if leaf.op == "get_attr":
            return self._returned_attribute(leaf)
        return Named(self._name(leaf))

    def _returned_attribute(self, node: fx.Node) -> Named:
        """A parameter or buffer that the model returns as it is."""
        if node not in self.names:
            run = expression((self._as_call(node, {}, 0),), 0, (0,))
            self.names[node] = self._unique(f"#{node.name}")
            self.operations.append(Operation("", run, (), (self.names[node],)))
        return Named(self.names[node])

    def _name(self, node: fx.Node) -> str:
        if node not in self.names:
            raise GraphError(f"traced value {node.name!r} is read in a way that the graph cannot express")
        return self.names[node]

    def _plain(self, node: fx.Node) -> str:
        self.names[node] = self._unique(f"#{node.name}")
        return self.names[node]

    def _value(self, node: fx.Node, name: str) -> str:
        shadow: Tensor = self.tracer.shadows[node]
        storage = shadow.untyped_storage()
        owner = self.storages.setdefault(storage._cdata, name)
        self.values[name] = Value(
            name, tuple(int(size) for size in shadow.shape), str(shadow.dtype).removeprefix("torch."),
            int(storage.nbytes()), owner,
        )  # fmt: skip
        self.names[node] = name
        return name

    def _unique(self, base: str) -> str:
        self.taken[base] += 1
        if self.taken[base] == 1:
            return base
        return self._unique(f"{base}_{self.taken[base]}")


def _bytes(value: Value) -> int:
    size = torch.empty(0, dtype=getattr(torch, value.dtype)).element_size()
    return torch.Size(value.shape).numel() * size


def _is_opaque(shadow: Any) -> bool:
    """Whether a result is an object that may carry tensors (a data class, a model's output)."""
    return not isinstance(
        shadow, (Tensor, int, float, bool, str, type(None), torch.dtype, torch.device, torch.Size, slice)
    ) and hasattr(shadow, "__dict__")


def _verb(node: fx.Node) -> str:
    if isinstance(node.target, str):
        return node.target
    return getattr(node.target, "__name__", str(node.target)).strip("_")


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _fx_nodes(tree: Any) -> list[fx.Node]:
    return [leaf for leaf in _leaves(tree) if isinstance(leaf, fx.Node)]


def _leaves(tree: Any) -> list[Any]:
    found: list[Any] = []
    map_leaves(found.append, tree)
    return found
