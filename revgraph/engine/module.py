"""The reversible module: an ordinary `nn.Module` that runs a program under a plan."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from revgraph.engine._torch import dispatch_mode_count
from revgraph.engine.executable import Executable
from revgraph.engine.facade import CHECKPOINTING, blank, checkpointing_replaced
from revgraph.engine.forward import Forward
from revgraph.engine.inverse import InverseNet
from revgraph.engine.log_det import LogDets, begin
from revgraph.engine.observer import DriftWatch, Observer
from revgraph.engine.sharding import advice_on_shards
from revgraph.engine.state import compiler_name, compiles, is_exported, is_transformed, uncompiled
from revgraph.errors import BudgetError, PlanError, TraceError, TraceWarning, add_note
from revgraph.graph import Graph
from revgraph.isolation import MODULE_TABLES
from revgraph.parts import Cost
from revgraph.planning import Plan, keep_all, plan
from revgraph.planning.same_graph import fitted
from revgraph.planning.schedule import silent_nodes
from revgraph.program import Named, Operation, Program
from revgraph.tracing.arguments import bind, fill_form, read_form
from revgraph.tracing.guards.questions import ask, questions_of
from revgraph.tracing.hooks import HookChanges
from revgraph.tracing.modes import without_autocast
from revgraph.tracing.proxies import OtherForm

# For backends of torch.compile that run a net in a way of their own, what gives that.
FACES: dict[str, Callable[[Any], Any]] = {}
FIRST_COMPARED, COMPARED_EVERY = 8, 16
MOST_FORMS = 32  # of those kept: the ones used last
WARNED_AFTER = 8  # traces because of one value
ADVICE_ON_READS = (
    "Give what changes from call to call to the forward as an argument, or hold it in a buffer "
    "(register_buffer), changed in place."
)
ADVICE_ON_ARGUMENTS = (
    f"The {MOST_FORMS} forms of call that were used last are kept. A number that the code only computes with "
    "is an input and needs no trace; where it decides the way (if, range, an index), or goes through Python "
    "(int, math), give it as a tensor, torch.tensor(number), and compute with torch."
)


@dataclass(slots=True, eq=False)
class TracedForm:
    """What a net knows of one form of call: its program, and what is made of it when it is needed."""

    program: Program
    plan: Plan | None = None
    made: Executable | None = None
    inverses: dict[tuple[str, ...], InverseNet] = field(default_factory=dict)
    forwards: int = 0
    is_tried: bool = False
    questions: list[Operation] | None = None

    def has_hooks(self) -> bool:
        """Whether modules that were opened have hooks."""
        return self.program.guards is not None and any(self.program.guards.hooks)

    def without_made(self) -> TracedForm:
        """What is copied and pickled."""
        return TracedForm(self.program, self.plan, forwards=self.forwards)

    def holds(self) -> bool:
        """Whether the model is still as the trace took it to be."""
        guards = self.program.guards
        return guards is None or guards.hold() or guards.settings.would_hold(guards.hold)

    def is_outdated(self) -> bool:
        """Whether the model has other modules by now inside of those that are nodes."""
        guards = self.program.guards
        return guards is not None and guards.is_outdated()

    def read(self, model: nn.Module, given: dict[str, Any]) -> dict[str, Any]:
        """What a call gives, by name; settles what the model's first call would settle.

        Raises:
            OtherForm: the call is of another form.
        """
        env: dict[str, Any] = {}
        read_form(self.program.arguments, given, "the call", env)
        guards = self.program.guards
        if guards is not None and guards.forms is not None:
            guards.forms.check(env)
        if self.questions is None:
            inputs = (*self.program.graph.inputs, *self.program.numbers)
            self.questions = questions_of(self.program.operations, inputs)
        if self.questions:
            ask(self.questions, model, env)
        if guards is not None and not guards.settings.settle(env):
            raise OtherForm("the inputs have other shapes than those that the model settled for")
        return env


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
        self._is_full_backward_hook = model._is_full_backward_hook
        self._first = TracedForm(program, chosen)
        self._forms = [self._first]  # those used last come first
        self._is_assigned = chosen is not None
        self._retrace = retrace
        self._retraced: Counter[str] = Counter()  # because of which values
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
        try:
            return nn.Module.__getattr__(self, name)
        except AttributeError:
            model = self.__dict__.get("_model")
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
        nn.Module.__setstate__(self, state)
        model = self.__dict__["_model"]
        if SHARED[0] in model.__dict__:  # not so while a model is read that refers to its net
            self._take_tables(model)  # for it may have a way of its own to be copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        return blank, (ReversibleModule, type(self.__dict__["_model"])), self.__getstate__()

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled: without what is made again when it is needed."""
        forms = {id(form): form.without_made() for form in self._forms}
        first = forms.get(id(self._first)) or self._first.without_made()
        return {**self.__dict__, "_first": first, "_forms": [*forms.values()]}

    @property
    def training(self) -> bool:
        """Whether the model is in training mode."""
        model = self.__dict__.get("_model")
        return True if model is None else model.training

    @training.setter
    def training(self, mode: bool) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        if "_model" in self.__dict__:
            self.__dict__["_model"].training = mode

    def train(self, mode: bool = True) -> ReversibleModule:
        """Set training or evaluation mode, of the model."""
        self.__dict__["_model"].train(mode)
        return self

    # Graph and plan

    @property
    def graph(self) -> Graph:
        """The network as data."""
        return self._first.program.graph

    @property
    def plan(self) -> Plan:
        """What is stored, inverted and recomputed; the default plan until another one is assigned."""
        if self._first.plan is None:
            self._first.plan = plan(self.graph)
            self._executable.replays(silent_nodes(self._first.plan))
        return self._first.plan

    @plan.setter
    def plan(self, value: Plan) -> None:
        if not isinstance(value, Plan):
            raise PlanError(
                f"a net's plan is a revgraph.Plan, not a {type(value).__name__}: see revgraph.plan"
            )
        fitting = fitted(value, self.graph)
        for form in (*self._forms, self._first):  # the other forms' plans follow it
            form.plan, form.made, form.forwards = None, None, 0
        self._first.plan = fitting
        self._is_assigned = True

    def _planned(self, form: TracedForm) -> Plan:
        """The plan of a form: chosen as the first one's, or after the one that is assigned there."""
        if form is self._first:
            return self.plan
        if form.plan is None:
            graph = form.program.graph
            if graph == self.graph:
                form.plan = self.plan
            elif self._is_assigned:
                form.plan = _plan_like(self.plan, graph)
            else:
                form.plan = plan(graph)
        return form.plan

    @property
    def _program(self) -> Program:
        return self._first.program

    @property
    def _executable(self) -> Executable:
        """The example's form, with the plan worked into it."""
        return self._executable_of(self._first)

    def _executable_of(self, form: TracedForm) -> Executable:
        """The program with the plan worked into it, made anew where plan or modules are other ones."""
        made = form.made
        if made is None or not made.is_current():
            made = form.made = Executable(self.__dict__["_model"], form.program, self._planned(form))
        return made

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
        form, _ = self._given(args, kwargs)
        self._executable_of(form)

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
        form, env = self._given(args, kwargs)
        # The first run tells whether hooks of opened modules change results: then it must not have been.
        back = None if form.is_tried or not form.has_hooks() else _as_it_is(self)
        try:
            result = self._ran(form, env, None)
        except HookChanges:
            self._forms = [each for each in self._forms if each is not form]
            if back is None:
                self._forms = self._forms or [self._first]
                raise
            back()
            other = self._traced(args, kwargs, None)
            if form is self._first:
                self._first = other
            return self._forward(*args, **kwargs)
        form.is_tried = True
        return result

    def _forward_with_log_det(self, *args: Any, **kwargs: Any) -> tuple[Any, Tensor]:
        form, env = self._given(args, kwargs)
        log_dets = begin(self, form.program, env)
        return self._ran(form, env, log_dets), log_dets.total

    def _given(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[TracedForm, dict[str, Any]]:
        """The form of a call, and the values and numbers that it gives, by name."""
        forms, model = self._forms, self.__dict__["_model"]
        given = bind(forms[0].program.signature, args, kwargs)
        refused: OtherForm | None = None
        traces = self._retrace is not None and not is_transformed()
        for place, form in enumerate(forms):
            if not form.holds() or (traces and form.is_outdated()):
                continue
            try:
                env = form.read(model, given)
            except OtherForm as error:
                refused = refused or error
                continue
            if place:
                forms.insert(0, forms.pop(place))
            return form, env
        form = self._traced(args, kwargs, refused)
        return form, form.read(model, given)

    def _traced(self, args: tuple[Any, ...], kwargs: dict[str, Any], refused: OtherForm | None) -> TracedForm:
        """A new form, traced with this call.

        Raises:
            TraceError: it cannot be traced.
        """
        guards = self._first.program.guards
        if self._retrace is None or is_transformed():
            changed = guards.broken() if guards is not None else "the model"
            raise refused or TraceError(
                f"{changed} has changed since the trace. Call the net once as it is now, outside of "
                "torch.func's transforms, or trace the model again."
            )
        self._count_retrace(refused)
        with without_autocast():
            program = self._retrace(self.__dict__["_model"], args, kwargs, torch.is_grad_enabled())
        form = TracedForm(program)
        self._forms.insert(0, form)
        if guards is not None and (not guards.modules_hold() or guards.is_outdated()):
            # What was known is of no use any more.
            if program.graph == self.graph:
                form.plan = self._first.plan
            elif self._is_assigned and self._first.plan is not None:
                form.plan = _plan_like(self._first.plan, program.graph)
            self._first, self._forms = form, [form]
        del self._forms[MOST_FORMS:]
        return form

    def _count_retrace(self, refused: OtherForm | None) -> None:
        """Warn of a value that has another trace made again and again."""
        guards = self._forms[0].program.guards if self._forms else None
        if guards is None or not guards.modules_hold():
            return
        if guards.hold():
            changed = refused.place if refused is not None else ""
            advice = ADVICE_ON_ARGUMENTS
        else:
            changed = "" if guards.flag_is_broken() else guards.broken()
            advice = ADVICE_ON_READS
        if not changed:
            return
        self._retraced[changed] += 1
        if self._retraced[changed] == WARNED_AFTER:
            warnings.warn(
                f"{changed} has had another value in {WARNED_AFTER} calls of the net, and each was traced "
                f"anew, which takes far longer than a call. {advice}",
                TraceWarning,
                stacklevel=9,
            )

    def _ran(self, form: TracedForm, env: dict[str, Any], log_dets: LogDets | None) -> Any:
        """What the net returns for these inputs."""
        try:
            if torch.is_grad_enabled() and not is_transformed():
                with self._drift_watched():
                    forward = Forward(self, self._executable_of(form), env, self._observer, log_dets)
                    forward.record(self._compares(form))
            else:
                forward = Forward(self, self._executable_of(form), env, self._observer, log_dets)
                forward.run()
        except Exception as error:
            called = (
                path for operation in form.program.operations for path in operation.expression.module_paths
            )
            if advice := advice_on_shards(self, called):
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
        bare = [
            [replace(node, cost=Cost()) for node in each.nodes] + list(each.values)
            for each in (graph, self.graph)
        ]
        if bare[0] != bare[1]:
            raise PlanError(
                f"graph {graph.name!r} is not the net's own with other costs: nodes or values differ"
            )
        first = self._first
        first.program = replace(first.program, graph=graph)
        if first.plan is not None:
            first.plan = replace(first.plan, graph=graph)
        first.made = None

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
        form = self._form_for_inverse()
        inverse = form.inverses.get(names)
        if inverse is None:
            inverse = form.inverses[names] = InverseNet(form.program, names)
        if compiles():
            return uncompiled(inverse.run, self, outputs, known, log_det)
        return inverse.run(self, outputs, known, log_det)

    def _form_for_inverse(self) -> TracedForm:
        """The form that outputs are those of: the example's, or another one that the model is in now.

        Raises:
            TraceError: the model has changed, and the net has not been called since.
        """
        for form in (self._first, *self._forms):
            if form.holds():
                return form
        guards = self._first.program.guards
        raise TraceError(
            f"{guards.broken() if guards is not None else 'the model'} has changed since the trace: call the "
            "net forward once as it is now, and then its inverse."
        )

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
        before = [(form, form.plan, form.made, form.forwards) for form in {*self._forms, self._first}]
        assigned = self._is_assigned
        self.plan = plan
        try:
            yield
        finally:
            for form in (*self._forms, self._first):
                form.plan, form.made, form.forwards = None, None, 0
            for form, chosen, made, forwards in before:
                form.plan, form.made, form.forwards = chosen, made, forwards
            self._is_assigned = assigned

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
# What tools set on any module; everything else that is assigned to a net is the model's.
OWN = MODULE_TABLES | {
    *(
        "forward",
        "_first",
        "_forms",
        "_retrace",
        "_retraced",
        "_is_assigned",
        "_compares_always",
        "_observer",
        "_watch",
    ),
    *("_is_model", "_model"),
}


def _as_it_is(net: nn.Module) -> Callable[[], None]:
    """What puts buffers and torch's generators back to where they are now."""
    buffers = [(buffer, buffer.clone()) for buffer in net.buffers()]
    generators = [
        torch.default_generator,
        *(torch.cuda.default_generators if torch.cuda.is_initialized() else ()),
    ]
    states = [(each, each.get_state()) for each in generators]

    def back() -> None:
        with torch.no_grad():
            for buffer, content in buffers:
                buffer.copy_(content)
        for generator, state in states:
            generator.set_state(state)

    return back


def _plan_like(assigned: Plan, graph: Graph) -> Plan:
    """A plan for another form of call, after the one that was assigned to the first: within as many bytes."""
    if set(assigned.decisions.values()) <= {"keep"}:
        return keep_all(graph)
    try:
        return plan(graph, assigned.peak_bytes)
    except BudgetError:
        return plan(graph)
