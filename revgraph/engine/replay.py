"""A backward pass: the schedule's replays, carried out as autograd asks for saved tensors.

Autograd runs its own graph, and asks for the saved tensors of one node after the other, last to first. A pass
is a position in the schedule: asked for node k, it carries out the instructions from there up to the one that
captures k. In the usual order these are the stage of k, as Algorithm 1 has it (Gomez et al. 2017):

    lines 1 to 3   `BackwardPass.execute`: from y and F(others), evaluated once more, x = y (-) F(others)
    lines 4 to 8   PyTorch's own autograd, on the tensors that this evaluation captured

What is kept true: at a position, what is at hand is what the schedule has there. Where stages are passed
over, those instructions run whose values the schedule has at hand at the target, and no others
(`Schedule.catch_up`); a pass that frees the graph leaves what the stages passed over need on the tape, for
another pass. What is asked for once more, or late, is derived aside from where the tape begins. So a pass
never holds more values, and evaluates no more, than a whole one.

On a machine with several devices autograd has a thread for each, and they ask in any order. A lock lets them
through one by one, and stored values stay until the pass ends; who finds the pass at work further up its own
stack, or waits in vain, derives what it needs aside.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from revgraph.engine._torch import (
    current_graph_task,
    frame_callback,
    keeps_graph,
    queue_callback,
    without_dispatch_modes,
)
from revgraph.engine.contexts import NOTHING, dispatch_modes, uncompiled
from revgraph.engine.saved_tensors import (
    Captured,
    Enough,
    Samples,
    SavedParameter,
    SavedTensorHandle,
    SavesOthers,
    stale_parameter,
)
from revgraph.engine.sharding import resharded
from revgraph.engine.state import equal, stale, version_of
from revgraph.errors import DriftError, ReplayError, add_note, cures_of_drift
from revgraph.isolation import out_of_inference_mode

if TYPE_CHECKING:
    from revgraph.engine.executable import PlannedOperation, ReplayStep
    from revgraph.engine.node_evaluation import NodeEvaluation
    from revgraph.engine.tape import Tape

Parameter = nn.Parameter
aten = torch.ops.aten
UNWRITTEN = (aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided)
# Seconds that one thread of a pass waits for another.
PATIENCE = 1.0
# Replays that prove to be drift before a node is left alone.
PROOFS_OF_DRIFT = 8


@dataclass(frozen=True, slots=True)
class Lent:
    """An input that inversion gives back: the caller's, and not held on to.

    As long as the caller has it, or what it is a view of (`owner`), it is there to be read.
    """

    owner: weakref.ref[Tensor]
    is_view: bool
    shape: torch.Size
    stride: tuple[int, ...]
    offset: int

    def value(self) -> Tensor | None:
        owner = self.owner()
        if owner is None:
            return None
        with torch.no_grad():
            if self.is_view:
                return owner.as_strided(self.shape, self.stride, self.offset)
            return owner.detach()


@dataclass(frozen=True, slots=True)
class Region:
    """Stages that a pass which freed the graph passed over: where they begin, and what values they need."""

    start: int
    values: list[Tensor | None]
    versions: list[int]


class BackwardPass:
    """One backward pass: its position, the values at hand by number, and what was captured.

    `captured` has the tensors of nodes on the careful path, `flat` those of the lean path, by the numbers
    that stand in for them; `done` are the nodes of these. A pass that `frees_graph` lets stored values go.
    """

    __slots__ = (
        "__weakref__",
        "captured",
        "done",
        "edited",
        "end",
        "flat",
        "frees_graph",
        "is_ambient",
        "is_busy",
        "lean",
        "next",
        "position",
        "releases",
        "replays",
        "strangers",
        "tape",
        "task",
        "values",
        "versions",
    )

    def __init__(self, tape: Tape, task: int, frees_graph: bool) -> None:
        self.tape = tape
        self.task = task
        self.frees_graph = frees_graph
        self.is_busy = False
        self.position = tape.position
        self.values = list(tape.values)
        self.versions = tape.versions
        self.captured: dict[int, list[Tensor | None]] = {}
        self.flat: list[Tensor | None] = [None] * len(tape.forms)
        self.done: set[int] = set()
        self.next = self.end = 0
        self.is_ambient = tape.ambient.is_in_force
        self.edited = tape.probes.edited_since(tape.probed)
        # Dispatch modes around this pass that were not around the forward.
        self.strangers = [mode for mode in dispatch_modes() if mode not in tape.ambient.dispatch_modes]
        self.replays = tape.replays
        self.releases = frees_graph and not tape.spans_devices
        if tape.lent:
            self._take_inputs()
        self.lean = None if tape.lean is None else tape.lean.replays(self.replays)

    def reach(self, index: int) -> None:
        """Carry out what captures the node of this operation, and before that what it depends on.

        A thread that finds another at work waits for it, but not forever: that one may run a function which
        differentiates by itself, and wait for this thread. It then derives what it needs aside.
        """
        place, lock = self.replays.captured_at[index], self.tape.lock
        if not lock.acquire(timeout=PATIENCE):
            self._aside(index, place)
            return
        try:
            if self.is_busy:  # in this very thread, further up its stack
                self._aside(index, place)
                return
            self.is_busy = True
            try:
                with out_of_inference_mode() if torch.is_inference_mode_enabled() else NOTHING:
                    self._advance(index, place)
            finally:
                self.is_busy = False
        finally:
            lock.release()

    def _advance(self, index: int, place: int) -> None:
        if place < self.position:
            self._aside(index, place)
        elif self.replays.begins[place] <= self.position:
            for position in range(self.position, place + 1):
                self.run(position, True)
            self.position = place + 1
        else:
            self._catch_up(place)

    def run(self, place: int, captures: bool) -> None:
        """Carry out the instruction at a place; it captures if it is to, and this pass wants that."""
        step = self.replays.steps[place]
        if self.edited:
            self._check_parameters(step.operation)
        trial = self._trial(place, captures) if self.strangers else None
        if step.operation.index in self.tape.parameters:
            lean = self.lean[place]  # pyright: ignore[reportOptionalSubscript]
            if lean is None:
                lean = self.tape.lean.replay(self.replays, place)  # pyright: ignore
            with self.context():
                lean(self, captures and step.captures)
        else:
            self.execute(step, captures and step.captures)
        if trial is not None and not self._agrees(trial, step):
            raise self._differs(step, "operators compute other values under a dispatch mode of the backward")
        self._free(step)
        if step.is_last and self.releases and not self.tape.regions:  # their stages may need it yet
            self.tape.evaluations.pop(step.operation.index, None)

    def context(self) -> AbstractContextManager[Any]:
        """The contexts of the forward, where those of this pass are other ones."""
        return NOTHING if self.is_ambient else self.tape.ambient.restored()

    def close(self) -> None:
        """At the end of a pass that freed the graph, the next one begins where this one is."""
        if self.frees_graph:
            tape = self.tape
            tape.position = self.position
            tape.values = self.values
            tape.versions = [
                version if value is None or version >= 0 else version_of(value)
                for value, version in zip(self.values, tape.versions, strict=True)
            ]
            tape.lent = {}
            tape.replays = self.replays

    def get(self, number: int) -> Tensor:
        """A value that is at hand, unedited."""
        value = self.values[number]
        if value is None:
            raise ReplayError(
                f"value {self.tape.executable.names[number]!r} went with the graph that an earlier backward "
                "freed. Call that backward with retain_graph=True, as several backward passes through one "
                "graph need."
            )
        version = self.versions[number]
        if version >= 0 and number in self.replays.fixed and value._version != version:
            raise ReplayError(
                f"value {self.tape.executable.names[number]!r}, stored for the backward pass, was edited in "
                f"place after the forward (version {value._version}, stored at {version}). Edit a clone of "
                "it instead, or edit it after backward."
            )
        return value

    def capture(self, tensor: Tensor) -> None:
        """The hook of a replay on the lean path: what autograd saves, under the number of the forward."""
        base = tensor._base
        if type(tensor if base is None else base) is Parameter:
            return
        number = self.next
        if number >= self.end or tensor.shape != self.tape.forms[number]:
            self.end = -1
            return
        self.flat[number] = tensor.detach()
        self.next = number + 1

    def capture_until_end(self, tensor: Tensor) -> None:
        """As `capture`, and the replay ends once it has captured all that it is for."""
        self.capture(tensor)
        if self.next == self.end:
            raise Enough

    def take(self, index: int, start: int, saved: Sequence[Tensor]) -> None:
        """Take what autograd saves of a node, where its function gave that without autograd."""
        forms, flat = self.tape.forms, self.flat
        for number, tensor in enumerate(saved, start):
            form = forms[number]
            flat[number] = tensor if tensor.shape == form else tensor.reshape(form)
        self.done.add(index)

    def asked_twice(self, operation: PlannedOperation) -> None:
        """Refuse a saved tensor that is asked for again in a pass in which it went."""
        if self.frees_graph:
            raise ReplayError(
                f"a saved tensor of {operation.describe()} is asked for twice in one backward pass that "
                "frees the graph. Read ctx.saved_tensors once in the backward of an autograd.Function, or "
                "keep the node."
            )

    def execute(self, step: ReplayStep, captures: bool) -> None:
        """Carry out an instruction on the careful path."""
        tape, operation = self.tape, step.operation
        given = {number: self.get(number) for number in step.reads}
        if step.is_wiring:
            made = self._rewired(step, given)
        else:
            made = self._evaluated(step, tape.evaluations[operation.index], given, captures)
        for number in step.makes:
            self.values[number] = made[number]

    def _evaluated(
        self, step: ReplayStep, evaluation: NodeEvaluation, given: dict[int, Tensor], captures: bool
    ) -> dict[int, Tensor]:
        """Lines 1 to 3 of Algorithm 1: F once more, which gives autograd its tensors, and x from y."""
        tape, operation, observer = self.tape, step.operation, self.tape.observer
        capture = Captured(operation.node, evaluation.saved, captures, observer)
        shared = resharded(operation.modules.modules) if tape.shards else NOTHING
        try:
            with tape.running, tape.turn, shared, self.context():
                uses_up = captures and self.releases
                made = evaluation.again(tape, given, capture, step.wanted, uses_up)
            if capture.departed:
                self._suspect(step, evaluation, capture, given)
            if captures:
                capture.check(operation)
        except SavesOthers as error:
            raise self._other(step, evaluation, given, error) from None
        if captures:
            self.captured[operation.index] = capture.tensors
        for number in made:
            made[number] = laid_out(made[number], tape.strides.get(number))
        if observer is not None:
            for number, value in made.items():
                observer.rebuilt(tape.executable.names[number], value)
            observer.replayed(operation.node)
        return made

    def _rewired(self, step: ReplayStep, given: dict[int, Tensor]) -> dict[int, Tensor]:
        """A wiring run backwards, inputs from outputs, or forwards again."""
        operation, net = step.operation, self.tape.net
        shapes, plain = self.tape.shapes[operation.index]
        with torch.no_grad():
            if step.action == "invert_wiring":
                assert operation.rearrangement is not None
                values = operation.rearrangement.inverse(net, [given[n] for n in operation.makes], shapes)
                numbers = operation.tensors
            else:
                inputs = [given[n] if n in given else plain[n] for n in operation.reads]
                values, numbers = operation.function.run(*inputs), operation.makes
        strides = self.tape.strides
        return {
            number: laid_out(value, strides.get(number))
            for number, value in zip(numbers, values, strict=True)
            if number in step.makes
        }

    def _free(self, step: ReplayStep) -> None:
        for number in step.frees:
            self.values[number] = None
            if self.releases:
                self.tape.values[number] = None

    def _take_inputs(self) -> None:
        """Hold the caller's inputs for the time of this pass; without one that is gone, another schedule."""
        tape, gone = self.tape, set[int]()
        for number, lent in tape.lent.items():
            value = self.values[number] = lent.value()
            if value is None:
                gone.add(number)
        if gone:
            self.replays = tape.executable.replays(tape.replays.silent, frozenset(gone))

    def _catch_up(self, place: int) -> None:
        """Reach a place beyond the next stage: run what the schedule has at hand there, and no more."""
        schedule, steps, start = self.replays.schedule, self.replays.steps, self.position
        if self.frees_graph:
            self._leave_region(start, place)
        wanted = schedule.catch_up(start, place)
        for position in range(start, place + 1):
            if position in wanted:
                self.run(position, wanted[position])
            else:
                self._free(steps[position])
        self.position = place + 1

    def _leave_region(self, start: int, place: int) -> None:
        """Leave on the tape what the stages passed over need, which autograd may visit another time."""
        number = self.tape.executable.number
        names = self.replays.schedule.taken_by_skipped(start, place)
        values: list[Tensor | None] = [None] * len(self.values)
        for name in names:
            values[number[name]] = self.values[number[name]]
        self.tape.regions.append(Region(start, values, self.versions))

    def _aside(self, index: int, place: int) -> None:
        """Derive what is asked for late or once more, and nothing else, in a pass of its own."""
        tape = self.tape
        aside = BackwardPass(tape, self.task, frees_graph=False)
        aside.replays, aside.lean = self.replays, self.lean
        if place < aside.position:
            region = next((each for each in reversed(tape.regions) if each.start <= place), None)
            if region is None:
                raise ReplayError(
                    f"{tape.executable.operations[index].describe()} went with the graph that an earlier "
                    "backward freed. Call that backward with retain_graph=True, as several backward passes "
                    "through one graph need."
                )
            aside.position, aside.values, aside.versions = region.start, list(region.values), region.versions
        for position in self.replays.schedule.needed(aside.position, place):
            aside.run(position, position == place)
        self.captured.update(aside.captured)
        self.done |= aside.done
        for number, tensor in enumerate(aside.flat):
            if tensor is not None:
                self.flat[number] = tensor

    def _check_parameters(self, operation: PlannedOperation) -> None:
        """Refuse to replay a node with a parameter that was edited."""
        parameters = [module._parameters.get(name) for module, name in operation.modules.parameters]
        if not self.edited.isdisjoint(map(id, parameters)):
            raise stale(operation.node)

    def _trial(self, place: int, captures: bool) -> BackwardPass:
        """This pass, ahead of itself by an instruction that is carried out without strange dispatch modes."""
        trial = BackwardPass(self.tape, self.task, frees_graph=False)
        trial.replays, trial.lean, trial.strangers = self.replays, self.lean, []
        trial.values, trial.versions = list(self.values), self.versions
        with without_dispatch_modes():
            trial.run(place, captures)
        return trial

    def _agrees(self, trial: BackwardPass, step: ReplayStep) -> bool:
        """Whether an instruction has just given what it gave in a trial."""
        index = step.operation.index
        start, end = self.tape.ends.get(index, (0, 0))
        mine = [*self.captured.get(index, ()), *self.flat[start:end]]
        its = [*trial.captured.get(index, ()), *trial.flat[start:end]]
        made = [number for number in step.makes if number not in step.frees]
        mine += [self.values[number] for number in made]
        its += [trial.values[number] for number in made]
        pairs = zip(mine, its, strict=True)
        return all([one is None or two is None or equal(one, two) for one, two in pairs])

    def _suspect(
        self, step: ReplayStep, evaluation: NodeEvaluation, capture: Captured, given: dict[int, Tensor]
    ) -> None:
        """Refuse a replay whose values depart from its forward's, unless they do because its inputs do.

        On the forward's own values they must not. On values with rounding errors the node runs once more:
        what differs from itself is not deterministic, and what does not has drifted. A node that often proves
        to drift is left alone.
        """
        index, drifts = step.operation.index, self.tape.executable.drifts
        if not step.exact and drifts[index] >= PROOFS_OF_DRIFT:
            return
        again = capture if step.exact else self._once_more(step, evaluation, given, capture.samples)
        if again.departed and not self._is_unwritten(step, evaluation, given, again.departed):
            raise self._differs(step, "its function gave other values on the same inputs")
        drifts[index] += not step.exact

    def _once_more(
        self,
        step: ReplayStep,
        evaluation: NodeEvaluation,
        given: dict[int, Tensor],
        reference: Samples | None,
    ) -> Captured:
        """What a node captures when it runs once more on the same values."""
        again = Captured(step.operation.node, evaluation.saved, True, reference=reference)
        with self.tape.running, self.tape.turn, self.context():
            evaluation.again(self.tape, given, again, step.wanted)
        return again

    def _is_unwritten(
        self, step: ReplayStep, evaluation: NodeEvaluation, given: dict[int, Tensor], saved: Sequence[int]
    ) -> bool:
        """Whether these saved tensors hold what memory held before, as the noise of RReLU in evaluation does.

        Then they change with what new memory is filled with, and with nothing else.
        """
        with Filling(0.0):
            reference = self._once_more(step, evaluation, given, None).samples
            repeats = not self._once_more(step, evaluation, given, reference).departed
        with Filling(1.0):
            again = self._once_more(step, evaluation, given, reference)
        return repeats and set(saved).issubset(again.departed)

    def _other(
        self, step: ReplayStep, evaluation: NodeEvaluation, given: dict[int, Tensor], error: SavesOthers
    ) -> ReplayError | DriftError:
        """What to raise where a replay saves other tensors than its forward: told by its cause."""
        node = step.operation.node
        if switched := evaluation.state.switched():
            return switched_error(step.operation, switched)
        if not step.exact:
            with self.tape.running, self.tape.turn, self.context():
                once, twice = [evaluation.saves_again(self.tape, given) for _ in range(2)]
            if once == twice:
                return DriftError(
                    f"drift flipped a choice in {step.operation.describe()}: what it reads came back with "
                    f"rounding errors, and its function, which repeats itself on that, then took another way "
                    f"than in the forward ({error}). {cures_of_drift(node)}",
                    node=node,
                )
        return self._differs(step, str(error))

    def _differs(self, step: ReplayStep, how: str) -> ReplayError:
        node, modes = step.operation.node, self.tape.ambient.dispatch_modes
        names = ", ".join([type(mode).__name__ for mode in (*modes, *self.strangers)])
        error = ReplayError(
            f"the replay of {step.operation.describe()} differs from its forward: {how}. Its function must "
            f"do the same each time; make it deterministic, or keep the node: decisions {{{node!r}: 'keep'}}."
        )
        if names:
            add_note(
                error,
                f"Around the forward or the backward is {names}. A replay enters no dispatch mode: one that "
                "changes what operators compute has to be around both.",
            )
        return error


