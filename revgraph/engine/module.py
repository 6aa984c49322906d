"""The reversible module: an ordinary `nn.Module` that runs a program under a plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn

from revgraph.engine._torch import dispatch_mode_count
from revgraph.engine.contexts import compiler_name, compiles, is_exported, is_transformed, uncompiled
from revgraph.engine.executable import Executable
from revgraph.engine.facade import CHECKPOINTING, blank, checkpointing_replaced
from revgraph.engine.forms_of_call import Forms
from revgraph.engine.forward import Forward
from revgraph.engine.inverse import InverseNet
from revgraph.engine.log_det import LogDets, begin
from revgraph.engine.observer import DriftWatch, Observer
from revgraph.engine.sharding import advice_on_shards
from revgraph.engine.traced_form import Look, TracedForm
from revgraph.errors import PlanError, TraceError, add_note
from revgraph.graph import Graph
from revgraph.isolation import MODULE_TABLES, as_it_is
from revgraph.planning import Plan
from revgraph.planning.same_graph import fitted
from revgraph.program import Named, Program
from revgraph.tracing.arguments import fill_form
from revgraph.tracing.hooks import HookChanges
from revgraph.tracing.proxies import OtherForm
from revgraph.turns import Running

# For backends of torch.compile that run a net in a way of their own, what gives that.
FACES: dict[str, Callable[[Any], Any]] = {}
FIRST_COMPARED, COMPARED_EVERY = 8, 16
RUNNING = Running()


def check_net(net: object, function: str) -> None:
    """Refuse what is no net, for a function that is given one.

    Raises:
        TraceError: it is a model that was not traced, or something else.
    """
    if isinstance(net, ReversibleModule):
        return
    hint = ""
    if isinstance(getattr(net, "module", None), ReversibleModule):
        hint = ": give its .module"
    elif isinstance(net, nn.Module):
        hint = ", a model as it was written: trace it first, net = rg.trace(model, example_input)"
    raise TraceError(
        f"{function} takes a net of rg.trace or rg.load, and this is a {type(net).__name__}{hint}"
    )


class ReversibleModule(nn.Module):
    """A model's modules under their own names, run as a graph of couplings, boundaries and wiring.

    Parameters, buffers and submodules are the model's own objects, so `state_dict` has the model's keys and
    training one trains the other; attributes, methods, indexing and `len` are the model's, too. `plan` says
    what is stored, inverted and recomputed: the default plan, made when it is first needed, or one that is
    assigned, from the next forward on. Get a reversible module from `rg.trace` or `rg.load`. One that
    `is_model` computes what the model's code does, without rounding or blocks of its own: it is exported so.

    `graph` and `plan` are those of the example's form. A call of another form (an argument given or not,
    another structure, another mode where the code asks for it), or after a change of an attribute that the
    traced code read, is traced when it first comes, and kept.
    """

    call_super_init = False
    # Whether a step that nobody watches runs as one that is watched, draws what that draws, and has its
    # operators pass torch's dispatcher, so that their results can be counted.
    steps_as_watched = draws_as_watched = passes_dispatcher = True

    def __init_subclass__(cls, **_: Any) -> None:
        """Nothing: what the model's class does to its children is not meant for nets."""

    def __new__(cls, model: nn.Module, *_: Any, **__: Any) -> ReversibleModule:
        return blank(cls, type(model))

    def __init__(
        self,
        model: nn.Module,
        program: Program,
        chosen: Plan | None = None,
        retrace: Callable[..., Program] | None = None,
        is_model: bool = False,
    ) -> None:
        nn.Module.__init__(self)  # here and below: `super()` would be the model's class
        self._take_tables(model)
        self._forms = Forms(model, program, chosen, retrace)
        self._is_model = is_model
        self._compares_always: bool | None = None
        self._observer: Observer | None = None
        self._watch: DriftWatch | None = None
        self.__dict__["_model"] = model  # not a submodule: its parameters are this module's own

    def _take_tables(self, model: nn.Module) -> None:
        for table in SHARED:
            self.__dict__[table] = model.__dict__[table]

    # The model's face

    def __getattr__(self, name: str) -> Any:
        model = self.__dict__.get("_model")
        if model is not None and SHARED[0] in model.__dict__:  # not so while a model is being read
            self._take_tables(model)
        try:
            return nn.Module.__getattr__(self, name)
        except AttributeError:
            if model is None or name.startswith("__"):
                raise
        if name in CHECKPOINTING and hasattr(model, name):
            return checkpointing_replaced
        return getattr(model, name)

    def __setattr__(self, name: str, value: Any) -> None:
        model = self.__dict__.get("_model")
        own = model is None or name in OWN or hasattr(ReversibleModule, name)
        if own or (name.startswith("_") and not hasattr(model, name)):  # what tools note on a module
            nn.Module.__setattr__(self, name, value)
        else:
            setattr(model, name, value)

    def _named_members(self, *args: Any, **kwargs: Any) -> Any:
        """As torch's, but not those that stand for the model's own while another thread traces it."""
        if compiles():
            return nn.Module._named_members(self, *args, **kwargs)
        with RUNNING:
            return iter([*nn.Module._named_members(self, *args, **kwargs)])

    def __delattr__(self, name: str) -> None:
        if name in self.__dict__:
            nn.Module.__delattr__(self, name)
        else:
            delattr(self.__dict__["_model"], name)

    def __repr__(self) -> str:
        return f"reversible {nn.Module.__repr__(self)}"

    def __dir__(self) -> list[str]:
        return sorted({*nn.Module.__dir__(self), *dir(self.__dict__["_model"])})

    __copy__ = __deepcopy__ = None  # copied as it is pickled, whatever the model has

    def __setstate__(self, state: dict[str, Any]) -> None:
        model = state["_model"]
        kind = model.__dict__.get("_is_full_backward_hook")
        nn.Module.__setstate__(self, state)  # which takes that for missing, and sets it to None
        model.__dict__["_is_full_backward_hook"] = kind
        if SHARED[0] in model.__dict__:  # not so while a model is read that refers to its net
            self._take_tables(model)  # for it may have a way of its own to be copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        return blank, (ReversibleModule, type(self.__dict__["_model"])), self.__getstate__()

    def __getstate__(self) -> dict[str, Any]:
        self._take_tables(self.__dict__["_model"])
        return {**self.__dict__, "_forms": copy(self._forms)}

    @property
    def training(self) -> bool:
        """Whether the model is in training mode."""
        model = self.__dict__.get("_model")
        return True if model is None else model.training

    @training.setter
    def training(self, mode: bool) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        if "_model" in self.__dict__:
            self.__dict__["_model"].training = mode

    @property
    def _is_full_backward_hook(self) -> bool | None:
        """Of which kind the backward hooks are, that the net has in common with the model; None without."""
        model = self.__dict__.get("_model")
        return None if model is None else model._is_full_backward_hook

    @_is_full_backward_hook.setter
    def _is_full_backward_hook(self, kind: bool | None) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        if "_model" in self.__dict__:
            self.__dict__["_model"]._is_full_backward_hook = kind

    def train(self, mode: bool = True) -> ReversibleModule:
        """Set training or evaluation mode, of the model."""
        self.__dict__["_model"].train(mode)
        return self

    # Graph and plan

    @property
    def graph(self) -> Graph:
        """The network as data."""
        return self._forms.first.program.graph

    @property
    def plan(self) -> Plan:
        """What is stored, inverted and recomputed; the default plan until another one is assigned."""
        return self._forms.plan

    @plan.setter
    def plan(self, value: Plan) -> None:
        if not isinstance(value, Plan):
            raise PlanError(
                f"a net's plan is a revgraph.Plan, not a {type(value).__name__}: see revgraph.plan"
            )
        self._forms.assign(fitted(value, self.graph))

    @property
    def _program(self) -> Program:
        return self._forms.first.program

    @property
    def _executable(self) -> Executable:
        """The example's form, with the plan worked into it."""
        return self._forms.executable(self._forms.first)

    # Calls

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._called(*args, **kwargs)

    def _called(self, *args: Any, **kwargs: Any) -> Any:
        if self._is_model and is_exported():  # no plan is followed where such a program runs
            return self.__dict__["_model"].forward(*args, **kwargs)
        if compiles():
            face = FACES.get(compiler_name())
            return uncompiled(self._forward if face is None else face(self)._forward, *args, **kwargs)
        return self._forward(*args, **kwargs)

    def prepare(self, *args: Any, **kwargs: Any) -> None:
        """Trace and plan the form of this call, if it is a new one, and run nothing."""
        form, _ = self._forms.given(args, kwargs)
        self._forms.executable(form)

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
        return self._tried(args, kwargs, lambda form, env: self._ran(form, env, None))

    def _forward_with_log_det(self, *args: Any, **kwargs: Any) -> tuple[Any, Tensor]:
        def run(form: TracedForm, env: dict[str, Any]) -> tuple[Any, Tensor]:
            log_dets = begin(self, form.program, env)
            return self._ran(form, env, log_dets), log_dets.total

        return self._tried(args, kwargs, run)

    def _tried(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        run: Callable[[TracedForm, dict[str, Any]], Any],
    ) -> Any:
        """What a run of a call gives, by a form that can run it: if it turns out in the middle that this one
        cannot, all is put back, the call is traced, and run by its form."""
        model = self.__dict__["_model"]
        with RUNNING:
            while True:
                form, env = self._forms.given(args, kwargs)
                look = form.untried(model, env)
                back = as_it_is(model) if look is not None else None
                try:
                    result = run(form, env)
                except HookChanges:
                    if back is None or form.tried:
                        self._forms.drop(form)
                        raise
                    back()
                    self._forms.trace_again(form, args, kwargs)
                except Exception as error:
                    if look is None or back is None or not self._forms.refuse(form, look, error, env):
                        if isinstance(error, OtherForm):
                            raise self._forms.advised(error) from error
                        raise
                    self._prepare_instead(form, look, error, args, kwargs)
                    back()
                else:
                    if look is not None:
                        form.note_run(look)
                    return result

    def _prepare_instead(
        self, form: TracedForm, look: Look, error: Exception, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Trace a call that a form has failed on; where that fails, too, the call is wrong in itself."""
        try:
            self.prepare(*args, **kwargs)
        except Exception:
            form.refused.discard(look)
            if isinstance(error, OtherForm):
                raise
            raise error from None

    def _ran(self, form: TracedForm, env: dict[str, Any], log_dets: LogDets | None) -> Any:
        """What the net returns for these inputs."""
        try:
            if torch.is_grad_enabled() and not is_transformed():
                with self._drift_watched():
                    forward = Forward(self, self._forms.executable(form), env, self._observer, log_dets)
                    forward.record(self._compares(form))
            else:
                forward = Forward(self, self._forms.executable(form), env, self._observer, log_dets)
                forward.run()
        except Exception as error:
            called = (
                path for operation in form.program.operations for path in operation.expression.module_paths
            )
            if advice := advice_on_shards(self, called) or form.advice_on_sizes(env):
                add_note(error, advice)
            raise
        results = form.program.results
        if type(results) is Named:
            return forward[results.name]
        if type(results) is tuple and all([type(each) is Named for each in results]):
            return tuple([forward[each.name] for each in results])
        return fill_form(results, forward)

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
        self._forms.adopt(graph)

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
        form = self._forms.for_inverse()
        inverse = form.inverses.get(names)
        if inverse is None:
            inverse = form.inverses[names] = InverseNet(form.program, names)
        if compiles():
            return uncompiled(inverse.run, self, outputs, known, log_det)
        return inverse.run(self, outputs, known, log_det)

    def _compares(self, form: TracedForm) -> bool:
        """Whether this forward is one of those that replays are compared with, which takes time."""
        number = form.forwards
        form.forwards += 1
        if self._observer is not None:
            return self._observer.compares
        if self._compares_always is not None:
            return self._compares_always
        # What a dispatch mode around the forward does to it, a replay will not see.
        return number < FIRST_COMPARED or number % COMPARED_EVERY == 0 or dispatch_mode_count() > 0

    @contextmanager
    def planned(self, plan: Plan) -> Iterator[None]:
        """Have another plan in the block, other forms of call their plans after it; then all is as before."""
        with self._forms.under(fitted(plan, self.graph)):
            yield

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


def _shared(table: str) -> property:
    """A table of the model's as the net's; containers put another in its place when they delete or insert."""

    def now(self: nn.Module) -> Any:
        model = self.__dict__.get("_model")
        if model is not None and table in model.__dict__:
            self.__dict__[table] = model.__dict__[table]  # some code looks there
        return self.__dict__[table]

    def put(self: nn.Module, value: Any) -> None:
        model = self.__dict__.get("_model")
        (self if model is None else model).__dict__[table] = value

    return property(now, put)


for _table in SHARED:
    setattr(ReversibleModule, _table, _shared(_table))
# What tools set on any module; everything else that is assigned to a net is the model's.
OWN = MODULE_TABLES | {
    *("forward", "_forms", "_compares_always", "_observer", "_watch"),
    *("_is_model", "_model"),
}
