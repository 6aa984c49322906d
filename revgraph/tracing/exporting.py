"""Exporting: what a module's own code computes, read by `torch.export` where torch.fx cannot go.

fx runs code on proxies, which stand for tensors only where torch hands them on: a dynamic cache, a compiled
function or a change of the gradient mode stops it. `torch.export` runs the same code on tensors without
memory. Its graph becomes part of the trace:

- A module that the code calls with plain trees of tensors is one operator for export, `revgraph::call`, and
  in the trace a call of the module itself, which is then traced like any other. So its parameters, running
  statistics, random numbers and hooks stay its own. So does a call of an `autograd.Function`, whose backward
  export would lose. Other modules (given a cache, say, or called in another mode) are gone through, and
  their operators grouped under them.
- The remaining operators are calls of `operators.py`, in the modes that the code switched to.
- What export makes constants of is held to what it was: attributes that the code read, as in every trace;
  shapes, strides, dtypes and numbers by the forms of the inputs and of the model's own tensors (`forms.py`);
  the gradient mode. A question that these do not settle, such as whether a tensor requires a gradient, or
  one about the numbers in it, is refused, and the module stays one node.

Only the way that runs user code in Python (`strict=False`) is used: the other one reads attributes where
nothing sees it.
"""

from __future__ import annotations

import io
import logging
import math
import operator
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.autograd.function import Function
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

from revgraph.expressions import apply_function, leaves, map_leaves
from revgraph.isolation import HOOKS, MODULE_TABLES
from revgraph.tracing.ambient import modes
from revgraph.tracing.arguments import fields_of, is_structured, objects_in
from revgraph.tracing.in_place import InPlace
from revgraph.tracing.operators import ASSERTIONS, ATEN, Mode, call_of, mode_of
from revgraph.tracing.patches import is_proxy, passed_through
from revgraph.tracing.shadows import Untraceable, is_users

if TYPE_CHECKING:
    from revgraph.tracing.tracer import Tracer

PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.layout, slice)
# What code may ask of a tensor, or do with it, that a graph does not record and that neither forms nor the
# gradient mode settle.
ATTRIBUTES = ("requires_grad", "is_leaf", "grad_fn", "grad", "data", "_version")
METHODS = (
    *("register_hook", "register_post_accumulate_grad_hook", "retain_grad", "requires_grad_", "backward"),
    *("data_ptr", "untyped_storage", "storage", "share_memory_", "set_"),
)
UNSETTLED = {getattr(Tensor, name).__get__: name for name in ATTRIBUTES}
UNSETTLED |= {getattr(Tensor, name).__set__: name for name in ("requires_grad", "grad", "data")}
UNSETTLED |= {getattr(Tensor, name): name for name in METHODS}
UNSETTLED |= {torch.autograd.grad: "autograd.grad", torch.autograd.backward: "autograd.backward"}

LIBRARY = torch.library.Library("revgraph", "FRAGMENT")
LIBRARY.define("call(Tensor[] tensors, int number) -> Tensor[]")
CALL: Any = torch.ops.revgraph.call.default


@dataclass(frozen=True, slots=True)
class Place:
    """Stands for one of a call's tensors."""

    index: int


@dataclass(frozen=True, slots=True)
class Called:
    """A call that export does not look into: trees with a `Place` for each tensor that is given or made."""

    run: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any
    made: tuple[Tensor, ...]


class _Captures:
    """The calls of the export that is under way, for the operator's fake results."""

    current: list[Called]


@torch.library.register_fake("revgraph::call", lib=LIBRARY)
def _fake(tensors: list[Tensor], number: int) -> list[Tensor]:
    made = _Captures.current[number].made
    return [
        torch.empty_strided(each.size(), each.stride(), dtype=each.dtype, device=each.device) for each in made
    ]


