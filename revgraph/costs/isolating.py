"""Isolating: one node alone through the engine, forward and backward, as it would run inside its net."""

from __future__ import annotations

import gc
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from revgraph.costs.forms import Entry, Exit, Form, dense, form_of, tensors_of
from revgraph.costs.recording import Recorder
from revgraph.courses import Course, Event
from revgraph.graph import Graph, Node, Value
from revgraph.planning.plans import Decision, Plan, Source
from revgraph.planning.sources import needs, sources_of
from revgraph.program import Named, Operation, Program
from revgraph.runtime.module import ReversibleModule
from revgraph.runtime.probe import Probe
from revgraph.runtime.tape import Pass, Replay

LATER = "a later stage"
Way = Literal["undo", "again", "rerun", "hold"]


@dataclass(frozen=True, slots=True)
class Situation:
    """A node as it stands in its net.

    `inputs` are what it reads, by name (a form, or what is no tensor); `gradients` the forms of its outputs'
    gradients, None for an output that gets none; `tensors` the model's own that it uses, `shared` those of
    them that other nodes use too.
    """

    operation: Operation
    node: Node
    inputs: Mapping[str, Any]
    gradients: tuple[Form | None, ...] = ()
    shared: tuple[Tensor, ...] = ()
    tensors: tuple[Tensor, ...] = ()


@dataclass(frozen=True, slots=True)
class Recorded:
    """A node's course, with what else shows while it runs.

    That is the forms of its outputs (None for what is no tensor) and of what arrives as gradients at its
    inputs, with the course's labels for storages, and the FLOPs and bytes of its forward's heavy results.
    """

    course: Course
    outputs: tuple[Form | None, ...] = ()
    arrivals: Mapping[int, Sequence[Form]] = field(default_factory=dict)
    heavy: tuple[tuple[int, int], ...] = ()


def record(
    model: nn.Module, at: Situation, graph: Graph, decision: Decision, results: tuple[int, ...] = ()
) -> Recorded:
    """The course of one node under a decision, with heavy results kept besides."""
    net = _net_of(model, at, graph, decision, results)
    recorder = Recorder(at.tensors)
    watching = _Watching(recorder, at.node)
    try:
        with _uncollected(), recorder, torch.enable_grad(), net.watched_by(watching):
            return _run(net, at, decision, recorder, watching)
    finally:
        for tensor in at.tensors:
            tensor.grad = None


def record_again(model: nn.Module, at: Situation, graph: Graph, way: Way) -> Recorded:
    """The course of a node that is run again by itself, not for its own backward.

    `undo` gives an inverted coupling's target back and captures, `again` does so without capturing; `rerun`
    gives the outputs again, and `hold` captures besides: its course has the node's backward after that, too.
    """
    node = at.node
    undoes = way in ("undo", "again")
    net = _net_of(model, at, graph, "invert" if undoes else "recompute", again=not undoes)
    recorder = Recorder(at.tensors)
    watching = _Watching(recorder, node)
    spans: list[int] = []
    try:
        with _uncollected(), recorder, torch.enable_grad(), net.watched_by(watching):
            env, inputs = _inputs(at, recorder)
            net._record(env)
            outputs = [env[name] for name in node.outputs]
            for index, output in enumerate(outputs if undoes else ()):
                recorder.label(output, f"out{index}")
            env.clear()
            watching.in_backward = True

            def run() -> None:
                spans.append(recorder.now)
                on = _run_again(watching, way)
                spans.append(recorder.now)
                del on

            leaving = _leave(at, recorder, outputs, inputs, before=run) if way == "hold" else None
            del outputs, inputs
            flops = recorder.flops
            if leaving is None:
                run()
            else:
                spans += _backward(recorder, at, *leaving)
    finally:
        for tensor in at.tensors:
            tensor.grad = None
    forward, *backward = [
        tuple(event for event in recorder.events(start, end) if event[0] not in ("replay", "done"))
        for start, end in zip(spans[::2], spans[1::2], strict=True)
    ]
    after = recorder.flops - flops - watching.replay_flops
    return Recorded(Course(forward, *backward, flops=watching.replay_flops, backward_flops=after))


def _run_again(watching: _Watching, way: Way) -> Pass:
    """Run the last replay that the net left; the pass, which holds what is captured to its end."""
    replay = watching.replays[-1]
    watching.replays.clear()
    on = replay.tape.current_pass()
    on.stage = LATER if way == "hold" else ""
    if way == "again":
        on.captured[replay.step.index] = []
    made = replay.run(on, set(replay.makes))
    made.clear()
    for slot in replay.needs:
        slot.release()
    return on