def current_pass(tape: Tape) -> BackwardPass:
    """The state of the backward pass that is running."""
    task = current_graph_task()
    latest = None if tape.latest is None else tape.latest()
    if latest is not None and latest.task == task != -1:
        return latest
    if task == -1:  # asked for outside of any backward: nothing to share with
        return BackwardPass(tape, task, frees_graph=False)
    with tape.lock:  # of several devices, each with a thread of autograd's own, one begins the pass
        running = tape.passes.get(task)
        if running is None:
            running = tape.passes[task] = BackwardPass(tape, task, frees_graph=not keeps_graph())
            # The callback alone keeps the pass, so that it ends with the task even where that fails.
            queue_callback(running.close)
    tape.latest = weakref.ref(running)
    return running


def unpack(packed: SavedTensorHandle | SavedParameter | None) -> Tensor:
    """The saved tensor that a packed one stands for, replaying its node where it was not yet in this pass."""
    if type(packed) is SavedParameter:
        tensor, version = packed.tensor, packed.version
        if version >= 0 and tensor._version != version:
            raise ReplayError(stale_parameter(packed.node, tensor._version, version))
        return tensor
    if type(packed) is not SavedTensorHandle or packed.tape is None:
        node = "" if packed is None else f": decisions {{{packed.operation.node!r}: 'keep'}}"  # pyright: ignore
        raise ReplayError(
            f"a node that is not kept differentiates inside its own forward. Keep that node{node}."
        )
    return _unpack(packed) if frame_callback() is None else uncompiled(_unpack, packed)


