"""The reversible module: an ordinary `nn.Module` that runs a program under a plan."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from revgraph.errors import PlanError, add_note
from revgraph.expressions import map_leaves
from revgraph.graph import Graph
from revgraph.parts import Cost
from revgraph.planning import Plan, Source, plan
from revgraph.program import Named, Program
from revgraph.runtime.capturing import Handle
from revgraph.runtime.context import devices_of, widened
from revgraph.runtime.inverting import invert
from revgraph.runtime.probe import Probe
from revgraph.runtime.replaying import NodeReplay, Rerun, WiringReplay
from revgraph.runtime.script import Script, Step, write_script
from revgraph.runtime.sharding import advice_on_shards
from revgraph.runtime.tape import Replay, Slot, Tape
from revgraph.runtime.turns import turn
from revgraph.runtime.uncompiled import compiles, uncompiled
from revgraph.runtime.watching import DriftWatch
from revgraph.tracing.arguments import bind, read_form

FIRST_COMPARED, COMPARED_EVERY = 8, 16


class ReversibleModule(nn.Module):
    """A model's modules under their own names, run as a graph of couplings, boundaries and wiring.

    Parameters, buffers and submodules are the model's own objects, so `state_dict` has the model's keys and
    training one trains the other. `plan` says what is stored, inverted and recomputed: that of the least
    peak, made when it is first needed, or one that is assigned, from the next forward on. Get a reversible
    module from `rg.trace` or `rg.load`.
    """

    def __init__(self, model: nn.Module, program: Program, chosen: Plan | None = None) -> None:
        super().__init__()
        for table in SHARED:
            self.__dict__[table] = model.__dict__[table]
        self.__dict__["_model"] = model  # not a submodule: its parameters are this module's own
        self.training = model.training
        self._is_full_backward_hook = model._is_full_backward_hook
        self._program = program
        self._plan = chosen
        self._forwards = 0
        self._written: Script | None = None
        self._probe: Probe | None = None
        self._watch: DriftWatch | None = None

    def train(self, mode: bool = True) -> ReversibleModule:
        """Set training or evaluation mode, of the model too."""
        self.__dict__["_model"].training = mode
        return super().train(mode)

    @property
    def graph(self) -> Graph:
        """The network as data."""
        return self._program.graph

    @property
    def plan(self) -> Plan:
        """What is stored, inverted and recomputed; that of the least peak until another one is assigned."""
        if self._plan is None:
            self._plan = plan(self.graph)
        return self._plan

    @plan.setter
    def plan(self, value: Plan) -> None:
        if not isinstance(value, Plan):
            raise PlanError(
                f"a net's plan is a revgraph.Plan, not a {type(value).__name__}: see revgraph.plan"
            )
        if value.graph != self.graph:
            raise PlanError(
                f"this plan is for another graph ({value.graph.name!r}, {len(value.graph.nodes)} nodes; "
                f"the net's is {self.graph.name!r}, {len(self.graph.nodes)} nodes). Make one from net.graph."
            )
        self._plan = value
        self._forwards = 0
        self._written = None

    @property
    def _script(self) -> Script:
        if self._written is None:
            self._written = write_script(self._program, self.plan)
        return self._written

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if compiles():
            return uncompiled(self._forward, *args, **kwargs)
        return self._forward(*args, **kwargs)

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        env: dict[str, Any] = {}
        given = bind(self._program.signature, args, kwargs)
        read_form(self._program.arguments, given, "the call", env)
        for name in self._script.begun_inputs:
            env[name] = widened(env[name])
        if self._probe is not None:
            for name in self.graph.inputs:
                self._probe.made(name, env[name])
        try:
            if torch.is_grad_enabled() and not is_transformed():
                with self._drift_watched():
                    self._record(env)
            else:
                self._run(env)
        except Exception as error:
            called = (path for step in self._script.steps for path in step.modules)
            if advice := advice_on_shards(self, called):
                add_note(error, advice)
            raise
        return map_leaves(
            lambda leaf: env[leaf.name] if isinstance(leaf, Named) else leaf, self._program.results
        )

    def watch_drift(self, every: int = 100, limit: float = 1e-3) -> None:
        """Warn while training when rebuilt values drift: a `DriftWarning` that names the node.

        In every so many forwards that record, a few elements of a few values are remembered and compared when
        the backward has rebuilt them. `limit` is the relative error from which on to warn.

        Raises:
            PlanError: `every` is no whole number above 0, or `limit` not above 0.
        """
        self._watch = DriftWatch(every, limit)

    def _drift_watched(self) -> AbstractContextManager[None]:
        watch = None if self._watch is None or self._probe is not None else self._watch.next(self.plan)
        return nullcontext() if watch is None else self.watched_by(watch)

    def stop_watching_drift(self) -> None:
        """Compare nothing any more."""
        self._watch = None

    def adopt(self, graph: Graph) -> None:
        """Take a graph of the same nodes and values with other costs, such as estimates, for the net's own.

        Raises:
            PlanError: it has other nodes or values.
        """
        bare = [
            [replace(node, cost=Cost()) for node in each.nodes] + list(each.values)
            for each in (graph, self.graph)
        ]
        if bare[0] != bare[1]:
            raise PlanError(
                f"graph {graph.name!r} is not the net's own with other costs: nodes or values differ"
            )
        self._program = replace(self._program, graph=graph)
        if self._plan is not None:
            self._plan = replace(self._plan, graph=graph)
        self._written = None

    def inverse(self, *outputs: Any, **known: Any) -> Any:
        """The inputs that give these outputs.

        `outputs` are in the form that the forward returns them (a tuple as one argument each); `known` gives
        inputs that cannot follow from outputs (a mask, a condition) by their names. Returns the remaining
        inputs: the one, or a tuple in the order of the forward's parameters.

        Raises:
            GraphError: a boundary or a value that is not given lies on the way; the text names it.
        """
        with turn([]):
            return invert(self, self._program, outputs, known)

    def _run(self, env: dict[str, Any]) -> None:
        """As plain code: every value goes as soon as nothing later reads it, except as autograd holds it."""
        # In evaluation mode there is nothing that threads could disturb, and servers use many.
        in_turn = turn(devices_of(list(env.values()))) if self.training else nullcontext()
        for step in self._script.steps:
            with in_turn:
                self._evaluate(step, env)
            for name in step.frees:
                del env[name]

    def _record(self, env: dict[str, Any]) -> None:
        """With gradients: nodes that are not kept leave a replay in place of their saved tensors."""
        script = self._script
        tape = Tape(self, list(env.values()), script, self._probe, self._compares())
        self._forwards += 1
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
                    self._evaluate(step, env)
                tape.random.state = None
            else:
                own = NodeReplay(tape, step)
                replays = [own, Rerun(own.evaluation)] if "recomputed" in step.gives else [own]
                self._tell_evaluated(step)
                with tape.turn:
                    results = own.forward(env)
                self._put(step, env, results)
                del results
            self._track(step, env, slots)
            for replay in replays:
                self._connect(replay, slots)
                if self._probe is not None:
                    self._probe.left(step.node, replay)
                if isinstance(replay, NodeReplay):
                    handles.append((step.node, replay.evaluation.handle))
            for name in step.frees:
                del env[name]
        # A node whose handles are gone, or that left none, is nothing that autograd will ask for.
        tape.uses = script.uses(frozenset(node for node, ref in handles if ref is None or ref() is None))

    def _compares(self) -> bool:
        """Whether this forward is one of those that replays are compared with, which takes time."""
        if self._probe is not None:
            return self._probe.compares
        return self._forwards < FIRST_COMPARED or self._forwards % COMPARED_EVERY == 0

    def _track(self, step: Step, env: dict[str, Any], slots: dict[str, Slot]) -> None:
        for name in step.tracked:
            slots[name] = Slot(name)
            if name in step.stored:
                slots[name].store(env[name])

    def _connect(self, replay: Replay, slots: dict[str, Slot]) -> None:
        """Give a replay the slots that it reads and may fill, and itself to those that it is to fill."""
        step = replay.step
        replay.needs = tuple([slots[name] for name in replay.reads])
        replay.gives = {name: weakref.ref(slots[name]) for name in replay.makes if name in slots}
        replay.is_ready = True
        for name in replay.gives:
            if self.plan.sources.get(name) == Source(replay.how, step.node):
                slots[name].maker = replay

    def _evaluate(self, step: Step, env: dict[str, Any]) -> None:
        """Run a step as plain code."""
        self._tell_evaluated(step)
        inputs = [env[name] for name in step.reads]
        try:
            results = step.expression.run(self, inputs)
            if step.law is not None and step.target is not None:
                results = (step.law.couple(self, env[step.target], results[0] if results else None),)
        except Exception as error:
            if step.node:
                add_note(error, f"in the forward of {step.describe()}")
            raise
        self._put(step, env, results)

    @contextmanager
    def watched_by(self, probe: Probe) -> Iterator[None]:
        """Tell a probe what happens in this net's steps, forward and backward."""
        before, self._probe = self._probe, probe
        try:
            yield
        finally:
            self._probe = before

    def _put(self, step: Step, env: dict[str, Any], results: tuple[Any, ...]) -> None:
        env.update(zip(step.makes, results, strict=True))
        for name in step.begins:
            env[name] = widened(env[name])
        if self._probe is not None:
            for name, value in zip(step.makes, results, strict=True):
                if isinstance(value, Tensor):
                    self._probe.made(name, value)

    def _tell_evaluated(self, step: Step) -> None:
        if self._probe is not None and step.node:
            self._probe.evaluated(step.node)


def is_transformed() -> bool:
    """Whether a transform of torch.func is running, or a forward-mode derivative.

    Under the one autograd takes no hooks for saved tensors, and with the other it saves those of tangents.
    """
    functorch: Any = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
    return functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


SHARED = (
    "_parameters", "_buffers", "_non_persistent_buffers_set", "_modules", "_forward_hooks",
    "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks",
    "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
)  # fmt: skip
