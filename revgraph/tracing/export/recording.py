"""An exported graph recorded, call by call, in the trace around it."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from revgraph.expressions import map_leaves
from revgraph.tracing.export.operators import ASSERTIONS, ATEN, Mode, call_of, mode_of
from revgraph.tracing.export.tensor_places import Place, filled, mapped
from revgraph.tracing.in_place import InPlace
from revgraph.tracing.proxies import Untraceable, is_proxy

if TYPE_CHECKING:
    from revgraph.tracing.tracer import Tracer

LIBRARY = torch.library.Library("revgraph", "FRAGMENT")
LIBRARY.define("call(Tensor[] tensors, int number) -> Tensor[]")
CALL: Any = torch.ops.revgraph.call.default


@dataclass(frozen=True, slots=True)
class CapturedCall:
    """A call that export does not look into: trees with a `Place` for each tensor that is given or made."""

    run: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any
    made: tuple[Tensor, ...]


class GraphRecorder:
    """Records what an exported graph of the part at a path computes, with the calls that it leaves out."""

    def __init__(self, tracer: Tracer, path: str, calls: list[CapturedCall], program: Any) -> None:
        self.tracer = tracer
        self.path = path
        self.calls = calls
        self.program = program

    def run(self, proxies: list[Any]) -> list[Any]:
        """The traced values that the graph gives for these."""
        graph = self.program.graph_module.graph
        inputs = (node for node in graph.nodes if node.op == "placeholder")
        given, env = iter(proxies), dict[fx.Node, Any]()
        for node, spec in zip(inputs, self.program.graph_signature.input_specs, strict=True):
            if spec.kind.name == "USER_INPUT":
                env[node] = next(given)
            elif node.users:
                env[node] = self._own(spec.target)
        return self._graph(self.program.graph_module, env, ())

    def _own(self, target: str) -> Any:
        """A parameter or buffer of the part as a traced value; a constant."""
        constant = self.program.constants.get(target)
        name = ".".join(part for part in (self.path, target.removeprefix("module.")) if part)
        if target.startswith("module.") and name in self.tracer.own_names:
            return self.tracer.create_proxy("get_attr", name, (), {})
        if not isinstance(constant, Tensor) or constant.requires_grad:
            raise Untraceable(f"it reads {target}, which is no parameter, buffer or constant of the model")
        return constant

    def _graph(self, module: fx.GraphModule, env: dict[fx.Node, Any], around: tuple[Mode, ...]) -> list[Any]:
        """Record the calls of a graph; what it returns."""
        for node in module.graph.nodes:
            if node.op == "placeholder":
                continue
            args = map_leaves(lambda leaf: env[leaf] if isinstance(leaf, fx.Node) else leaf, node.args)
            if node.op == "output":
                return list(args[0])
            if node.op == "get_attr":
                env[node] = getattr(module, str(node.target))
            else:
                kwargs = map_leaves(
                    lambda leaf: env[leaf] if isinstance(leaf, fx.Node) else leaf, dict(node.kwargs)
                )
                env[node] = self._node(node, args, kwargs, env, around)
        return []

    def _node(
        self,
        node: fx.Node,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        env: dict[fx.Node, Any],
        around: tuple[Mode, ...],
    ) -> Any:
        if node.target is operator.getitem:
            return args[0][args[1]]
        if node.target is CALL:
            return self._call(*args)
        if not isinstance(node.target, OpOverload):
            mode, inner, operands = mode_of(node.target, args)
            if mode.kind is torch.set_grad_enabled and mode.args[0] and not torch.is_grad_enabled():
                raise Untraceable("the gradient mode is switched on inside a forward without gradients")
            places = [each for each in inner.graph.nodes if each.op == "placeholder"]
            return self._graph(inner, dict(zip(places, operands, strict=True)), (*around, mode))
        if node.target in ASSERTIONS:
            return None
        if args and not is_proxy(args[0]):
            args = (self._constant(node.target, args[0], env), *args[1:])
            if node.target in (ATEN.lift_fresh_copy.default, ATEN.detach_.default):
                return args[0]
        kind, target = call_of(node.target, args, kwargs, around)
        with self.tracer.placed(_place_of(node), _modules_of(node, self.path)):
            proxy = self.tracer.create_proxy(kind, target, args, kwargs)
        if type(target) is InPlace:
            proxy = args[0]  # which stands for the changed tensor now
        _check_alike(node, proxy)
        return proxy

    def _constant(self, target: OpOverload, first: Any, env: dict[fx.Node, Any]) -> Any:
        """The first argument of a call; a constant that it changes becomes a traced copy, everywhere."""
        writes = target._schema.is_mutable and target is not ATEN.detach_.default
        if not isinstance(first, Tensor) or not writes:
            return first
        copy = self.tracer.create_proxy("call_function", torch.clone, (first,), {})
        env.update({node: copy for node, value in env.items() if value is first})
        return copy

    def _call(self, tensors: list[Any], number: int) -> list[Any]:
        """Call what export did not look into, on traced values."""
        called = self.calls[number]
        args, kwargs = filled((called.args, called.kwargs), tensors)
        result = self.tracer.unpacked(called.run(*args, **kwargs))
        made: list[Any] = []

        def placed(leaf: Any) -> Any:
            if not is_proxy(leaf) and not isinstance(leaf, Tensor):
                return leaf
            made.append(leaf)
            return Place(len(made) - 1)

        form = mapped(placed, result)
        if repr(form) != repr(called.result):
            raise Untraceable("a module in it gives another structure when it is traced")
        return made


def _modules_of(node: fx.Node, path: str) -> list[str]:
    """The paths of the modules whose code makes a node, from the part inwards, without the part."""
    stack = (node.meta.get("nn_module_stack") or {}).values()
    names = [each[0].partition("@")[0].removeprefix("module") for each in stack]
    return [f"{path}{name}" if path else name[1:] for name in names if name]


def _place_of(node: fx.Node) -> str:
    """The line of the user's code that makes a node, as "file.py:12"."""
    lines = [line.strip() for line in (node.meta.get("stack_trace") or "").splitlines()]
    for line in reversed([line for line in lines if line.startswith('File "')]):
        file, _, rest = line.removeprefix('File "').partition('", line ')
        if not any(part in file.replace("\\", "/") for part in ("/torch/", "/revgraph/")):
            return f"{file.replace(chr(92), '/').rpartition('/')[2]}:{rest.partition(',')[0]}"
    return ""


def _check_alike(node: fx.Node, proxy: Any) -> None:
    """Hold the trace to what export found of a result."""
    found, fake = node.meta.get("val"), proxy.fake
    if isinstance(found, Tensor) and (
        not isinstance(fake, Tensor) or (found.shape, found.dtype) != (fake.shape, fake.dtype)
    ):
        raise Untraceable(f"{node.target} gives another result in the trace than in torch.export")
