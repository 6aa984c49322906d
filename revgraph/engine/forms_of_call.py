"""Forms of call: the programs that a net's model is traced into, one for each way in which it is called.

The example's form is the first one. A call of another form (an argument given or not, another structure,
another mode where the code asks for it), or after a change of an attribute that the traced code read, is
traced when it first comes, and kept with its plan.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from revgraph.engine.contexts import is_transformed
from revgraph.engine.executable import Executable
from revgraph.engine.traced_form import Look, TracedForm
from revgraph.errors import BudgetError, PlanError, TraceError, TraceWarning, warn
from revgraph.graph import Graph
from revgraph.parts import Cost
from revgraph.planning import Plan, keep_all, plan
from revgraph.planning.schedule import silent_nodes
from revgraph.program import Program
from revgraph.tracing.arguments import bind
from revgraph.tracing.modes import without_autocast
from revgraph.tracing.proxies import TRACE_AGAIN, OtherForm

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


class Forms:
    """The forms of call that a net knows, and their plans: the example's is `first`, the last used leads."""

    def __init__(
        self,
        model: nn.Module,
        program: Program,
        chosen: Plan | None,
        trace: Callable[..., Program] | None,
    ) -> None:
        self.model = model
        self.first = TracedForm(program, model.training, chosen)
        self._kept = [self.first]
        self._is_assigned = chosen is not None
        self._trace = trace
        self._retraced: Counter[str] = Counter()  # because of which values

    def __len__(self) -> int:
        return len(self._kept)

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled: without what is made again when it is needed."""
        forms = {id(form): form.without_made() for form in self._kept}
        first = forms.get(id(self.first)) or self.first.without_made()
        return {**self.__dict__, "first": first, "_kept": [*forms.values()]}

    # Plans

    @property
    def plan(self) -> Plan:
        """That of the example's form: the default plan, made here, until one is assigned."""
        if self.first.plan is None:
            self.first.plan = plan(self.first.program.graph)
            self.executable(self.first).replays(silent_nodes(self.first.plan))
        return self.first.plan

    def assign(self, chosen: Plan) -> None:
        """Have this plan of the example's form; those of the other forms follow it."""
        for form in (*self._kept, self.first):
            form.plan, form.made, form.forwards = None, None, 0
        self.first.plan = chosen
        self._is_assigned = True

    @contextmanager
    def under(self, chosen: Plan) -> Iterator[None]:
        """Have this plan in the block; then all is as before."""
        before = [(form, form.plan, form.made, form.forwards) for form in {*self._kept, self.first}]
        assigned = self._is_assigned
        self.assign(chosen)
        try:
            yield
        finally:
            for form in (*self._kept, self.first):
                form.plan, form.made, form.forwards = None, None, 0
            for form, was, made, forwards in before:
                form.plan, form.made, form.forwards = was, made, forwards
            self._is_assigned = assigned

    def adopt(self, graph: Graph) -> None:
        """Take a graph of the same nodes and values with other costs for the example's own.

        Raises:
            PlanError: it has other nodes or values.
        """
        first = self.first
        bare = [
            [replace(node, cost=Cost()) for node in each.nodes] + list(each.values)
            for each in (graph, first.program.graph)
        ]
        if bare[0] != bare[1]:
            raise PlanError(
                f"graph {graph.name!r} is not the net's own with other costs: nodes or values differ"
            )
        first.program = replace(first.program, graph=graph)
        if first.plan is not None:
            first.plan = replace(first.plan, graph=graph)
        first.made = None

    def executable(self, form: TracedForm) -> Executable:
        """The program with the plan worked into it, made anew where plan or modules are other ones."""
        made = form.made
        if made is None or not made.is_current():
            made = form.made = Executable(self.model, form.program, self._planned(form))
        return made

    def _planned(self, form: TracedForm) -> Plan:
        """The plan of a form: chosen as the first one's, or after the one that is assigned there."""
        if form is self.first:
            return self.plan
        if form.plan is None:
            graph = form.program.graph
            if graph == self.first.program.graph:
                form.plan = self.plan
            elif self._is_assigned:
                form.plan = _plan_like(self.plan, graph)
            else:
                form.plan = plan(graph)
        return form.plan

    # Calls

    def given(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[TracedForm, dict[str, Any]]:
        """The form of a call, and the values and numbers that it gives, by name.

        Raises:
            TraceError: it is of a form that cannot be traced.
        """
        forms = self._kept
        given = bind(forms[0].program.signature, args, kwargs)
        refused: OtherForm | None = None
        found: tuple[TracedForm, dict[str, Any]] | None = None
        traces = self._trace is not None and not is_transformed()
        for form in forms:
            if not form.holds() or (traces and form.is_outdated()):
                continue
            try:
                env = form.read(self.model, given)
            except OtherForm as error:
                refused = refused or error
                continue
            is_known = form.untried(self.model, env) is None
            if found is None or is_known:
                found = form, env
            if is_known:
                break
        if found is None:
            form = self._traced(args, kwargs, refused)
            return form, form.read(self.model, given)
        form, _ = found
        if forms[0] is not form:
            forms.insert(0, forms.pop(next(place for place, each in enumerate(forms) if each is form)))
        return found

    def refuse(self, form: TracedForm, look: Look, error: Exception, env: Mapping[str, Any]) -> bool:
        """Have another form for such inputs, on which this one failed; whether there can be one.

        Where code goes through pieces, one that is not there may come before the question how many there are.
        """
        is_other = isinstance(error, OtherForm) or (
            not isinstance(error, torch.OutOfMemoryError) and bool(form.advice_on_sizes(env))
        )
        if not is_other or self._trace is None or is_transformed():
            return False
        form.refused.add(look)
        return True

    def advised(self, error: OtherForm) -> OtherForm:
        """An error of a call that is not traced anew, with what to do instead."""
        if self._trace is None:
            return error
        if is_transformed():
            advice = "Call the net once with such inputs outside of torch.func's transforms."
        else:
            advice = (
                "Inputs of such shapes went the traced way before: where the numbers in a tensor decide, put "
                "the code that goes by them into a submodule, which then becomes one node by itself."
            )
        return OtherForm(str(error).replace(TRACE_AGAIN, advice), error.place)

    def for_inverse(self) -> TracedForm:
        """The form that outputs are those of: the example's, or another one that the model is in now.

        Raises:
            TraceError: the model has changed, and the net has not been called since.
        """
        for form in (self.first, *self._kept):
            if form.holds():
                return form
        guards = self.first.program.guards
        raise TraceError(
            f"{guards.broken() if guards is not None else 'the model'} has changed since the trace: call the "
            "net forward once as it is now, and then its inverse."
        )

    def drop(self, form: TracedForm) -> None:
        """Forget a form; the example's stays where there is no other."""
        self._kept = [each for each in self._kept if each is not form] or [self.first]

    def trace_again(self, form: TracedForm, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Have another form, traced with this call, in the place of one that does not hold."""
        self._kept = [each for each in self._kept if each is not form]
        other = self._traced(args, kwargs, None)
        if form is self.first:
            self.first = other

    def _traced(self, args: tuple[Any, ...], kwargs: dict[str, Any], refused: OtherForm | None) -> TracedForm:
        """A new form, traced with this call.

        Raises:
            TraceError: it cannot be traced.
        """
        guards = self.first.program.guards
        if self._trace is None or is_transformed():
            changed = guards.broken() if guards is not None else "the model"
            raise refused or TraceError(
                f"{changed} has changed since the trace. Call the net once as it is now, outside of "
                "torch.func's transforms, or trace the model again."
            )
        self._count_retrace(refused)
        try:
            with without_autocast():
                program = self._trace(self.model, args, kwargs, torch.is_grad_enabled())
        except TraceError as error:
            if refused is None:
                raise
            raise TraceError(f"{refused}. A call of that form cannot be traced: {error}") from error
        form = TracedForm(program, self.model.training)
        self._kept.insert(0, form)
        if guards is not None and (not guards.modules_hold() or guards.is_outdated()):
            # What was known is of no use any more.
            if program.graph == self.first.program.graph:
                form.plan = self.first.plan
            elif self._is_assigned and self.first.plan is not None:
                form.plan = _plan_like(self.first.plan, program.graph)
            self.first, self._kept = form, [form]
        del self._kept[MOST_FORMS:]
        return form

    def _count_retrace(self, refused: OtherForm | None) -> None:
        """Warn of a value that has another trace made again and again."""
        guards = self._kept[0].program.guards if self._kept else None
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
            warn(
                f"{changed} has had another value in {WARNED_AFTER} calls of the net, and each was traced "
                f"anew, which takes far longer than a call. {advice}",
                TraceWarning,
            )


def _plan_like(assigned: Plan, graph: Graph) -> Plan:
    """A plan for another form of call, after the one that was assigned to the first: within as many bytes."""
    if set(assigned.decisions.values()) <= {"keep"}:
        return keep_all(graph)
    try:
        return plan(graph, assigned.peak_bytes)
    except BudgetError:
        return plan(graph)