def record_wiring(model: nn.Module, at: Situation, outputs: Sequence[Form], backwards: bool) -> Recorded:
    """The course of a wiring that the backward pass runs again: its inputs from its outputs, or forwards.

    The recorded `outputs` are the forms of what it gives.
    """
    operation = at.operation
    tensors = {name: form for name, form in at.inputs.items() if isinstance(form, Form)}
    recorder = Recorder(at.tensors)
    labels = ("out", "in") if backwards else ("in", "out")
    with _uncollected(), recorder, torch.no_grad():
        given = tensors_of(list(outputs if backwards else tensors.values()))
        for index, tensor in enumerate(given):
            recorder.label(tensor, f"{labels[0]}{index}", told=False)
        start = recorder.now
        if backwards:
            assert operation.rearrangement is not None
            shapes = [torch.Size(form.shape) for form in tensors.values()]
            made = list(operation.rearrangement.inverse(model, given, shapes))
        else:
            plain = {**at.inputs, **dict(zip(tensors, given, strict=True))}
            run = operation.expression.run(model, [plain[name] for name in operation.reads])
            made = [thing for thing in run if isinstance(thing, Tensor)]
            del plain, run
        for index, tensor in enumerate(made):
            recorder.label(tensor, f"{labels[1]}{index}")
        forms = tuple(form_of(tensor, recorder.label_of(tensor)) for tensor in made)
        events = tuple(recorder.events(start, recorder.now))
    return Recorded(Course(forward=events), forms)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Run without the garbage collector: storages go when nothing refers to them, as in measuring."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


class _Watching(Probe):
    """Marks where a replay begins and ends, and labels what it gives back."""

    compares = False

    def __init__(self, recorder: Recorder, node: Node) -> None:
        self.recorder = recorder
        self.node = node
        self.flops_before = 0
        self.replay_flops = 0
        self.in_backward = False
        self.replays: list[Replay] = []

    def evaluated(self, node: str) -> None:
        if self.in_backward:
            self.recorder.mark("replay")
            self.flops_before = self.recorder.flops

    def left(self, node: str, replay: Replay) -> None:
        self.replays.append(replay)

    def rebuilt(self, name: str, value: Tensor) -> None:
        if name == self.node.target:
            self.recorder.label(value, "target")
        else:
            self.recorder.label(value, f"out{self.node.outputs.index(name)}")

    def replayed(self, node: str) -> None:
        self.recorder.mark("done")
        self.replay_flops += self.recorder.flops - self.flops_before


def _net_of(
    model: nn.Module,
    at: Situation,
    graph: Graph,
    decision: Decision,
    results: tuple[int, ...] = (),
    again: bool = False,
) -> ReversibleModule:
    """A net of this node alone, under a plan with this decision, where it can be run `again` if need be."""
    node = at.node
    names = dict.fromkeys((*node.inputs, *node.outputs))
    values = [graph.value.get(name) or Value(name, (), "float32", 4, name) for name in names]
    nodes = (
        Node("input", "input", (), tuple(dict.fromkeys(node.inputs))),
        node,
        Node("output", "output", node.outputs, ()),
    )
    alone = Graph(nodes, tuple(values), node.name)
    program = Program(
        graph=alone,
        operations=(at.operation,),
        arguments={},
        results=tuple(Named(name) for name in at.operation.makes),
        numbers={},
        differentiable=frozenset(),
        signature=inspect.Signature(),
    )
    return ReversibleModule(model, program, _plan_of(alone, node, decision, results, again))


def _plan_of(alone: Graph, node: Node, decision: Decision, results: tuple[int, ...], again: bool) -> Plan:
    decisions: dict[str, Decision] = {node.name: decision} if node in alone.planned else {}
    stored, sources = sources_of(alone, decisions)
    kept = {node.name: results} if results else {}
    holds = {node.name: LATER} if again else {}
    if again:
        sources.update((name, Source("stored")) for name in node.inputs)
        sources.update((name, Source("recomputed", node.name)) for name in node.outputs)
    return Plan(alone, decisions, stored, sources, {}, 0, 0, "", 1.0, results=kept, holds=holds)