def _unpack(packed: SavedTensorHandle) -> Tensor:
    assert packed.tape is not None
    operation, index = packed.operation, packed.index
    on = current_pass(packed.tape)
    tensors = on.captured.get(operation.index)
    if tensors is None or tensors[index] is None:
        if tensors is not None:
            on.asked_twice(operation)
        on.reach(operation.index)
        tensors = on.captured[operation.index]
    tensor = tensors[index]
    tensors[index] = None
    assert tensor is not None
    if packed.tape.observer is not None:
        packed.tape.observer.handed(operation.node, index, tensor)
    return tensor


def switched_error(operation: PlannedOperation, names: Sequence[str]) -> ReplayError:
    return ReplayError(
        f"requires_grad of {', '.join(map(repr, names))} in {operation.describe()} was switched between "
        "forward and backward, so its replay does not save what its forward saved. Switch it before the "
        f"forward or after the backward, or keep the node: decisions {{{operation.node!r}: 'keep'}}."
    )


class Filling(TorchDispatchMode):
    """New memory that nothing was written to yet holds this number."""

    def __init__(self, number: float) -> None:
        super().__init__()
        self.number = number

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        return result.fill_(self.number) if func.overloadpacket in UNWRITTEN else result


def laid_out(value: Tensor, stride: tuple[int, ...] | None) -> Tensor:
    """A rebuilt value with the strides that the forward's had.

    Operators choose their ways by layout, and what they save with it. Only where the forward's lay in memory
    that overlaps itself (expanded), it stays as it came.
    """
    if stride is None or value.stride() == stride:
        return value
    with torch.no_grad():
        laid = torch.empty_strided(value.shape, stride, dtype=value.dtype, device=value.device)
        return laid.copy_(value)


def overlaps(value: Any) -> bool:
    """Whether elements of a tensor share memory, as those of an expanded one do."""
    return any([step == 0 and size > 1 for step, size in zip(value.stride(), value.shape, strict=True)])