def export_call(
    tracer: Tracer, module: nn.Module, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """What a call of a module gives, with its own code read by `torch.export`, as traced values.

    Raises:
        Untraceable: export cannot read it, or a graph would not do the same.
    """
    return _Export(tracer, module, path).run(args, kwargs)


@dataclass
class _Export:
    tracer: Tracer
    module: nn.Module
    path: str
    calls: list[Called] = field(default_factory=list)
    result: Any = None
    opened: list[tuple[nn.Module, Any]] = field(default_factory=list)
    is_asleep: bool = False
    own_tensors: Callable[[], AbstractContextManager[None]] = nullcontext

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.tracer.reads.gradient_mode(torch.is_grad_enabled())
        given, proxies = self._without_proxies((args, kwargs))
        program = self._exported(given, [proxy.shadow for proxy in proxies])
        self.tracer.check_random()
        for module, forward in self.opened:
            self.tracer.reads.open(module, forward)
        return _Replay(self, program).run(proxies)

    def _without_proxies(self, tree: Any) -> tuple[Any, list[Any]]:
        """The arguments with places for traced tensors, and example values of traced numbers."""
        proxies: dict[int, Any] = {}

        def place(leaf: Any) -> Any:
            if not is_proxy(leaf):
                return leaf
            if not issubclass(type(leaf.shadow), Tensor):
                return leaf.shadow
            proxies.setdefault(id(leaf), leaf)
            return Place(list(proxies).index(id(leaf)))

        return _mapped(place, self.tracer.unpacked(tree)), list(proxies.values())

    def _exported(self, given: Any, shadows: list[Tensor]) -> Any:
        with self.tracer.fake_mode or nullcontext():
            tensors = tuple(map(_blank, shadows))
        self.own_tensors = _tensors_kept(self.tracer.root)
        whole = _Whole(self.module, partial(self._called, given))
        _Captures.current = self.calls
        try:
            with self._capturing(), _silent():
                return torch.export.export(whole, tensors, strict=False)
        except Untraceable:
            raise
        except Exception as error:
            text = next((line for line in str(error).splitlines() if line.strip()), "")
            raise Untraceable(f"{type(error).__name__}: {text}") from error
        finally:
            _Captures.current = []

    def _called(self, given: Any, module: nn.Module, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Call the module within export; its result's tensors, of which the tree is noted."""
        args, kwargs = _mapped(lambda leaf: tensors[leaf.index] if type(leaf) is Place else leaf, given)
        before, own = _leaves((args, kwargs)), [(each, _attributes(each)) for each in self.module.modules()]
        seen = self.tracer.reads.mark()
        with _Questions(), _as_if_eager():
            result = module(*args, **kwargs)
        # Now, for export puts back what was assigned.
        self.tracer.reads.check_unchanged((seen[0], sys.maxsize, seen[2]))
        for each, attributes in own:
            _check_assigned(self.tracer.reads.paths[id(each)], attributes, _attributes(each))
        held = [vars(each) for each in self.tracer.root.modules()]
        if not objects_in(result).isdisjoint(objects_in((args, kwargs, held))):
            raise Untraceable("it returns an object that it was given, or that the model holds")
        if not _is_same(before, _leaves((args, kwargs))):
            raise Untraceable("it puts a result into an argument, where a graph cannot put it")
        made: list[Tensor] = []
        self.result = _mapped(partial(_placed, made), result)
        return tuple(made)

    @contextmanager
    def _capturing(self) -> Iterator[None]:
        """While export runs: calls of the part's modules and of Functions are captured, hooks do not run, and
        modules are what they are, not what a trace has put into them."""
        inside = [each for each in self.module.modules() if not isinstance(each, torch.jit.ScriptModule)]
        apply: Any = Function.__dict__["apply"]
        with ExitStack() as stack:
            for each in self.tracer.root.modules():
                training: Any = each.__dict__.get("training")
                if is_proxy(training):
                    stack.enter_context(patch.dict(each.__dict__, {"training": training.shadow}))
            hooked = {id(each) for each in inside if any(map(each.__dict__.get, HOOKS))}
            for each in inside:
                for name in HOOKS:
                    if each.__dict__.get(name):
                        stack.enter_context(patch.dict(each.__dict__, {name: type(each.__dict__[name])()}))
                if each is not self.module:
                    call = partial(self._module, each, each.forward, id(each) in hooked)
                    stack.enter_context(patch.dict(each.__dict__, {"forward": call}))
            for name, each in list(vars(math).items()):
                if hasattr(each, "__wrapped__"):  # by fx, and export asks for Python's own
                    stack.enter_context(patch.object(math, name, each.__wrapped__))
            stack.enter_context(patch.object(Function, "apply", classmethod(partial(self._function, apply))))
            stack.enter_context(self.tracer.exporting())
            yield

    def _module(
        self, module: nn.Module, forward: Callable[..., Any], hooked: bool, *args: Any, **kwargs: Any
    ) -> Any:
        """A call of a module of the part: a call in the graph, or gone through."""
        if self.is_asleep:
            return forward(*args, **kwargs)
        path = self.tracer.reads.paths[id(module)]
        if modes() == self.tracer.mode and _is_plain((args, kwargs)):
            made = self._capture("call_module", path, module, args, kwargs)
            if made is not None:
                return made[0]
        if hooked:
            raise Untraceable(f"{path} has hooks, and is given or gives more than tensors")
        self.opened.append((module, forward))
        return forward(*args, **kwargs)

    def _function(self, apply: Any, kind: type[Function], *args: Any, **kwargs: Any) -> Any:
        """A call of an `autograd.Function`, whose backward is its own."""
        if self.is_asleep or kind.__module__.startswith("torch."):
            passed = passed_through(kind, args, self.tracer.pass_checkpoint)
            return passed() if passed is not None else apply.__get__(None, kind)(*args, **kwargs)
        if (passed := passed_through(kind, args, self.tracer.pass_checkpoint)) is not None:
            return passed()
        if modes() != self.tracer.mode:
            raise Untraceable(f"the Function {kind.__name__} is called in another gradient mode or autocast")
        made = self._capture("call_function", apply_function, apply_function, (kind, *args), kwargs)
        if made is None:
            raise Untraceable(f"the Function {kind.__name__} gives more than tensors")
        return made[0]

    def _capture(
        self,
        op: str,
        target: Any,
        run: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> tuple[Any] | None:
        """The result of a call that export sees as one operator; None where it is more than tensors."""
        given: list[Tensor] = []
        places = _mapped(partial(_placed, given), (args, kwargs))
        self.is_asleep = True
        try:
            with _disable_current_modes(), torch._C.DisableTorchFunction():
                self.tracer.check_random()
                with self.tracer.fake_mode or nullcontext():
                    blank = [_blank(each) for each in given]
                examples = _mapped(lambda leaf: blank[leaf.index] if type(leaf) is Place else leaf, places)
                with self.own_tensors():
                    result = self.tracer.evaluate(op, target, *examples)
        finally:
            self.is_asleep = False
        made: list[Tensor] = []
        form = _mapped(partial(_placed, made), result)
        if not made or not _is_plain(result) or any(each.layout is not torch.strided for each in made):
            return None
        self.calls.append(Called(run, places[0], places[1], form, tuple(made)))
        results = CALL(given, len(self.calls) - 1)
        return (_mapped(lambda leaf: results[leaf.index] if type(leaf) is Place else leaf, form),)


class _Whole(nn.Module):
    """What is exported: a call of a module as a function of tensors alone."""

    def __init__(self, module: nn.Module, call: Callable[..., Any]) -> None:
        super().__init__()
        self.module = module
        self.call = call

    def forward(self, *tensors: Tensor) -> Any:
        return self.call(self.module, tensors)


class _Questions(TorchFunctionMode):
    """Refuses questions of the code about a tensor whose answer might be another one in a later call."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = UNSETTLED.get(func)
        if name is not None and _asked_by_user():
            raise Untraceable(f"it asks for {name} of a tensor, which is not known before it runs")
        return func(*args, **(kwargs or {}))


def _tensors_kept(root: nn.Module) -> Callable[[], AbstractContextManager[None]]:
    """Makes blocks in which modules have the parameters and buffers that they have now; export puts others in
    their place."""
    tables = [table for each in root.modules() for table in (each._parameters, each._buffers)]
    own = [dict(table) for table in tables]

    @contextmanager
    def put_back() -> Iterator[None]:
        with ExitStack() as stack:
            for table, content in zip(tables, own, strict=True):
                stack.enter_context(patch.dict(table, content))
            yield

    return put_back


@contextmanager
def _as_if_eager() -> Iterator[None]:
    """Code that asks whether it is being exported or compiled is told that it runs as usual."""
    flags: Any = torch.compiler
    with patch.multiple(flags, _is_compiling_flag=False, _is_exporting_flag=False):
        yield


def _asked_by_user() -> bool:
    """Whether what torch was called by is not torch itself: export asks tensors for these things, too."""
    frame = sys._getframe(2)
    while frame is not None and frame.f_globals.get("__name__", "") in ("torch._tensor", "torch.overrides"):
        frame = frame.f_back
    return frame is not None and is_users(frame.f_globals.get("__name__", ""))


@contextmanager
def _silent() -> Iterator[None]:
    """Keep torch from printing what it raises as well."""
    logs = [logging.getLogger(f"torch.{name}") for name in ("fx", "export", "_export", "_subclasses")]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)


class _Replay:
    """Records what an exported graph computes in the trace around it."""

    def __init__(self, export: _Export, program: Any) -> None:
        self.export = export
        self.tracer = export.tracer
        self.program = program

    def run(self, proxies: list[Any]) -> Any:
        graph = self.program.graph_module.graph
        inputs = (node for node in graph.nodes if node.op == "placeholder")
        given, env = iter(proxies), dict[fx.Node, Any]()
        for node, spec in zip(inputs, self.program.graph_signature.input_specs, strict=True):
            if spec.kind.name == "USER_INPUT":
                env[node] = next(given)
            elif node.users:
                env[node] = self._own(spec.target)
        made = self._graph(self.program.graph_module, env, ())
        return _mapped(lambda leaf: made[leaf.index] if type(leaf) is Place else leaf, self.export.result)

    def _own(self, target: str) -> Any:
        """A parameter or buffer of the part as a traced value; a constant."""
        constant = self.program.constants.get(target)
        name = ".".join(part for part in (self.export.path, target.removeprefix("module.")) if part)
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
        with self.tracer.placed(_place_of(node), _modules_of(node, self.export.path)):
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
        called = self.export.calls[number]
        args, kwargs = _mapped(
            lambda leaf: tensors[leaf.index] if type(leaf) is Place else leaf, (called.args, called.kwargs)
        )
        result = self.tracer.unpacked(called.run(*args, **kwargs))
        made: list[Any] = []

        def placed(leaf: Any) -> Any:
            if not is_proxy(leaf) and not isinstance(leaf, Tensor):
                return leaf
            made.append(leaf)
            return Place(len(made) - 1)

        form = _mapped(placed, result)
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
    found, shadow = node.meta.get("val"), proxy.shadow
    if isinstance(found, Tensor) and (
        not isinstance(shadow, Tensor) or (found.shape, found.dtype) != (shadow.shape, shadow.dtype)
    ):
        raise Untraceable(f"{node.target} gives another result in the trace than in torch.export")


def _blank(tensor: Tensor) -> Tensor:
    """A tensor of zeros of the same form, with memory of its own where any has."""
    if tensor.layout is not torch.strided:
        raise Untraceable("torch.export is given dense tensors only")
    made = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device=tensor.device)
    return made.zero_().requires_grad_(tensor.requires_grad)


def _attributes(module: nn.Module) -> dict[str, Any]:
    """A module's own attributes, parameters, buffers and submodules."""
    tables = (module._parameters, module._buffers, module._modules)
    own = {name: value for name, value in module.__dict__.items() if name not in MODULE_TABLES}
    return own | {name: value for table in tables for name, value in table.items()}


def _check_assigned(path: str, before: dict[str, Any], after: dict[str, Any]) -> None:
    names = before.keys() | after.keys()
    changed = sorted(name for name in names if before.get(name, names) is not after.get(name, names))
    if changed:
        place = ".".join(part for part in ("model", path, changed[0]) if part)
        raise Untraceable(f"it assigns {place}, which a graph would not")


def _placed(found: list[Tensor], leaf: Any) -> Any:
    """A place for a tensor, which is added to those found."""
    if not isinstance(leaf, Tensor):
        return leaf
    found.append(leaf)
    return Place(len(found) - 1)


def _is_plain(tree: Any) -> bool:
    return all(isinstance(leaf, (Tensor, *PLAIN)) for leaf in leaves(tree))


def _leaves(tree: Any) -> list[Any]:
    found: list[Any] = []
    _mapped(found.append, tree)
    return found


def _is_same(before: list[Any], after: list[Any]) -> bool:
    """Whether leaves are what they were: tensors and other things themselves, numbers by value."""
    return len(before) == len(after) and all(
        one is two or (type(one) is type(two) and isinstance(one, PLAIN) and one == two)
        for one, two in zip(before, after, strict=True)
    )


def _mapped(function: Callable[[Any], Any], tree: Any, known: dict[int, Any] | None = None) -> Any:
    """The tree with `function` applied to its leaves; user code's objects with tensors are made anew."""
    made: dict[int, Any] = {} if known is None else known

    def leaf(each: Any) -> Any:
        if is_proxy(each) or type(each) is Place or not _carries_tensors(each):
            return function(each)
        if id(each) not in made:
            copy: Any = object.__new__(type(each))
            made[id(each)] = copy, each  # which stays alive, and with it its identity
            for name, item in fields_of(each).items():
                object.__setattr__(copy, name, _mapped(function, item, made))
        return made[id(each)][0]

    return map_leaves(leaf, tree)


def _carries_tensors(value: Any) -> bool:
    """Whether a value is an object of user code with tensors in it."""
    if not is_structured(value):
        return False
    pending, seen = [value], {id(value)}
    while pending:
        for leaf in leaves(fields_of(pending.pop())):
            if is_proxy(leaf) or isinstance(leaf, (Tensor, Place)):
                return True
            if is_structured(leaf) and id(leaf) not in seen:
                seen.add(id(leaf))
                pending.append(leaf)
    return False
