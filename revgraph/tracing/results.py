"""What a traced forward returns, as a form: its tensors are outputs of the graph, the rest is as it was."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any

from torch import Tensor, fx

from revgraph.expressions import ObjectForm, Register, map_leaves
from revgraph.tracing.arguments import fields_of, is_structured, objects_in
from revgraph.tracing.proxies import Untraceable

if TYPE_CHECKING:
    from revgraph.tracing.tracer import Tracer


class ResultForms:
    """Makes the form of a forward's results; `nodes` are the outputs of the graph, which the form numbers.

    Objects of user code are returned as new ones. One that was `given` to the forward, or that the model
    holds, would be another object than the model returns, and is refused.
    """

    def __init__(self, tracer: Tracer, given: Any) -> None:
        self.tracer = tracer
        self.given = given
        self.nodes: list[fx.Node] = []
        self._objects: dict[int, ObjectForm | None] = {}

    def form_of(self, leaf: Any) -> Any:
        """A result's place among the graph's outputs; constants stay what they are."""
        if not isinstance(leaf, (fx.Proxy, Tensor)):
            if is_structured(leaf):
                return self._object(leaf)
            if type(leaf).__module__ not in ("builtins", "torch") and not isinstance(leaf, Enum):
                raise Untraceable(
                    f"it returns a {type(leaf).__name__}; return tensors, tuples, lists or dicts"
                )
            return leaf
        argument = self.tracer.create_arg(leaf)
        if not isinstance(argument, fx.Node):
            return argument
        self.nodes.append(argument)
        return Register(len(self.nodes) - 1)

    def _object(self, made: Any) -> ObjectForm:
        """The form of an object that the forward made, such as a cache of keys and values."""
        known = self._objects.get(id(made), self)
        if known is None:
            raise Untraceable(f"it returns a {type(made).__name__} that holds itself")
        if isinstance(known, ObjectForm):
            return known
        if id(made) in objects_in((self.given, [vars(module) for module in self.tracer.root.modules()])):
            raise Untraceable(
                f"it returns a {type(made).__name__} that it was given or that the model holds; return its "
                "tensors, or a new one"
            )
        number = len(self._objects) + 1
        self._objects[id(made)] = None
        fields = self.tracer.unpacked(fields_of(made))
        fields = map_leaves(self.form_of, fields)
        form = self._objects[id(made)] = ObjectForm(type(made), fields, number)
        return form
