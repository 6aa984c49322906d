"""One forward of a net under its plan.

`run` is plain code, without gradients. `record` leaves a tape: kept nodes run as plain code, with autograd's
own saved tensors; every other node runs under hooks, on the lean path where it may (`lean.py`), and on the
careful one otherwise (`node_evaluation.py`). Every value goes as soon as nothing later reads it, except as
autograd or the plan hold it.
"""

from __future__ import annotations

import weakref
from collections.abc import Collection
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from revgraph.engine._torch import autocast_is_on
from revgraph.engine.contexts import compiles, refuse_unrestorable, widened
from revgraph.engine.executable import Executable, PlannedOperation, draws, refuse_half
from revgraph.engine.lean import LeanNodes
from revgraph.engine.log_det import LogDets, join
from revgraph.engine.node_evaluation import NodeEvaluation
from revgraph.engine.observer import Observer
from revgraph.engine.random_state import RandomStream, devices_of, turn
from revgraph.engine.replay import Lent, overlaps
from revgraph.engine.state import ModuleState, version_of
from revgraph.engine.tape import Tape
from revgraph.errors import add_note


@dataclass(slots=True)
class Forward:
    """A forward: the values that are there by now, by number, and who is to hear of them.

    It `is_shielded` where it is to leave no mark on buffers and to draw nothing, as the inverse of a net.
    """

    net: nn.Module
    executable: Executable
    given: dict[str, Any]
    observer: Observer | None = None
    log_dets: LogDets | None = None
    is_shielded: bool = False
    values: list[Any] = field(init=False)
    begins: Collection[int] = field(init=False)

    def __post_init__(self) -> None:
        number = self.executable.number
        values = self.values = [None] * self.executable.size
        for name, value in self.given.items():
            if name in number:
                values[number[name]] = value
        self.given = {}
        self.begins = self.executable.begins if autocast_is_on() else ()
        for place in self.begins:
            values[place] = widened(values[place])  # of the inputs; what is made later is, when it is made
        if self.observer is not None:
            for name in self.executable.plan.graph.inputs:
                self.observer.made(name, values[number[name]])

    def __getitem__(self, name: str) -> Any:
        """A value that is there, by name."""
        return self.values[self.executable.number[name]]

    def run(self) -> None:
        """Without gradients."""
        # In evaluation mode there is nothing that threads could disturb, and servers use many.
        in_turn = turn(self.values) if self.net.training else nullcontext()
        for operation in self.executable.operations:
            with in_turn:
                self.evaluate(operation)
            self.free(operation)

    def record(self, compares: bool) -> Tape:
        """With gradients: nodes that are not kept leave handles in place of their saved tensors."""
        executable, values = self.executable, self.values
        tape = Tape(self.net, executable, values, self.observer, compares, self.is_shielded)
        refuse_unrestorable()
        inputs = {number: values[number] for number in executable.inputs}
        for number, value in inputs.items():
            tape.versions[number] = version_of(value)
        lean = self._lean(tape)
        careful: list[NodeEvaluation] = []
        for operation in executable.operations:
            if operation.decision == "invert" and operation.target is not None:
                self._refuse_half(operation, operation.target)
            if operation.decision in ("keep", "wire"):
                if operation.runs_again:
                    tape.shapes[operation.index] = self._shapes(operation)
                with tape.turn:
                    self.evaluate(operation)
                tape.random.state = None
            elif operation.index not in lean or not lean[operation.index].forward(tape, values):
                inlined = None
                if operation.inlines and not (tape.is_shielded or tape.shards):
                    inlined = executable.inlined(operation)
                evaluation = NodeEvaluation(operation, inlined)
                if self.observer is not None:
                    self.observer.evaluated(operation.node)
                with tape.turn:
                    results = evaluation.forward(tape, values, self.log_dets)
                tape.evaluations[operation.index] = evaluation
                careful.append(evaluation)
                self._put(operation, results)
                del results
                if self.observer is not None:
                    self.observer.left(operation.node, tape)
            for number in operation.stored:
                tape.store(number, values[number])
            for number in operation.rebuilt:
                self._note_layout(tape, number)
            if operation.undoes_input is not None:
                self._note_layout(tape, operation.undoes_input)
            self.free(operation)
        silent = [each.operation.node for each in careful if each.saved.is_silent]
        for index, hook in zip(tape.lean_nodes, tape.hooks, strict=True):
            start, end = tape.ends[index]
            if start == end or hook() is None:  # of parameters alone nothing is to come back
                silent.append(executable.operations[index].node)
                tape.kept.pop(index, None)
        replays = tape.replays = executable.replays(frozenset(silent))
        for each in careful:
            if each.saved.is_silent:
                each.forget_results()
                # Where an input that is lent goes, another schedule has its turn.
                if each.operation.node not in replays.schedule.last_at and not (
                    replays.lent and each.operation.gives_again
                ):
                    del tape.evaluations[each.operation.index]  # with the copies of buffers that it holds
        for number, value in inputs.items():
            if number in replays.lent:
                base = value if value._base is None else value._base
                tape.lent[number] = Lent(
                    weakref.ref(base), base is not value, value.shape, value.stride(), value.storage_offset()
                )
            else:
                tape.values[number] = value.detach()
        for number, value in enumerate(tape.values):
            if value is not None and number not in replays.read:
                tape.values[number] = None
        return tape

    def evaluate(self, operation: PlannedOperation) -> None:
        """Run an operation as plain code."""
        if self.observer is not None and operation.node:
            self.observer.evaluated(operation.node)
        inputs = [self.values[number] for number in operation.reads]
        try:
            if self.is_shielded and operation.node:
                results = self._shielded(operation, inputs)
            else:
                results = self._results(operation, inputs)
        except Exception as error:
            if operation.node:
                add_note(error, f"in the forward of {operation.describe()}")
            raise
        self._put(operation, results)

    def free(self, operation: PlannedOperation) -> None:
        """Let go of what nothing later reads."""
        for number in operation.frees:
            self.values[number] = None

    def _lean(self, tape: Tape) -> dict[int, Any]:
        """The nodes that may take the lean path in this forward."""
        if tape.compares or tape.is_shielded or tape.shards or compiles():
            return {}
        if self.observer is not None or self.log_dets is not None or not tape.ambient.is_plain:
            return {}
        executable = self.executable
        if executable.lean is None or not executable.lean.are_clear():
            executable.lean = LeanNodes(executable, self.net.__dict__["_model"])
        tape.lean = executable.lean
        return executable.lean.by_index

    def _results(self, operation: PlannedOperation, inputs: list[Any]) -> tuple[Any, ...]:
        results = operation.function.run(*inputs)
        if operation.law is None or operation.target is None:
            return results
        term, target = results[0] if results else None, self.values[operation.target]
        return (join(self.net, operation, target, term, self.log_dets), *results[1:])

    def _shielded(self, operation: PlannedOperation, inputs: list[Any]) -> tuple[Any, ...]:
        """The results of an operation that leaves no mark on buffers.

        Raises:
            GraphError: it drew random numbers.
        """
        random = RandomStream(devices_of(inputs))
        before = random.before()
        with ModuleState(operation.modules, shielded=True).restored():
            results = self._results(operation, inputs)
        if random.drawn_since(before):
            raise draws(operation)
        return results

    def _shapes(self, operation: PlannedOperation) -> tuple[list[torch.Size], dict[int, Any]]:
        """What a wiring's second run needs to know: the shapes of its inputs, and what is no tensor."""
        values = self.values
        return [values[number].shape for number in operation.tensors], {
            number: values[number] for number in operation.reads if number not in operation.tensors
        }

    def _refuse_half(self, operation: PlannedOperation, number: int) -> None:
        """Hold a stream that is to be rebuilt to the precision that it was traced with."""
        name = self.executable.names[number]
        traced = self.executable.plan.graph.value[name].dtype
        refuse_half(operation.node, name, self.values[number].dtype, traced)

    def _note_layout(self, tape: Tape, number: int) -> None:
        """Note the strides of a value that will be rebuilt."""
        value = self.values[number]
        if value.layout is torch.strided and not value.is_nested:
            stride = value.stride()
            if 0 not in stride or not overlaps(value):
                tape.strides[number] = stride

    def _put(self, operation: PlannedOperation, results: tuple[Any, ...]) -> None:
        values = self.values
        for number, result in zip(operation.makes, results, strict=True):
            values[number] = result
        if self.begins:
            for number in operation.makes:
                if number in self.begins:
                    values[number] = widened(values[number])
        if self.observer is not None:
            for number, result in zip(operation.makes, results, strict=True):
                if isinstance(result, Tensor):
                    self.observer.made(self.executable.names[number], result)
