"""The compiled step: a net whose forward and backward are one compiled graph each, under the net's plan.

`compile` gives a net's other face: the same parameters, plan and forms of call, with `_ran`, what runs a
form, replaced. For each form and plan there is a `CompiledForm`, a program with marks that torch.compile
reads; of the joint graph that AOTAutograd makes of it, `partition` makes the graphs of forward and backward.

torch guards what it has read: shapes, types and flags of tensors, modes and attributes of modules, autocast.
The plan is guarded by the code: functions of different plans are different code objects.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, distributed, fx

from revgraph.compiling.marking import Marked, marked
from revgraph.compiling.progress import Progress
from revgraph.compiling.refusals import recompiled, refusal
from revgraph.engine.executable import Executable
from revgraph.engine.facade import blank, class_for
from revgraph.engine.log_det import LogDets
from revgraph.engine.module import FACES, ReversibleModule, TracedForm
from revgraph.engine.sharding import sharded_modules
from revgraph.engine.state import autocast_state, dispatch_modes, is_transformed, refuse_unrestorable
from revgraph.errors import CompileWarning, PlanError
from revgraph.rounding import check_noted
from revgraph.tracing.arguments import fill_form

if TYPE_CHECKING:
    from revgraph.compiling.partition import Partition

Backend = Literal["inductor", "aot"]
logger = logging.getLogger(__name__)
BACKENDS: tuple[str, ...] = get_args(Backend)


def compile(net: ReversibleModule, backend: Backend = "inductor", dynamic: bool = False) -> ReversibleModule:
    """The net's other face: a module whose forward and backward are one compiled graph each.

    It has the net's parameters, plan, attributes and signature, and whatever changes on one changes on the
    other. Each form of call, plan, shape and mode is compiled when it first comes. "inductor" compiles with
    torch's compiler, "aot" runs the same graphs operator by operator and needs none. A `dynamic` step is
    compiled once for all sizes that its inputs may have, such as another batch, as `torch.compile` has it.

    Raises:
        PlanError: there is no such backend.

    Example:
        >>> import torch, revgraph as rg
        >>> half_step = lambda: torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh())
        >>> net = rg.trace(rg.Additive(half_step(), half_step()), *torch.randn(2, 8, 4))
        >>> step = rg.compile(net, backend="aot")
        >>> y1, y2 = step(*torch.randn(2, 8, 4))
        >>> (y1 + y2).sum().backward()
    """
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
        is_first = form.has_hooks() and not form.is_tried
        watch = None
        if self._watch is not None and self._observer is None and torch.is_grad_enabled():
            watch = self._watch.next(self.plan)
        if watch is not None:  # one step in many, by the engine, which sees what is rebuilt
            with self.watched_by(watch):
                return super()._ran(form, env, log_dets)
        is_watched = self._observer is not None or _is_observed()
        if log_dets is not None or is_transformed() or is_watched or is_first or self._is_sharded():
            return super()._ran(form, env, log_dets)
        executable = self._executable_of(form)
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
        modules = sharded_modules(self.modules())
        if modules and not getattr(self, "_told_of_shards", False):
            self._told_of_shards = True
            warnings.warn(
                "a net with fully_shard applied to it is not compiled: its modules gather their parameters "
                "when they run, which a compiled graph does not do. It runs on the eager engine instead.",
                CompileWarning,
                stacklevel=2,
            )
        return bool(modules)

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


# Whether a backend computes pointwise work where it is read.
FUSES: dict[str, bool] = {"inductor": True, "aot": False}
CLASSES: dict[tuple[Backend, bool], type[CompiledModule]] = {
    ("inductor", False): _Inductor,
    ("aot", False): _Aot,
    ("inductor", True): _DynamicInductor,
    ("aot", True): _DynamicAot,
}
_compiled: weakref.WeakKeyDictionary[Executable, dict[tuple[str, bool], CompiledForm]] = (
    weakref.WeakKeyDictionary()
)
_running = threading.local()
# A function that was compiled on so many calls in a row would be on every one.
MOST_IN_A_ROW = 4


@dataclass(slots=True, eq=False)
class Function:
    """The function of one shape and mode: whether it is refused, and how often it was compiled.

    `in_a_row` are the last calls that compiled, all with these `flags` of parameters.
    """

    marked: Marked
    run: Callable[..., tuple[Any, ...]]
    is_refused: bool = False
    compilations: int = 0
    in_a_row: int = 0
    flags: tuple[bool, ...] = ()


class CompiledForm:
    """A form of call under its plan, compiled for every mode that comes, and every shape if not `dynamic`.

    Where that fails for all sizes at once, it is dynamic no longer.
    """

    def __init__(
        self, executable: Executable, model: torch.nn.Module, backend: Backend, dynamic: bool
    ) -> None:
        self.plan = executable.plan
        self.executable = executable
        self.model = model
        self.backend = backend
        self.dynamic = dynamic
        self.key = f"{backend} {dynamic} {key_of(executable, model)}"
        self.fuses = FUSES[backend]
        self.partitions: list[Partition] = []
        self._told: set[str] = set()
        self._functions: dict[Any, Function] = {}

    def __call__(self, env: dict[str, Any]) -> dict[str, Any] | None:
        """The results by their names, for inputs by theirs; None where the engine is to run the call."""
        function = self._function(env)
        if function.is_refused:
            return None
        marked = function.marked
        given = [env.get(name) for name in marked.inputs]
        refuse_unrestorable()
        outer = getattr(_running, "step", None)
        _running.step = self, function
        before = function.compilations
        try:
            results = self._called(function, given)
            check_noted()
        except Exception as error:
            text = refusal(error, marked)
            if text and self.dynamic:  # other sizes may be what is not to be compiled
                self.dynamic = False
                self._warn(f"not for all sizes at once, so each shape is compiled by itself: {text}")
                return self(env)
            self._refuse(function, text, not _is_for_once(error))
            return None
        finally:
            _running.step = outer
        if self._compiles_always(function, before):
            self._refuse(function, recompiled(marked, "on every call"), True)
        return dict(zip(marked.outputs, results, strict=True))

    def _called(self, function: Function, given: list[Any]) -> tuple[Any, ...]:
        if function.compilations:
            with _in_one_graph():
                return function.run(*given)
        begun = time.perf_counter()
        with _in_one_graph(), warnings.catch_warnings(), Progress("reading the functions") as progress:
            warnings.simplefilter("ignore")  # what torch warns of while it looks at things
            _running.progress = progress
            try:
                results = function.run(*given)
            finally:
                _running.progress = None
        logger.info("compiled in %.1f seconds", time.perf_counter() - begun)
        return results

    def _compiles_always(self, function: Function, before: int) -> bool:
        """Whether one call after another compiles, and not for parameters that are frozen or thawed."""
        if function.compilations == before:
            function.in_a_row = 0
            return False
        flags = tuple([each.requires_grad for each in self.model.parameters()])
        function.in_a_row = function.in_a_row + 1 if flags == function.flags else 1
        function.flags = flags
        return function.in_a_row == MOST_IN_A_ROW

    def _refuse(self, function: Function, text: str, for_good: bool) -> None:
        """Have the engine run such calls from now on, and say so."""
        function.is_refused = for_good and bool(text)
        self._warn(text)

    def _warn(self, text: str) -> None:
        """Tell the user once."""
        if text and text not in self._told:
            self._told.add(text)
            warnings.warn(text, CompileWarning, stacklevel=2)

    def _function(self, env: dict[str, Any]) -> Function:
        """The function for inputs like these.

        Each shape and mode has one of its own. Torch would keep them all with one function, and compile no
        more than a few.
        """
        records = self._records(env)
        looks = [_look(each, self.dynamic) for each in env.values()]
        look = (records, self.model.training, torch.is_grad_enabled(), autocast_state(), *looks)
        found = self._functions.get(look)
        if found is None:
            program = marked(self.executable, self.model, f"{self.key} {look}", records)
            backend = _backend_of(self.backend)
            run = torch.compile(program.run, backend=backend, fullgraph=True, dynamic=self.dynamic)
            found = self._functions[look] = Function(program, run)
        return found

    def _records(self, env: dict[str, Any]) -> bool:
        """Whether a gradient may be asked for."""
        if not torch.is_grad_enabled():
            return False
        given = (each for each in env.values() if isinstance(each, Tensor))
        return any(each.requires_grad for each in chain(given, self.model.parameters()))


def _in_one_graph() -> AbstractContextManager[Any]:
    """A block in which DistributedDataParallel around the net does not have its graph cut at its buckets.

    A backward would come in parts then, none of which has the whole schedule.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return nullcontext()
    from torch._dynamo import config

    return config.patch(optimize_ddp=False)


