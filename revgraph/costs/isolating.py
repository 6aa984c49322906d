"""Isolating: one node alone through the engine, forward and backward, as it would run inside its net."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from revgraph.costs.alone import Situation, backward_of, entered, leave, net_of
from revgraph.costs.forms import Form, form_of, tensors_of
from revgraph.costs.recording import HeavyName, Recorder
from revgraph.courses import Course, Event, Work
from revgraph.engine.executable import ReplayStep
from revgraph.engine.forward import Forward
from revgraph.engine.module import ReversibleModule
from revgraph.engine.node_evaluation import NodeEvaluation
from revgraph.engine.observer import Observer
from revgraph.engine.replay import BackwardPass, current_pass, laid_out
from revgraph.engine.tape import Tape
from revgraph.expressions import attribute_at, module_at
from revgraph.graph import Graph, Node
from revgraph.planning.plans import Decision
from revgraph.planning.sources import needs
from revgraph.storages import memory_key
from revgraph.uncollected import uncollected

Way = Literal["again", "rerun", "hold"]


@dataclass(frozen=True, slots=True)
class Recorded:
    """A node's course, with what else shows while it runs.

    That is the forms of its outputs (None for what is no tensor) and of what arrives as gradients at its
    inputs, with the course's labels for storages, and the FLOPs, bytes and names of its forward's heavy
    results.
    """

    course: Course
    outputs: tuple[Form | None, ...] = ()
    arrivals: Mapping[int, Sequence[Form]] = field(default_factory=dict)
    heavy: tuple[tuple[int, int, HeavyName], ...] = ()


def record(
    model: nn.Module, at: Situation, graph: Graph, decision: Decision, results: tuple[int, ...] = ()
) -> Recorded:
    """The course of one node under a decision, with heavy results kept besides."""
    net = net_of(model, at, graph, decision, results)
    recorder = Recorder(at.tensors, _weights(model, at) if decision == "keep" else None)
    watching = _Watching(recorder, at.node)
    try:
        with uncollected(), recorder, torch.enable_grad(), net.watched_by(watching):
            return _run(net, at, decision, recorder, watching)
    finally:
        for tensor in at.tensors:
            tensor.grad = None


def _weights(model: nn.Module, at: Situation) -> dict[int, HeavyName]:
    """By memory, which of the weights that a node's expression names a tensor is."""
    found: dict[int, HeavyName] = {}
    run = at.operation.expression
    for place, path in enumerate(run.module_paths):
        for name, weight in module_at(model, path).named_parameters():
            owner = name.rpartition(".")[0].partition("parametrizations")[0].rstrip(".")
            kind = type(module_at(module_at(model, path), owner)).__name__ if owner else ""
            told = f"{owner} ({kind})" if owner.rpartition(".")[2].isdecimal() else owner
            found.setdefault(memory_key(weight), (place, told))
    for place, path in enumerate(run.attribute_paths, len(run.module_paths)):
        weight = attribute_at(model, path)
        if isinstance(weight, Tensor):
            found.setdefault(memory_key(weight), (place, ""))
    return found


def record_again(model: nn.Module, at: Situation, graph: Graph, way: Way) -> Recorded:
    """The course of a node that is run again by itself, not for its own backward.

    `again` gives an inverted coupling's target back, `rerun` the outputs, and `hold` these and captures: its
    course has the node's backward after that, too.
    """
    node = at.node
    undoes = way == "again"
    net = net_of(model, at, graph, "invert" if undoes else "recompute", again=not undoes)
    recorder = Recorder(at.tensors)
    watching = _Watching(recorder, node, runs_again=True)
    spans: list[int] = []
    try:
        with uncollected(), recorder, torch.enable_grad(), net.watched_by(watching):
            env, inputs = entered(at, recorder)
            forward = Forward(net, net._executable, env, watching)
            forward.record(watching.compares)
            step = net._executable.again(way)
            names = net._executable.names
            held = {number: env.get(names[number], forward.values[number]).detach() for number in step.reads}
            outputs = [forward[name] for name in node.outputs]
            for index, output in enumerate(outputs if undoes else ()):
                recorder.label(output, f"out{index}")
            env.clear()
            forward.values.clear()
            watching.in_backward = True

            def run() -> None:
                spans.append(recorder.now)
                tape = watching.tapes.pop()
                tape.evaluations.update(watching.evaluations)
                watching.evaluations.clear()
                on = _run_again(tape, step, held)
                del tape
                spans.append(recorder.now)
                del on

            leaving = leave(at, recorder, outputs, inputs, before=run) if way == "hold" else None
            del outputs, inputs
            work = Work()
            if leaving is None:
                run()
            else:
                *span, work = backward_of(recorder, at, *leaving)
                spans += span
    finally:
        for tensor in at.tensors:
            tensor.grad = None
    forward, *backward = [
        tuple(event for event in recorder.events(start, end) if event[0] not in ("replay", "done"))
        for start, end in zip(spans[::2], spans[1::2], strict=True)
    ]
    return Recorded(Course(forward, *backward, forward_work=watching.replay_work, backward_work=work))


