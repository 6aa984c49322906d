"""Running: one forward of a net under its script."""

from __future__ import annotations

import weakref
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from revgraph.errors import add_note
from revgraph.planning import Source
from revgraph.runtime.capturing import Handle
from revgraph.runtime.context import devices_of, widened
from revgraph.runtime.log_dets import LogDets, join
from revgraph.runtime.probe import Probe
from revgraph.runtime.replaying import NodeReplay, Rerun, WiringReplay
from revgraph.runtime.script import Script, Step
from revgraph.runtime.tape import Replay, Slot, Tape
from revgraph.runtime.turns import turn


@dataclass(slots=True)
class Running:
    """A forward: the values that are there by now, by name, and who is to hear of them."""

    net: nn.Module
    script: Script
    env: dict[str, Any]
    probe: Probe | None = None
    log_dets: LogDets | None = None

    def begin(self) -> None:
        """Take the inputs in the form that streams have, and tell the probe."""
        for name in self.script.begun_inputs:
            self.env[name] = widened(self.env[name])
        if self.probe is not None:
            for name in self.script.plan.graph.inputs:
                self.probe.made(name, self.env[name])

    def run(self) -> None:
        """As plain code: every value goes as soon as nothing later reads it, except as autograd holds it."""
        # In evaluation mode there is nothing that threads could disturb, and servers use many.
        in_turn = turn(devices_of(list(self.env.values()))) if self.net.training else nullcontext()
        for step in self.script.steps:
            with in_turn:
                self.evaluate(step)
            self.free(step)

    def record(self, compares: bool) -> None:
        """With gradients: nodes that are not kept leave a replay in place of their saved tensors."""
        script, env = self.script, self.env
        tape = Tape(self.net, list(env.values()), script, self.probe, compares)
        handles: list[tuple[str, weakref.ref[Handle] | None]] = []
        slots: dict[str, Slot] = {}
        for name in script.tracked_inputs:
            slots[name] = Slot(name)
            slots[name].store(env[name])
        for step in script.steps:
            replays: list[Replay]
            if step.decision in ("keep", "wire"):
                replays = [WiringReplay(tape, step, way == "rewired", env) for way in step.gives]
                with tape.turn:
                    self.evaluate(step)
                tape.random.state = None
            else:
                own = NodeReplay(tape, step)
                replays = [own, Rerun(own.evaluation)] if "recomputed" in step.gives else [own]
                self._tell_evaluated(step)
                with tape.turn:
                    results = own.forward(env, self.log_dets)
                self._put(step, results)
                del results
            self._track(step, slots)
            for replay in replays:
                self._connect(replay, slots)
                if self.probe is not None:
                    self.probe.left(step.node, replay)
                if isinstance(replay, NodeReplay):
                    handles.append((step.node, replay.evaluation.handle))
            self.free(step)
        # A node whose handles are gone, or that left none, is nothing that autograd will ask for.
        tape.uses = script.uses(frozenset(node for node, ref in handles if ref is None or ref() is None))

    def evaluate(self, step: Step) -> None:
        """Run a step as plain code."""
        self._tell_evaluated(step)
        inputs = [self.env[name] for name in step.reads]
        try:
            results = step.expression.run(self.net, inputs)
            if step.law is not None and step.target is not None:
                term = results[0] if results else None
                results = (join(self.net, step, self.env[step.target], term, self.log_dets),)
        except Exception as error:
            if step.node:
                add_note(error, f"in the forward of {step.describe()}")
            raise
        self._put(step, results)

    def free(self, step: Step) -> None:
        """Let go of what nothing later reads."""
        for name in step.frees:
            del self.env[name]

    def _track(self, step: Step, slots: dict[str, Slot]) -> None:
        for name in step.tracked:
            slots[name] = Slot(name)
            if name in step.stored:
                slots[name].store(self.env[name])

    def _connect(self, replay: Replay, slots: dict[str, Slot]) -> None:
        """Give a replay the slots that it reads and may fill, and itself to those that it is to fill."""
        step = replay.step
        replay.needs = tuple([slots[name] for name in replay.reads])
        replay.gives = {name: weakref.ref(slots[name]) for name in replay.makes if name in slots}
        replay.is_ready = True
        for name in replay.gives:
            if self.script.plan.sources.get(name) == Source(replay.how, step.node):
                slots[name].maker = replay

    def _put(self, step: Step, results: tuple[Any, ...]) -> None:
        self.env.update(zip(step.makes, results, strict=True))
        for name in step.begins:
            self.env[name] = widened(self.env[name])
        if self.probe is not None:
            for name, value in zip(step.makes, results, strict=True):
                if isinstance(value, Tensor):
                    self.probe.made(name, value)

    def _tell_evaluated(self, step: Step) -> None:
        if self.probe is not None and step.node:
            self.probe.evaluated(step.node)