def _is_for_once(error: Exception) -> bool:
    """Whether calls of the same look may do: some were compiled, and then no more."""
    return type(error).__name__ == "FailOnRecompileLimitHit"


def told(phase: str) -> None:
    """Tell what compiling is at."""
    progress = getattr(_running, "progress", None)
    if progress is not None:
        progress.phase = phase


def _look(value: Any, dynamic: bool) -> Any:
    """What code is compiled for anew: of numbers their type alone, for torch looks at them by itself."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    shape = value.dim() if dynamic else tuple(value.shape)
    return shape, str(value.dtype), str(value.device), value.requires_grad


def key_of(executable: Executable, model: torch.nn.Module) -> str:
    """A text that programs share which look the same and have plans that do the same."""
    plan = executable.plan
    said = (
        repr(model),
        [(each.law, each.target, each.rearrangement) for each in executable.program.operations],
        sorted(plan.decisions.items()),
        plan.stored,
        sorted((name, each.how, each.node) for name, each in plan.sources.items()),
        sorted(plan.results.items()),
        sorted(plan.holds.items()),
        sorted(plan.drops.items()),
    )
    return hashlib.sha256(repr(said).encode()).hexdigest()[:16]


# Backends of torch.compile


def revgraph_backend(graph: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
    """`torch.compile(model, backend="revgraph")`: nets in a model run as `compile` has them.

    What is around them is compiled by torch's compiler.
    """
    from torch._inductor.compile_fx import compile_fx

    return compile_fx(graph, inputs)  # pyright: ignore


def register() -> None:
    """Tell torch.compile of the backend, where the package's metadata has not."""
    from torch._dynamo.backends.registry import list_backends, register_backend

    if "revgraph" not in list_backends():
        register_backend(revgraph_backend, name="revgraph")


