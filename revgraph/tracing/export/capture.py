"""What a module's own code computes, read by `torch.export` where torch.fx cannot go.

fx runs code on proxies, which stand for tensors only where torch hands them on: a dynamic cache, a compiled
function or a change of the gradient mode stops it. `torch.export` runs the same code on tensors without
memory. Its graph becomes part of the trace:

- A module that the code calls with plain trees of tensors is one operator for export, `revgraph::call`, and
  in the trace a call of the module itself, which is then traced like any other. So its parameters, running
  statistics, random numbers and hooks stay its own. So does a call of an `autograd.Function`, whose backward
  export would lose. Other modules (given a cache, say, called in another mode, or with other parameters than
  their own) are gone through, and their operators grouped under them.
- The remaining operators are calls of `operators.py`, in the modes that the code switched to.
- What export makes constants of is held to what it was: attributes that the code read, as in every trace;
  shapes, strides, dtypes and numbers by the forms of the inputs and of the model's own tensors
  (`guards.Forms`); the gradient mode. A question that these do not settle, such as whether a tensor requires
  a gradient, or one about the numbers in it, is refused, and the module stays one node.

Only the way that runs user code in Python (`strict=False`) is used: the other one reads attributes where
nothing sees it.
"""

from __future__ import annotations

import io
import logging
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.autograd.function import Function
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

from revgraph.expressions import apply_function
from revgraph.isolation import TABLES, edits_undone
from revgraph.tracing.arguments import objects_in
from revgraph.tracing.export.recording import CALL, LIBRARY, CapturedCall, GraphRecorder
from revgraph.tracing.export.tensor_places import Place, all_leaves, filled, is_plain, is_same, mapped, placed
from revgraph.tracing.guards.attribute_reads import attributes_of
from revgraph.tracing.guards.substitutions import OwnState
from revgraph.tracing.modes import modes
from revgraph.tracing.patches import passed_through
from revgraph.tracing.proxies import Untraceable, is_proxy
from revgraph.tracing.user_code import is_users

if TYPE_CHECKING:
    from revgraph.tracing.tracer import Tracer

HOOKS = tuple(name for name in TABLES if "hook" in name)
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


class _Captures:
    """The calls of the export that is under way, for the operator's fake results."""

    current: list[CapturedCall]


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
    return _ExportedCall(tracer, module, path).run(args, kwargs)


@dataclass
class _ExportedCall:
    tracer: Tracer
    module: nn.Module
    path: str
    calls: list[CapturedCall] = field(default_factory=list)
    result: Any = None
    opened: list[tuple[nn.Module, Any]] = field(default_factory=list)
    is_paused: bool = False
    own_tensors: Callable[[], AbstractContextManager[None]] = nullcontext
    own_state: OwnState = field(default_factory=lambda: OwnState(()))

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.tracer.reads.gradient_mode(torch.is_grad_enabled())
        given, proxies = self._without_proxies((args, kwargs))
        program = self._exported(given, [proxy.fake for proxy in proxies])
        self.tracer.random.check()
        for module, forward in self.opened:
            self.tracer.reads.open(module, forward)
        return filled(self.result, GraphRecorder(self.tracer, self.path, self.calls, program).run(proxies))

    def _without_proxies(self, tree: Any) -> tuple[Any, list[Any]]:
        """The arguments with places for traced tensors, and example values of traced numbers."""
        proxies: dict[int, Any] = {}

        def place(leaf: Any) -> Any:
            if not is_proxy(leaf):
                return leaf
            if not issubclass(type(leaf.fake), Tensor):
                return leaf.fake
            proxies.setdefault(id(leaf), leaf)
            return Place(list(proxies).index(id(leaf)))

        return mapped(place, self.tracer.unpacked(tree)), list(proxies.values())

    def _exported(self, given: Any, fakes: list[Tensor]) -> Any:
        with self.tracer.fake_mode or nullcontext():
            tensors = tuple(map(_blank, fakes))
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
        args, kwargs = filled(given, tensors)
        before, own = (
            all_leaves((args, kwargs)),
            [(each, attributes_of(each)) for each in self.module.modules()],
        )
        seen = self.tracer.reads.mark()
        self.own_state = OwnState(self.tracer.root.modules())
        with _Questions(), _as_if_eager():
            result = module(*args, **kwargs)
        # Now, for export puts back what was assigned.
        self.tracer.reads.check_unchanged((seen[0], sys.maxsize, seen[2]))
        for each, attributes in own:
            _check_assigned(self.tracer.reads.paths[id(each)], attributes, attributes_of(each))
        held = [vars(each) for each in self.tracer.root.modules()]
        if not objects_in(result).isdisjoint(objects_in((args, kwargs, held))):
            raise Untraceable("it returns an object that it was given, or that the model holds")
        if not is_same(before, all_leaves((args, kwargs))):
            raise Untraceable("it puts a result into an argument, where a graph cannot put it")
        made: list[Tensor] = []
        self.result = mapped(partial(placed, made), result)
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
                    stack.enter_context(patch.dict(each.__dict__, {"training": training.fake}))
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
        if self.is_paused:
            return forward(*args, **kwargs)
        path = self.tracer.reads.paths[id(module)]
        is_own = not self.own_state.substituted(module, path)
        if is_own and modes() == self.tracer.mode and is_plain((args, kwargs)):
            made = self._capture("call_module", path, module, args, kwargs)
            self.own_state.renew(module)
            if made is not None:
                return made[0]
        if hooked:
            raise Untraceable(f"{path} has hooks, and is given or gives more than tensors")
        self.opened.append((module, forward))
        return forward(*args, **kwargs)

    def _function(self, apply: Any, kind: type[Function], *args: Any, **kwargs: Any) -> Any:
        """A call of an `autograd.Function`, whose backward is its own."""
        if self.is_paused or kind.__module__.startswith("torch."):
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
        places = mapped(partial(placed, given), (args, kwargs))
        self.is_paused = True
        try:
            with _disable_current_modes(), torch._C.DisableTorchFunction(), edits_undone(self.tracer.root):
                self.tracer.random.check()
                with self.tracer.fake_mode or nullcontext():
                    blank = [_blank(each) for each in given]
                examples = filled(places, blank)
                with self.own_tensors():
                    result = self.tracer.evaluate(op, target, *examples)
        finally:
            self.is_paused = False
        made: list[Tensor] = []
        form = mapped(partial(placed, made), result)
        if not made or not is_plain(result) or any(each.layout is not torch.strided for each in made):
            return None
        self.calls.append(CapturedCall(run, places[0], places[1], form, tuple(made)))
        results = CALL(given, len(self.calls) - 1)
        return (filled(form, results),)


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


def _blank(tensor: Tensor) -> Tensor:
    """A tensor of zeros of the same form, with memory of its own where any has."""
    if tensor.layout is not torch.strided:
        raise Untraceable("torch.export is given dense tensors only")
    made = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device=tensor.device)
    return made.zero_().requires_grad_(tensor.requires_grad)


def _check_assigned(path: str, before: dict[str, Any], after: dict[str, Any]) -> None:
    names = before.keys() | after.keys()
    changed = sorted(name for name in names if before.get(name, names) is not after.get(name, names))
    if changed:
        place = ".".join(part for part in ("model", path, changed[0]) if part)
        raise Untraceable(f"it assigns {place}, which a graph would not")
