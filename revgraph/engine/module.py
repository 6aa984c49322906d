"""The reversible module: an ordinary `nn.Module` that runs a program under a plan."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from revgraph.engine._torch import dispatch_mode_count
from revgraph.engine.executable import Executable
from revgraph.engine.forward import Forward
from revgraph.engine.inverse import InverseNet
from revgraph.engine.log_det import LogDets, begin
from revgraph.engine.observer import DriftWatch, Observer
from revgraph.engine.sharding import advice_on_shards
from revgraph.engine.state import compiles, is_transformed, uncompiled
from revgraph.errors import PlanError, add_note
from revgraph.expressions import map_leaves
from revgraph.graph import Graph
from revgraph.parts import Cost
from revgraph.planning import Plan, plan
from revgraph.planning.same_graph import fitted
from revgraph.planning.schedule import silent_nodes
from revgraph.program import Named, Program
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
        self._compares_always: bool | None = None
        self._made: Executable | None = None
        self._inverses: dict[tuple[str, ...], InverseNet] = {}
        self._observer: Observer | None = None
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
        """What is stored, inverted and recomputed; the default plan until another one is assigned."""
        if self._plan is None:
            self._plan = plan(self.graph)
            self._made = Executable(self.__dict__["_model"], self._program, self._plan)
            self._made.replays(silent_nodes(self._plan))
        return self._plan

    @plan.setter
    def plan(self, value: Plan) -> None:
        if not isinstance(value, Plan):
            raise PlanError(
                f"a net's plan is a revgraph.Plan, not a {type(value).__name__}: see revgraph.plan"
            )
        self._plan = fitted(value, self.graph)
        self._forwards = 0
        self._made = None

    @property
    def _executable(self) -> Executable:
        """The program with the plan worked into it, made anew where plan or modules are other ones."""
        made = self._made
        if made is None or not made.is_current():
            made = self._made = Executable(self.__dict__["_model"], self._program, self.plan)
        return made

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled: without what is made again when it is needed."""
        return {**self.__dict__, "_made": None, "_inverses": {}}

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
        try:
            if torch.is_grad_enabled() and not is_transformed():
                with self._drift_watched():
                    forward = Forward(self, self._executable, env, self._observer, log_dets)
                    forward.record(self._compares())
            else:
                forward = Forward(self, self._executable, env, self._observer, log_dets)
                forward.run()
        except Exception as error:
            called = (
                path for operation in self._program.operations for path in operation.expression.module_paths
            )
            if advice := advice_on_shards(self, called):
                add_note(error, advice)
            raise
        results = self._program.results
        if type(results) is Named:
            return forward[results.name]
        if type(results) is tuple and all([type(each) is Named for each in results]):
            return tuple([forward[each.name] for each in results])
        return map_leaves(lambda leaf: forward[leaf.name] if isinstance(leaf, Named) else leaf, results)

    @property
    def code(self) -> str:
        """The Python that runs under the plan: of every node's function, of the forward, and of the replays.

        It is to be read. What runs are the functions as they are shown; the engine carries out the rest as
        instructions (`revgraph.planning.schedule`).
        """
        return self._executable.code()

    def watch_drift(self, every: int = 100, limit: float = 1e-3) -> None:
        """Warn while training of drift, and of choices that it flips: a `DriftWarning` that names the node.

        In every so many forwards that record, a few elements of a few values are remembered and compared when
        the backward has rebuilt them, and of what autograd saves some indices, masks and signs before a kink
        at zero (ReLU and the like). `limit` is the relative error, or the share of flips, from which
        on to warn.

        Raises:
            PlanError: `every` is no whole number above 0, or `limit` not above 0.
        """
        self._watch = DriftWatch(every, limit)

    def _drift_watched(self) -> AbstractContextManager[None]:
        watch = None if self._watch is None or self._observer is not None else self._watch.next(self.plan)
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
        self._made = None

    def inverse(self, *outputs: Any, **known: Any) -> Any:
        """The inputs that give these outputs.

        `outputs` are in the form that the forward returns them (a tuple as one argument each); `known` gives
        inputs that cannot follow from outputs (a mask, a condition) by their names. Returns the remaining
        inputs: the one, or a tuple in the order of the forward's parameters.

        Gradients run through the inverse as through the forward, and it holds what the forward holds: what it
        rebuilds in its backward are the outputs on the way back. Buffers stay as they were.

        Raises:
            GraphError: a boundary or a value that is not given lies on the way, or a node draws random
                numbers; the text names it.
        """
        return self._inverted(outputs, known, False)

    def inverse_with_log_det(self, *outputs: Any, **known: Any) -> tuple[Any, Tensor]:
        """The inputs x that give these outputs y, and log |det dx/dy| per sample ([N]).

        For drawing from normalizing flows and for training them on a reverse divergence: gradients run
        through both. Outputs and known inputs are given as to `inverse`; the net must be a bijection as for
        `with_log_det`.

        Raises:
            GraphError: as `inverse` and `with_log_det`.

        Example:
            >>> import torch, revgraph as rg
            >>> net = rg.trace(rg.Affine(torch.nn.Linear(2, 4)), torch.zeros(3, 2), torch.zeros(3, 2))
            >>> condition = torch.ones(3, 2)
            >>> y, forth = net.with_log_det(torch.ones(3, 2), condition)
            >>> x, back = net.inverse_with_log_det(y, **{net.graph.inputs[1]: condition})
            >>> bool(torch.allclose(forth, -back))
            True
        """
        return self._inverted(outputs, known, True)

    def _inverted(self, outputs: tuple[Any, ...], known: dict[str, Any], log_det: bool) -> Any:
        names = tuple(sorted(known))
        inverse = self._inverses.get(names)
        if inverse is None:
            inverse = self._inverses[names] = InverseNet(self._program, names)
        if compiles():
            return uncompiled(inverse.run, self, outputs, known, log_det)
        return inverse.run(self, outputs, known, log_det)

    def _compares(self) -> bool:
        """Whether this forward is one of those that replays are compared with, which takes time."""
        number = self._forwards
        self._forwards += 1
        if self._observer is not None:
            return self._observer.compares
        if self._compares_always is not None:
            return self._compares_always
        # What a dispatch mode around the forward does to it, a replay will not see.
        return number < FIRST_COMPARED or number % COMPARED_EVERY == 0 or dispatch_mode_count() > 0

    @contextmanager
    def watched_by(self, observer: Observer) -> Iterator[None]:
        """Tell an observer what happens in this net's steps, forward and backward."""
        before, self._observer = self._observer, observer
        try:
            yield
        finally:
            self._observer = before

    @contextmanager
    def comparing(self, always: bool | None) -> Iterator[None]:
        """Compare replays with every forward in the block, or with none; as usual with None."""
        before, self._compares_always = self._compares_always, always
        try:
            yield
        finally:
            self._compares_always = before


SHARED = (
    "_parameters", "_buffers", "_non_persistent_buffers_set", "_modules", "_forward_hooks",
    "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks",
    "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
)  # fmt: skip