FACES["revgraph"] = compile


def _backend_of(name: str) -> Callable[..., Any]:
    return {"aot": _aot, "inductor": _inductor}[name]


def partition(
    joint: fx.GraphModule, _: Any, *, num_fwd_outputs: int, decompositions: Any = None, **__: Any
) -> tuple[fx.GraphModule, fx.GraphModule]:
    """The graphs of forward and backward, for AOTAutograd."""
    from torch._functorch.partitioners import _extract_fwd_bwd_modules

    from revgraph.compiling.partition import partitioned  # what traces takes a second to import

    told("lowering the plan")
    step, function = _running.step
    found = partitioned(joint, num_fwd_outputs, function.marked, step.plan, decompositions, step.fuses)
    step.partitions.append(found)
    return _extract_fwd_bwd_modules(
        found.joint, list(found.saved), list(found.saved_numbers), num_fwd_outputs=num_fwd_outputs
    )


def _aot(graph: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
    from torch._dynamo.backends.common import aot_autograd

    _running.step[1].compilations += 1
    told("tracing forward and backward")
    return aot_autograd(fw_compiler=_boxed, partition_fn=partition)(graph, inputs)


def _boxed(graph: fx.GraphModule, _: Any) -> Callable[..., Any]:
    """A graph as a function of a list, which it empties: tensors go with their last reader."""
    from torch.fx.graph import _BoxedCodeGen

    graph.graph.set_codegen(_BoxedCodeGen())
    graph.recompile()
    run: Any = graph.forward

    def boxed(given: list[Any]) -> Any:
        return run(given)

    boxed._boxed_call = True  # pyright: ignore[reportFunctionMemberAccess]
    return boxed


def _inductor(graph: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
    from torch._inductor.compile_fx import compile_fx

    from revgraph.compiling.inductor import Partitioner

    step, function = _running.step
    function.compilations += 1
    partitioner = Partitioner(f"revgraph {step.key} {code_version()}")
    told("tracing forward and backward")
    run: Any = compile_fx(
        graph, inputs, inner_compile=_generated, config_patches={"custom_partitioner_fn": partitioner}
    )
    return run


def _generated(graph: fx.GraphModule, inputs: Sequence[Any], **options: Any) -> Any:
    """What torch's compiler makes of the graph of a forward or a backward."""
    from torch._inductor.compile_fx import compile_fx_inner

    part = "backward" if options.get("is_backward") else "forward"
    told(f"generating code for the {part}, {len(graph.graph.nodes)} operators")
    return compile_fx_inner(graph, inputs, **options)


@lru_cache
def code_version() -> str:
    """Changes with the code that lowers plans."""
    here = Path(__file__).parent
    text = "".join(path.read_text() for path in sorted(here.glob("*.py")))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