def _run_again(tape: Tape, step: ReplayStep, held: dict[int, Tensor]) -> BackwardPass:
    """Run a node again on values held for that; the pass, which holds what is captured."""
    on = current_pass(tape)
    for number, value in held.items():
        on.values[number] = value
    held.clear()
    on.execute(step, step.captures)
    for number in (*step.reads, *step.makes):
        on.values[number] = tape.values[number] = None
    return on


def record_wiring(model: nn.Module, at: Situation, outputs: Sequence[Form], backwards: bool) -> Recorded:
    """The course of a wiring that the backward pass runs again: its inputs from its outputs, or forwards.

    The recorded `outputs` are the forms of what it gives. The engine lays out only the values that are asked
    for as the forward's lay; which those are is the plan's matter.
    """
    operation = at.operation
    tensors = {name: form for name, form in at.inputs.items() if isinstance(form, Form)}
    recorder = Recorder(at.tensors)
    labels = ("out", "in") if backwards else ("in", "out")
    with uncollected(), recorder, torch.no_grad():
        given = tensors_of(list(outputs if backwards else tensors.values()))
        for index, tensor in enumerate(given):
            recorder.label(tensor, f"{labels[0]}{index}", told=False)
        start, before = recorder.now, recorder.work
        if backwards:
            assert operation.rearrangement is not None
            shapes = [torch.Size(form.shape) for form in tensors.values()]
            made = list(operation.rearrangement.inverse(model, given, shapes))
        else:
            plain = {**at.inputs, **dict(zip(tensors, given, strict=True))}
            run = operation.expression.run(model, [plain[name] for name in operation.reads])
            made = [thing for thing in run if isinstance(thing, Tensor)]
            del plain, run
        expected = list(tensors.values() if backwards else outputs)
        laid: list[Tensor] = []
        copies: set[str] = set()
        for index, (value, form) in enumerate(zip(made, expected, strict=True)):
            label = f"{labels[1]}{index}"
            if form.layout is torch.strided and not any(
                [step == 0 and size > 1 for step, size in zip(form.stride, form.shape, strict=True)]
            ):
                laid.append(laid_out(value, form.stride))
            else:
                laid.append(value)
            if laid[-1] is not value:
                copies.add(label)
            recorder.label(laid[-1], label)
        forms = tuple(form_of(tensor, recorder.label_of(tensor)) for tensor in laid)
        events = tuple(
            ("laid", *event[1:]) if event[0] == "born" and event[1] in copies else event
            for event in recorder.events(start, recorder.now)
        )
    return Recorded(Course(forward=events, forward_work=recorder.work.minus(before)), forms)


class _Watching(Observer):
    """Marks where a replay begins and ends, and labels what it gives back."""

    compares = False

    def __init__(self, recorder: Recorder, node: Node, runs_again: bool = False) -> None:
        """Of what `runs_again` aside from the schedule, the evaluation is held on to."""
        self.recorder = recorder
        self.node = node
        self.runs_again = runs_again
        self.evaluations: dict[int, NodeEvaluation] = {}
        self.work_before = self.replay_work = Work()
        self.in_backward = False
        self.tapes: list[Tape] = []

    def evaluated(self, node: str) -> None:
        if self.in_backward:
            self.recorder.mark("replay")
            self.work_before = self.recorder.work

    def left(self, node: str, tape: Tape) -> None:
        self.tapes.append(tape)
        if self.runs_again:
            self.evaluations.update(tape.evaluations)
        for evaluation in tape.evaluations.values():
            for _, buffer in evaluation.state.buffers_held():
                self.recorder.note(buffer)

    def rebuilt(self, name: str, value: Tensor) -> None:
        if name == self.node.target:
            self.recorder.label(value, "target")
        else:
            self.recorder.label(value, f"out{self.node.outputs.index(name)}")

    def replayed(self, node: str) -> None:
        self.recorder.mark("done")
        self.replay_work = self.replay_work.plus(self.recorder.work.minus(self.work_before))


def _run(
    net: ReversibleModule, at: Situation, decision: Decision, recorder: Recorder, watching: _Watching
) -> Recorded:
    node = at.node
    env, inputs = entered(at, recorder)
    start, before = recorder.now, recorder.work
    forward = Forward(net, net._executable, env, watching)
    forward.record(watching.compares)
    forward_work, heavy = recorder.work.minus(before), tuple(recorder.heavy)
    outputs = [forward[name] for name in at.operation.makes]
    env.clear()
    forward.values.clear()
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
    leaving = leave(at, recorder, [made[name] for name in node.outputs], inputs)
    graphs = [each.grad_fn for each in made.values() if isinstance(each, Tensor)] if leaving is None else []
    del made, outputs, inputs, given
    watching.tapes.clear()
    turn = recorder.now
    graphs.clear()
    gone = recorder.now
    watching.in_backward = True
    end = started = turn
    work = Work()
    if leaving is not None:
        started, end, work = backward_of(recorder, at, *leaving)
    course = Course(
        forward=(*recorder.events(start, turn), *(("drop", label) for label in lent)),
        backward=_with_needs_dropped(recorder.events(started, end)),
        forward_work=forward_work,
        replay_work=watching.replay_work,
        backward_work=work.minus(watching.replay_work),
        release=tuple(recorder.events(turn, gone)) if leaving is None else (),
    )
    return Recorded(course, forms, dict(recorder.arrivals), heavy)


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
