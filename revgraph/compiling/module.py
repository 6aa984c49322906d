"""The compiled module: a net's other face, whose forward and backward are one compiled graph each.

It has the net's own parameters, plan and forms of call; only `_ran`, what runs a form, is another. For each
form, plan and backend there is a `CompiledForm`; calls that no graph would do for go to the eager engine.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch

from revgraph.compiling.backend import BACKENDS, Backend
from revgraph.compiling.compiled_form import CompiledForm
from revgraph.engine._torch import has_global_hooks
from revgraph.engine.contexts import dispatch_modes, is_transformed
from revgraph.engine.executable import Executable
from revgraph.engine.facade import blank, class_for
from revgraph.engine.log_det import LogDets
from revgraph.engine.module import FACES, ReversibleModule, check_net
from revgraph.engine.sharding import is_sharded
from revgraph.engine.traced_form import TracedForm
from revgraph.errors import CompileWarning, PlanError, warn
from revgraph.tracing.arguments import fill_form


def compile(net: ReversibleModule, backend: Backend = "inductor", dynamic: bool = False) -> ReversibleModule:
    """The net's other face: a module whose forward and backward are one compiled graph each.

    It has the net's parameters, plan, attributes and signature, and whatever changes on one changes on the
    other. Each form of call, plan, shape and mode is compiled when it first comes. "inductor" compiles with
    torch's compiler, "aot" runs the same graphs operator by operator and needs none. A `dynamic` step is
    compiled once for all sizes that its inputs may have, such as another batch, as `torch.compile` has it.

    Raises:
        TraceError: `net` is no net of `rg.trace` or `rg.load`.
        PlanError: there is no such backend.

    Example:
        >>> import torch, revgraph as rg
        >>> half_step = lambda: torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh())
        >>> net = rg.trace(rg.Additive(half_step(), half_step()), *torch.randn(2, 8, 4))
        >>> step = rg.compile(net, backend="aot")
        >>> y1, y2 = step(*torch.randn(2, 8, 4))
        >>> (y1 + y2).sum().backward()
    """
    check_net(net, "rg.compile")
    if backend not in BACKENDS:
        raise PlanError(
            f"there is no backend {backend!r}: rg.compile knows {' and '.join(map(repr, BACKENDS))}"
        )
    face = object.__new__(class_for(CLASSES[backend, bool(dynamic)], type(net.__dict__["_model"])))
    object.__setattr__(face, "__dict__", net.__dict__)
    return face


class CompiledModule(ReversibleModule):
    """A net whose steps are compiled; see `compile`."""

    backend: Backend = "inductor"
    dynamic = False
    steps_as_watched = False

    def _ran(self, form: TracedForm, env: dict[str, Any], log_dets: LogDets | None) -> Any:
        is_first = form.untried(self.__dict__["_model"], env) is not None
        watch = None
        if self._watch is not None and self._observer is None and torch.is_grad_enabled():
            watch = self._watch.next(self.plan)
        if watch is not None:  # one step in many, by the engine, which sees what is rebuilt
            with self.watched_by(watch):
                return super()._ran(form, env, log_dets)
        is_watched = self._observer is not None or _is_observed() or has_global_hooks()
        if log_dets is not None or is_transformed() or is_watched or is_first or self._is_sharded():
            return super()._ran(form, env, log_dets)
        executable = self._forms.executable(form)
        compiled = _compiled.setdefault(executable, {})
        key = (self.backend, self.dynamic)
        step = compiled.get(key)
        if step is None:
            step = compiled[key] = CompiledForm(executable, self.__dict__["_model"], *key)
        results = step(env)
        if results is None:
            return super()._ran(form, env, log_dets)
        return fill_form(form.program.results, results)

    def _is_sharded(self) -> bool:
        """Whether modules gather their parameters before they run, which no graph does; it is told once."""
        sharded = is_sharded(self)
        if sharded and not getattr(self, "_told_of_shards", False):
            self._told_of_shards = True
            warn(
                "a net with fully_shard applied to it is not compiled: its modules gather their parameters "
                "when they run, which a compiled graph does not do. It runs on the eager engine instead.",
                CompileWarning,
            )
        return sharded

    def __reduce_ex__(self, protocol: Any) -> Any:
        return (
            blank,
            (CLASSES[self.backend, self.dynamic], type(self.__dict__["_model"])),
            self.__getstate__(),
        )


def _is_observed() -> bool:
    """Whether a dispatch mode is to see every operator, under which torch compiles nothing."""
    return any(not mode.ignore_compile_internals() for mode in dispatch_modes())


class _Inductor(CompiledModule):
    backend = "inductor"
    draws_as_watched = passes_dispatcher = False


class _Aot(CompiledModule):
    backend = "aot"


class _DynamicInductor(_Inductor):
    dynamic = True


class _DynamicAot(_Aot):
    dynamic = True


CLASSES: dict[tuple[Backend, bool], type[CompiledModule]] = {
    ("inductor", False): _Inductor,
    ("aot", False): _Aot,
    ("inductor", True): _DynamicInductor,
    ("aot", True): _DynamicAot,
}
_compiled: weakref.WeakKeyDictionary[Executable, dict[tuple[str, bool], CompiledForm]] = (
    weakref.WeakKeyDictionary()
)


FACES["revgraph"] = compile