def _run(
    net: ReversibleModule, at: Situation, decision: Decision, recorder: Recorder, watching: _Watching
) -> Recorded:
    node = at.node
    env, inputs = _inputs(at, recorder)
    start = recorder.now
    net._record(env)
    flops, heavy = recorder.flops, tuple(recorder.heavy)
    outputs = [env.pop(name) for name in at.operation.makes]
    env.clear()
    made = dict(zip(at.operation.makes, outputs, strict=True))
    for index, name in enumerate(node.outputs):
        recorder.label(made[name], f"out{index}")
        for position in [number for number, each in enumerate(inputs) if made[name] is each]:
            recorder.mark("identity", index, position)
    forms = tuple(
        form_of(made[name], recorder.label_of(made[name])) if isinstance(made[name], Tensor) else None
        for name in node.outputs
    )
    # The tape holds what the replay will read; that is no matter of the node itself.
    given = {**dict(zip(node.inputs, inputs, strict=True)), **made}
    lent = dict.fromkeys(label for name in needs(node, decision) for label in recorder.labels_of(given[name]))
    leaving = _leave(at, recorder, [made[name] for name in node.outputs], inputs)
    del made, outputs, inputs, given
    watching.replays.clear()
    turn = recorder.now
    watching.in_backward = True
    end = started = turn
    if leaving is not None:
        started, end = _backward(recorder, at, *leaving)
    course = Course(
        forward=(*recorder.events(start, turn), *(("drop", label) for label in lent)),
        backward=_with_needs_dropped(recorder.events(started, end)),
        flops=flops,
        replay_flops=watching.replay_flops,
        backward_flops=recorder.flops - flops - watching.replay_flops,
    )
    return Recorded(course, forms, dict(recorder.arrivals), heavy)


def _backward(recorder: Recorder, at: Situation, loss: Tensor, starts: list[int]) -> tuple[int, int]:
    """Run the node's backward; between which points of the log it lies."""
    root = torch.zeros_like(loss)
    recorder.leave_out(root)
    loss.backward(root)
    (started,) = starts
    end = recorder.now
    for tensor in at.tensors:
        if tensor.grad is not None:
            recorder.leave_out(tensor.grad)
    return started, end


def _inputs(at: Situation, recorder: Recorder) -> tuple[dict[str, Any], list[Tensor]]:
    """The node's inputs by name, and its tensors in the order of the node's inputs."""
    forms = {name: form for name, form in at.inputs.items() if isinstance(form, Form)}
    live = {name: form for name, form in forms.items() if form.requires_grad}
    env = {name: thing for name, thing in at.inputs.items() if not isinstance(thing, Form)}
    made: dict[str, Tensor] = {}

    def make() -> list[Tensor]:
        made.update(zip(forms, tensors_of(list(forms.values())), strict=True))
        return [made[name] for name in live]

    if live:
        root = torch.zeros((), requires_grad=True)
        recorder.leave_out(root)
        entered = Entry.apply(root, make)
        made.update(zip(live, entered, strict=True))
    else:
        make()
    inputs = [made[name] for name in at.node.inputs]
    for index, tensor in enumerate(inputs):
        recorder.label(tensor, f"in{index}", told=False)
    env.update(made)
    return env, inputs


def _leave(
    at: Situation,
    recorder: Recorder,
    outputs: list[Any],
    inputs: list[Tensor],
    before: Callable[[], None] | None = None,
) -> tuple[Tensor, list[int]] | None:
    """A scalar whose backward starts the node's, and where the log stands once it has; None without any.

    What is to be done `before` is done in that backward, ahead of the gradients.
    """
    roots = [
        (index, output, form)
        for index, (output, form) in enumerate(zip(outputs, at.gradients, strict=False))
        if form is not None and output.requires_grad
    ]
    if not roots:
        return None
    shared = dict.fromkeys(at.shared)
    live = [(index, tensor) for index, tensor in enumerate((*inputs, *shared)) if tensor.requires_grad]
    firsts = [(index, dense(form_of(tensor, ("first", index)), ("first", index))) for index, tensor in live]
    indices = [index for index, _, _ in roots]
    forms = [form for _, _, form in roots]
    starts: list[int] = []

    def make() -> list[Tensor]:
        if before is not None:
            before()
        gradients = tensors_of(forms)
        for index, gradient in zip(indices, gradients, strict=True):
            recorder.label(gradient, f"go{index}", told=False)
        adding = tensors_of([form for _, form in firsts])
        for (index, _), first in zip(firsts, adding, strict=True):
            recorder.expect_gradients(index, first)
        starts.append(recorder.now)
        return [*adding, *gradients]

    loss = Exit.apply(make, *(tensor for _, tensor in live), *(output for _, output, _ in roots))
    recorder.leave_out(loss)
    return loss, starts


def _with_needs_dropped(events: Iterable[Event]) -> tuple[Event, ...]:
    """The events with the end of the replay after what it lets go of: the tape's hold on what it read ends
    with it."""
    before: list[Event] = []
    after: list[Event] = []
    for event in events:
        if event == ("done",):
            after.append(event)
        elif (
            after and event[0] == "drop" and len(after) == 1 and event[1].startswith(("in", "out", "target"))
        ):
            before.append(event)
        else:
            (after if after else before).append(event)
    return (*before, *after)
