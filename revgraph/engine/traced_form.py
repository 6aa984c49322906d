"""One form of call: the program that it is traced into, and for which inputs that is known to be right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from torch import Tensor, nn

from revgraph.engine.executable import Executable
from revgraph.engine.inverse import InverseNet
from revgraph.planning import Plan
from revgraph.program import Program
from revgraph.tracing.arguments import read_form
from revgraph.tracing.proxies import OtherForm
from revgraph.tracing.questions import Questions

MOST_LOOKS = 1000  # that a form is known to run
Look: TypeAlias = frozenset[tuple[str, Any]]


@dataclass(slots=True, eq=False)
class TracedForm:
    """What a net knows of one form of call: its program, and what is made of it when it is needed."""

    program: Program
    training: bool
    plan: Plan | None = None
    made: Executable | None = None
    inverses: dict[tuple[str, ...], InverseNet] = field(default_factory=dict)
    forwards: int = 0
    questions: Questions | None = None
    tried: set[Look] = field(default_factory=set)  # inputs that it has run
    refused: set[Look] = field(default_factory=set)  # inputs for which what it computes goes another way

    @property
    def traced_for(self) -> Look:
        """The inputs that it was traced with."""
        shapes = {name: self.program.graph.value[name].shape for name in self.program.graph.inputs}
        numbers = {name: _look(each) for name, each in self.program.numbers.items()}
        return frozenset({**shapes, **numbers, "": self.training}.items())

    def untried(self, model: nn.Module, env: Mapping[str, Any]) -> Look | None:
        """The inputs of a call in whose middle it may turn out that another form is to run it, or None.

        Hooks of opened modules are seen to change results when they run, and sizes of what is computed when
        it is.
        """
        if self.has_hooks() and not self.tried:
            return look_of(model, env)
        if self.questions is None or not self.questions.goes_on:
            return None
        look = look_of(model, env)
        return look if look not in self.tried and look != self.traced_for else None

    def note_run(self, look: Look) -> None:
        """Note that it has run such inputs."""
        if len(self.tried) == MOST_LOOKS:
            self.tried.clear()
        self.tried.add(look)

    def has_hooks(self) -> bool:
        """Whether modules that were opened have hooks."""
        return self.program.guards is not None and any(self.program.guards.hooks)

    def without_made(self) -> TracedForm:
        """What is copied and pickled."""
        return TracedForm(self.program, self.training, self.plan, forwards=self.forwards)

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
        for names, is_tensor in ((self.program.graph.inputs, True), (self.program.numbers, False)):
            for name in names:
                if isinstance(env.get(name, name), Tensor) is not is_tensor and name in env:
                    was, now = ("a tensor", "a number") if is_tensor else ("a number", "a tensor")
                    raise OtherForm(f"argument {name} was {was} in the trace and is {now} now")
        guards = self.program.guards
        if guards is not None and guards.forms is not None:
            guards.forms.check(env)
        if self.questions is None:
            inputs = (*self.program.graph.inputs, *self.program.numbers)
            self.questions = Questions.of(self.program.operations, inputs)
        if self.questions.operations:
            self.questions.ask(model, env)
        if self.refused and look_of(model, env) in self.refused:
            raise OtherForm("what is computed of inputs of such shapes goes another way")
        if guards is not None and not guards.settings.settle(env):
            raise OtherForm("the inputs have other shapes than those that the model settled for")
        return env

    def advice_on_sizes(self, env: Mapping[str, Any]) -> str:
        """What to do about an error where inputs are not of the sizes that were traced; or ""."""
        graph = self.program.graph
        for name in graph.inputs:
            given = env.get(name)
            if isinstance(given, Tensor) and not given.is_nested and given.shape != graph.value[name].shape:
                now, then = [*given.shape], [*graph.value[name].shape]
                return (
                    f"{name} is of shape {now}, and was of {then} in the trace. Where the model's code goes "
                    "by sizes of what it has computed, trace it again with such an input."
                )
        return ""


def look_of(model: nn.Module, env: Mapping[str, Any]) -> Look:
    """What decides the sizes of what is computed in a call: shapes, whole numbers, and the model's mode."""
    return frozenset([("", model.training), *((name, _look(each)) for name, each in env.items())])


def _look(given: Any) -> Any:
    if isinstance(given, Tensor):
        return None if given.is_nested else tuple(given.shape)
    return given if isinstance(given, int) else type(given)
