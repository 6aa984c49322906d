"""Replays: what a backward pass does again, to give autograd its saved tensors and itself their values."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

import torch
from torch import Tensor

from revgraph.runtime.capturing import Capture
from revgraph.runtime.deriving import Pass, Replay
from revgraph.runtime.evaluating import NOTHING, Evaluation
from revgraph.runtime.log_dets import LogDets
from revgraph.runtime.script import Step, modules_of
from revgraph.runtime.sharding import resharded
from revgraph.runtime.tape import Tape

PROOFS_OF_DRIFT = 8


class NodeReplay(Replay):
    """A node's own replay (lines 1 to 3 of Algorithm 1, Gomez et al. 2017).

    Its function runs once more on rebuilt inputs, which gives all its saved tensors, and where the node is
    inverted its target `x = y (-) F(others)`.
    """

    __slots__ = ("evaluation",)

    def __init__(self, tape: Tape, step: Step) -> None:
        self.tape = tape
        self.step = step
        self.how = "inverted"
        self.reads = step.needs
        self.makes = (step.target,) if step.decision == "invert" and step.target is not None else ()
        self.evaluation = Evaluation(tape, step)
        self.is_ready = False

    def forward(self, env: dict[str, Any], log_dets: LogDets | None) -> tuple[Any, ...]:
        """The node's results, with a handle in place of each tensor that autograd saves."""
        return self.evaluation.forward(env, self, log_dets)

    def run(self, on: Pass, wanted: Set[str]) -> dict[str, Tensor]:
        step = self.step
        captures = on.stage == step.node or step.index not in on.captured
        if step.undoes_input is None:
            return _repeat(self, self.evaluation, on, wanted, captures)
        made = _repeat(self, self.evaluation, on, {*wanted, step.undoes_input}, captures)
        return {name: made[name] for name in wanted}


class Rerun(Replay):
    """A node run again for its outputs, and in the stage that it is held from for its own backward too."""

    __slots__ = ("evaluation",)

    def __init__(self, evaluation: Evaluation) -> None:
        self.tape = evaluation.tape
        self.step = evaluation.step
        self.how = "recomputed"
        self.reads, self.makes = evaluation.step.tensors, evaluation.step.makes
        self.evaluation = evaluation

    def run(self, on: Pass, wanted: Set[str]) -> dict[str, Tensor]:
        is_held = on.stage == self.step.held_from and self.evaluation.saved.count > 0
        return _repeat(self, self.evaluation, on, wanted, is_held and self.step.index not in on.captured)


class WiringReplay(Replay):
    """One wiring of one forward, run backwards (inputs from outputs) or forwards again.

    `plain` are the numbers that it read besides tensors, `shapes` those of its tensor inputs.
    """

    __slots__ = ("plain", "shapes")

    def __init__(self, tape: Tape, step: Step, backwards: bool, env: dict[str, Any]) -> None:
        self.tape = tape
        self.step = step
        self.how = "rewired" if backwards else "wired"
        self.reads, self.makes = (step.makes, step.tensors) if backwards else (step.tensors, step.makes)
        self.shapes = [env[name].shape for name in step.tensors]
        self.plain = {name: env[name] for name in step.reads if name not in step.tensors}

    def run(self, on: Pass, wanted: Set[str]) -> dict[str, Tensor]:
        step = self.step
        given = {slot.name: on.get(slot) for slot in self.needs}
        with torch.no_grad():
            if self.how == "rewired":
                assert step.rearrangement is not None
                made = step.rearrangement.inverse(self.tape.net, list(given.values()), self.shapes)
            else:
                inputs = [given[name] if name in given else self.plain[name] for name in step.reads]
                made = step.expression.run(self.tape.net, inputs)
        on.count(step.index, self.how, given)
        return {name: value for name, value in zip(self.makes, made, strict=True) if name in wanted}


def _repeat(
    replay: Replay, evaluation: Evaluation, on: Pass, wanted: Set[str], captures: bool
) -> dict[str, Tensor]:
    """Evaluate a node again; where that captures, it is its own replay in this pass."""
    step, probe = replay.step, replay.tape.probe
    capture = Capture(step, evaluation.saved, captures)
    given = {slot.name: on.get(slot) for slot in replay.needs}
    shared = resharded(modules_of(replay.tape.net, step)) if replay.tape.shards else NOTHING
    with replay.tape.turn, shared:
        made = evaluation.again(given, capture, wanted, uses_up=captures and on.frees_graph)
    if capture.departs:
        _suspect(replay, evaluation, capture, on, given, wanted)
    del given
    if captures:
        capture.check()
        on.captured[step.index] = capture.tensors
        on.count(step.index, "own", step.needs)
    if probe is not None:
        for name, value in made.items():
            probe.rebuilt(name, value)
        probe.replayed(step.node)
    return made


def _suspect(
    replay: Replay,
    evaluation: Evaluation,
    capture: Capture,
    on: Pass,
    given: dict[str, Tensor],
    wanted: Set[str],
) -> None:
    """Refuse a replay whose values depart from its forward's, unless they do because its inputs do.

    On the forward's own values they must not. On values with rounding errors the node runs once more: what
    differs from itself is not deterministic, and what does not has drifted. A node that often proves to drift
    is left alone.
    """
    step, drifts = replay.step, replay.tape.script.drifts
    if all(on.is_exact(slot) for slot in replay.needs if slot.name in step.reads):
        capture.refuse_values()
    if drifts[step.index] < PROOFS_OF_DRIFT:
        again = Capture(step, evaluation.saved, capture.records, capture.samples)
        with replay.tape.turn:
            evaluation.again(given, again, wanted, uses_up=False)
        if again.departs:
            capture.refuse_values()
        drifts[step.index] += 1
