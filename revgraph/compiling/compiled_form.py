"""The compiled form: one form of call under its plan, which torch.compile reads as a program with marks.

torch guards what it has read: shapes, types and flags of tensors, modes and attributes of modules, autocast.
The plan is guarded by the code: functions of different plans are different code objects.
"""

from __future__ import annotations

import hashlib
import logging
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed

from revgraph.compiling.backend import COMPILERS, FUSES, Backend, running
from revgraph.compiling.marking import Marked, marked
from revgraph.compiling.refusals import misread, recompiled, refusal
from revgraph.engine.contexts import autocast_state, refuse_unrestorable
from revgraph.engine.executable import Executable
from revgraph.engine.state import make_up_of
from revgraph.errors import CompileWarning, warn
from revgraph.progress import Progress
from revgraph.rounding import check_noted

if TYPE_CHECKING:
    from revgraph.compiling.partition import Partition

compiling_log = logging.getLogger("revgraph.compiling")
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
        self._misread = misread(model)
        self._functions: dict[Any, Function] = {}
        self._modules = [each for each in model.modules() if each is not model]  # whose hooks are the net's
        self._types = [*dict.fromkeys(map(type, self._modules))]

    def __call__(self, env: dict[str, Any]) -> dict[str, Any] | None:
        """The results by their names, for inputs by theirs; None where the engine is to run the call."""
        if self._misread:
            self._warn(self._misread)
            return None
        function = self._function(env)
        if function.is_refused:
            return None
        marked = function.marked
        given = [env.get(name) for name in marked.inputs]
        refuse_unrestorable()
        outer = getattr(running, "step", None)
        running.step = self, function
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
            running.step = outer
        if self._compiles_always(function, before):
            self._refuse(function, recompiled(marked, "on every call"), True)
        return dict(zip(marked.outputs, results, strict=True))

    def _called(self, function: Function, given: list[Any]) -> tuple[Any, ...]:
        if function.compilations:
            with _in_one_graph():
                return function.run(*given)
        begun = time.perf_counter()
        with (
            _in_one_graph(),
            warnings.catch_warnings(),
            Progress("compiling the step", "reading the functions", compiling_log) as progress,
        ):
            warnings.simplefilter("ignore")  # what torch warns of while it looks at things
            running.progress = progress
            try:
                results = function.run(*given)
            finally:
                running.progress = None
        compiling_log.info("compiled in %.1f seconds", time.perf_counter() - begun)
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
            warn(text, CompileWarning)

    def _function(self, env: dict[str, Any]) -> Function:
        """The function for inputs like these.

        Each shape and mode has one of its own. Torch would keep them all with one function, and compile no
        more than a few.
        """
        records = self._records(env)
        looks = [_look(each, self.dynamic) for each in env.values()]
        # Torch compares neither hooks nor the code of classes.
        hooks = make_up_of(self._modules)[1]
        forwards = [each.forward for each in self._types]
        modes = (records, self.model.training, torch.is_grad_enabled(), autocast_state())
        look = (modes, frozenset(hooks), *forwards, *looks)
        found = self._functions.get(look)
        if found is None:
            said = f"{self.key} {modes} {looks} {sorted(hooks)} {[*map(id, forwards)]}"
            program = marked(self.executable, self.model, said, records)
            compiler = COMPILERS[self.backend]
            run = torch.compile(program.run, backend=compiler, fullgraph=True, dynamic=self.dynamic)
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
