"""The reversible module: an ordinary `nn.Module` that runs a program under a plan."""

from __future__ import annotations

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
from revgraph.planning import Plan, plan
from revgraph.program import Named, Program
from revgraph.runtime.inverting import invert
from revgraph.runtime.log_dets import LogDets, begin
from revgraph.runtime.probe import Probe
from revgraph.runtime.running import Running
from revgraph.runtime.script import Script, write_script
from revgraph.runtime.sharding import advice_on_shards
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

    def with_log_det(self, *args: Any, **kwargs: Any) -> tuple[Any, Tensor]:
        """The outputs y, and log |det dy/dx| per sample ([N]), where x are the inputs on streams.

        For normalizing flows: gradients run through both, under the net's plan. The net must be a bijection
        from the inputs on its streams to its outputs; other inputs are conditions. Wiring is taken to
        preserve volume. Forward hooks of the net are not called.

        Raises:
            GraphError: the net is no such bijection, or a coupling does not say how it changes volume.

        Example:
            >>> import torch, revgraph as rg
            >>> class Flow(torch.nn.Module):
            ...     def __init__(self):
            ...         super().__init__()
            ...         self.block = rg.Affine(torch.nn.Linear(2, 4), torch.nn.Linear(2, 4))
            ...     def forward(self, x1, x2):
            ...         return self.block(x1, x2)
            >>> net = rg.trace(Flow(), torch.zeros(3, 2), torch.zeros(3, 2))
            >>> (y1, y2), log_det = net.with_log_det(torch.ones(3, 2), torch.ones(3, 2))
            >>> log_det.shape
            torch.Size([3])
        """
        if compiles():
            return uncompiled(self._forward_with_log_det, *args, **kwargs)
        return self._forward_with_log_det(*args, **kwargs)

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._ran(self._given(args, kwargs), None)

    def _forward_with_log_det(self, *args: Any, **kwargs: Any) -> tuple[Any, Tensor]:
        env = self._given(args, kwargs)
        log_dets = begin(self, self._program, env)
        return self._ran(env, log_dets), log_dets.total

    def _given(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The values and numbers that a call gives, by name."""
        env: dict[str, Any] = {}
        given = bind(self._program.signature, args, kwargs)
        read_form(self._program.arguments, given, "the call", env)
        return env

    def _ran(self, env: dict[str, Any], log_dets: LogDets | None) -> Any:
        """What the net returns for these inputs."""
        running = Running(self, self._script, env, self._probe, log_dets)
        running.begin()
        try:
            if torch.is_grad_enabled() and not is_transformed():
                with self._drift_watched():
                    running.probe = self._probe
                    running.record(self._compares())
            else:
                running.run()
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

    def _compares(self) -> bool:
        """Whether this forward is one of those that replays are compared with, which takes time."""
        number = self._forwards
        self._forwards += 1
        if self._probe is not None:
            return self._probe.compares
        return number < FIRST_COMPARED or number % COMPARED_EVERY == 0

    @contextmanager
    def watched_by(self, probe: Probe) -> Iterator[None]:
        """Tell a probe what happens in this net's steps, forward and backward."""
        before, self._probe = self._probe, probe
        try:
            yield
        finally:
            self._probe = before


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
