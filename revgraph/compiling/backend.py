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
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, fx

from revgraph.compiling.marking import Marked, marked
from revgraph.engine.executable import Executable
from revgraph.engine.facade import blank, class_for
from revgraph.engine.log_det import LogDets
from revgraph.engine.module import FACES, ReversibleModule, TracedForm
from revgraph.engine.state import autocast_state, dispatch_modes, is_transformed, refuse_unrestorable
from revgraph.errors import PlanError, TraceError, add_note
from revgraph.rounding import check_noted
from revgraph.tracing.arguments import fill_form

if TYPE_CHECKING:
    from revgraph.compiling.partition import Partition

Backend = Literal["inductor", "aot"]
logger = logging.getLogger(__name__)
NEW_LINE = "\n"
BACKENDS: tuple[str, ...] = get_args(Backend)


def compile(net: ReversibleModule, backend: Backend = "inductor") -> ReversibleModule:
    """The net's other face: a module whose forward and backward are one compiled graph each.

    It has the net's parameters, plan, attributes and signature, and whatever changes on one changes on the
    other. Each form of call, plan, shape and mode is compiled when it first comes. "inductor" compiles with
    torch's compiler, "aot" runs the same graphs operator by operator and needs none.

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
    face = object.__new__(class_for(CLASSES[backend], type(net.__dict__["_model"])))
    object.__setattr__(face, "__dict__", net.__dict__)
    return face


class CompiledModule(ReversibleModule):
    """A net whose steps are compiled; see `compile`."""

    backend: Backend = "inductor"
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
        if log_dets is not None or is_transformed() or is_watched or is_first:
            return super()._ran(form, env, log_dets)
        executable = self._executable_of(form)
        compiled = _compiled.setdefault(executable, {})
        step = compiled.get(self.backend)
        if step is None:
            step = compiled[self.backend] = CompiledForm(executable, self.__dict__["_model"], self.backend)
        return fill_form(form.program.results, step(env))

    def __reduce_ex__(self, protocol: Any) -> Any:
        return blank, (CLASSES[self.backend], type(self.__dict__["_model"])), self.__getstate__()


def _is_observed() -> bool:
    """Whether a dispatch mode is to see every operator, under which torch compiles nothing."""
    return any(not mode.ignore_compile_internals() for mode in dispatch_modes())


class _Inductor(CompiledModule):
    backend = "inductor"
    draws_as_watched = passes_dispatcher = False


class _Aot(CompiledModule):
    backend = "aot"


# Whether a backend computes pointwise work where it is read.
FUSES: dict[str, bool] = {"inductor": True, "aot": False}
CLASSES: dict[str, type[CompiledModule]] = {"inductor": _Inductor, "aot": _Aot}
_compiled: weakref.WeakKeyDictionary[Executable, dict[str, CompiledForm]] = weakref.WeakKeyDictionary()
_running = threading.local()


class CompiledForm:
    """A form of call under its plan, compiled for every shape and mode that comes."""

    def __init__(self, executable: Executable, model: torch.nn.Module, backend: Backend) -> None:
        self.plan = executable.plan
        self.executable = executable
        self.model = model
        self.backend = backend
        self.key = f"{backend} {key_of(executable, model)}"
        self.fuses = FUSES[backend]
        self.partitions: list[Partition] = []
        self._functions: dict[Any, tuple[Marked, Callable[..., tuple[Any, ...]]]] = {}

    def __call__(self, env: dict[str, Any]) -> dict[str, Any]:
        """The results by their names, for inputs by theirs."""
        marked, run, is_new = self._function(env)
        given = [env.get(name) for name in marked.inputs]
        del env
        refuse_unrestorable()
        before = getattr(_running, "step", None)
        _running.step = self, marked
        try:
            results = _first_run(run, given) if is_new else run(*given)
            check_noted()
        except Exception as error:
            raise _told(error, marked) from None
        finally:
            _running.step = before
        return dict(zip(marked.outputs, results, strict=True))

    def _function(self, env: dict[str, Any]) -> tuple[Marked, Callable[..., tuple[Any, ...]], bool]:
        """The function for inputs like these, what it is of, and whether it has been called.

        Each shape and mode has one of its own. Torch would keep them all with one function, and compile no
        more than a few.
        """
        records = self._records(env)
        looks = [_look(each) for each in env.values()]
        look = (records, self.model.training, torch.is_grad_enabled(), autocast_state(), *looks)
        found = self._functions.get(look)
        is_new = found is None
        if found is None:
            program = marked(self.executable, self.model, f"{self.key} {look}", records)
            backend = _backend_of(self.backend)
            run = torch.compile(program.run, backend=backend, fullgraph=True, dynamic=False)
            found = self._functions[look] = program, run
        return *found, is_new

    def _records(self, env: dict[str, Any]) -> bool:
        """Whether a gradient may be asked for."""
        if not torch.is_grad_enabled():
            return False
        given = (each for each in env.values() if isinstance(each, Tensor))
        return any(each.requires_grad for each in chain(given, self.model.parameters()))


def _first_run(run: Callable[..., Any], given: list[Any]) -> Any:
    """The results of a function that compiles, without what torch warns of while it looks at things."""
    begun = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = run(*given)
    logger.info("compiled in %.1f seconds", time.perf_counter() - begun)
    return results


def _look(value: Any) -> Any:
    """What code is compiled for anew: of numbers their type alone, for torch looks at them by itself."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    return tuple(value.shape), str(value.dtype), str(value.device), value.requires_grad


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


def _told(error: Exception, marked: Marked) -> Exception:
    """What a user is told of an error in compiling or in a compiled step."""
    from torch._dynamo import exc

    if isinstance(error, exc.BackendCompilerFailed):
        inner = error.inner_exception
        return inner if isinstance(inner, Exception) else error
    if not isinstance(error, exc.TorchDynamoException):
        return error
    text = str(error).strip()
    node = marked.node_in(text)
    where = f"node {node!r}" if node else "the net"
    refused = TraceError(
        f"{where} cannot be compiled: {text.partition(NEW_LINE)[0]}. What runs beside the tensors (prints, "
        "counters, data-dependent branches) does not go into a graph. Take it out of the forward, or use "
        "the net as it is, without rg.compile."
    )
    add_note(refused, text)
    return refused


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

    step, marked = _running.step
    found = partitioned(joint, num_fwd_outputs, marked, step.plan, decompositions, step.fuses)
    step.partitions.append(found)
    return _extract_fwd_bwd_modules(
        found.joint, list(found.saved), list(found.saved_numbers), num_fwd_outputs=num_fwd_outputs
    )


def _aot(graph: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
    from torch._dynamo.backends.common import aot_autograd

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

    step, _ = _running.step
    partitioner = Partitioner(f"revgraph {step.key} {code_version()}")
    return compile_fx(graph, inputs, config_patches={"custom_partitioner_fn": partitioner})  # pyright: ignore


@lru_cache
def code_version() -> str:
    """Changes with the code that lowers plans."""
    here = Path(__file__).parent
    text = "".join(path.read_text() for path in sorted(here.glob("*.py")))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
