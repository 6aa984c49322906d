"""Alone: one node as a net of its own, with the tensors that enter it and the gradients that come back."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from revgraph.costs.forms import Entry, Exit, Form, dense, form_of, tensors_of
from revgraph.costs.recording import Recorder
from revgraph.courses import Work
from revgraph.engine.executable import Executable
from revgraph.engine.module import ReversibleModule
from revgraph.graph import Graph, Node, Value
from revgraph.planning.plans import Decision, Plan, Source
from revgraph.planning.sources import sources_of
from revgraph.program import Named, Operation, Program


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


def net_of(
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
        Node("(input)", "input", (), tuple(dict.fromkeys(node.inputs))),
        node,
        Node("(output)", "output", node.outputs, ()),
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
    plan = _plan_of(alone, node, decision, results, again)
    net = ReversibleModule(model, program, plan)
    # Watching the whole model, too, would take long where there are many nodes.
    net._forms.first.made = Executable(model, program, plan, whole=False)
    return net


def _plan_of(alone: Graph, node: Node, decision: Decision, results: tuple[int, ...], again: bool) -> Plan:
    decisions: dict[str, Decision] = {node.name: decision} if node in alone.planned else {}
    stored, sources = sources_of(alone, decisions)
    kept = {node.name: results} if results else {}
    if again:
        sources.update((name, Source("stored")) for name in node.inputs)
        sources.update((name, Source("recomputed", node.name)) for name in node.outputs)
    return Plan(alone, decisions, stored, sources, {}, 0, 0, "", 1.0, results=kept)


def entered(at: Situation, recorder: Recorder) -> tuple[dict[str, Any], list[Tensor]]:
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


def leave(
    at: Situation,
    recorder: Recorder,
    outputs: list[Any],
    inputs: list[Tensor],
    before: Callable[[], None] | None = None,
) -> tuple[Tensor, list[tuple[int, Work]]] | None:
    """A scalar whose backward starts the node's, and log and work once it has; None without any.

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
    starts: list[tuple[int, Work]] = []

    def make() -> list[Tensor]:
        if before is not None:
            before()
        gradients = tensors_of(forms)
        for index, gradient in zip(indices, gradients, strict=True):
            recorder.label(gradient, f"go{index}", told=False)
        adding = tensors_of([form for _, form in firsts])
        for (index, _), first in zip(firsts, adding, strict=True):
            recorder.expect_gradients(index, first)
        starts.append((recorder.now, recorder.work))
        return [*adding, *gradients]

    loss = Exit.apply(make, *(tensor for _, tensor in live), *(output for _, output, _ in roots))
    recorder.leave_out(loss)
    return loss, starts


def backward_of(
    recorder: Recorder, at: Situation, loss: Tensor, starts: list[tuple[int, Work]]
) -> tuple[int, int, Work]:
    """Run the node's backward; between which points of the log it lies, and its work."""
    root = torch.zeros_like(loss)
    recorder.leave_out(root)
    loss.backward(root)
    ((started, before),) = starts
    end, work = recorder.now, recorder.work.minus(before)
    for tensor in at.tensors:
        if tensor.grad is not None:
            recorder.leave_out(tensor.grad)
    return started, end, work
