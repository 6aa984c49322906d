"""Module calls that the trace goes into, and how one is taken back.

Whether the code of a module can be traced shows only when it is run. So each call is an attempt, which may be
nested in others: on any error but a `RevgraphError` all that happened since it began is taken back, and the
call is recorded as one node. What that is, in one place (`Attempt`):

- The nodes: in the graph, in `fakes`, and in the scopes around. Proxies of them that the code has put into
  attributes of the module are taken out again (`putting_back`).
- Memory that was overwritten in place: without these nodes it was not.
- The guards, which are of attributes and of functions read. A module that is one node may read what it likes.
- The random state is not wound back, but draws of the code are counted from where it stands now. `trace` puts
  the state itself back at its end.

What is not taken back: `opaque`, which says why the module is one node, and what the code has done to
anything but the model, which nothing here can undo.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import fx, nn

from revgraph.isolation import putting_back

if TYPE_CHECKING:
    from revgraph.tracing.guards.attribute_reads import Mark
    from revgraph.tracing.tracer import Tracer


@dataclass
class ModuleScope:
    """One call of a module that the trace went into, within that of its caller: nodes, arguments, results.

    One that takes or returns `objects` of user code stays open: what goes in and out of them is in the graph.
    """

    path: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    caller: ModuleScope | None = None
    nodes: list[fx.Node] = field(default_factory=list)
    result: Any = None
    checkpoints: bool = False
    objects: bool = False
    is_empty: bool = False

    def is_gone(self) -> bool:
        """Whether its nodes were there and are no more: it became one call."""
        return not self.is_empty and all(node._erased for node in self.nodes)


@dataclass(frozen=True)
class Attempt:
    """A trace as it was when a module call began, to go back to."""

    tracer: Tracer
    last: fx.Node
    overwritten: int
    reads: Mark
    calls: int
    put_back: Callable[[], None]

    @classmethod
    def begin(cls, tracer: Tracer, module: nn.Module) -> Attempt:
        """The trace as it is now, and the module's attributes."""
        last = next(iter(reversed(tracer.graph.nodes)))
        reads, calls = tracer.reads.mark(), tracer.calls.mark()
        return cls(tracer, last, tracer.overwritten.mark(), reads, calls, putting_back(module))

    def check_unchanged(self) -> None:
        """Refuse code that has changed since what it also read."""
        self.tracer.reads.check_unchanged(self.reads)
        self.tracer.calls.check_unchanged(self.calls)

    def roll_back(self) -> None:
        """Go back: the code was not traced after all."""
        tracer = self.tracer
        self.put_back()  # what the code has noted are traced values, which nothing but a trace can use
        nodes = list(tracer.graph.nodes)
        gone = nodes[nodes.index(self.last) + 1 :]
        for node in reversed(gone):
            tracer.graph.erase_node(node)
            tracer.fakes.pop(node, None)
        dead = set(gone)
        tracer.scopes = [scope for scope in tracer.scopes if not dead.intersection(scope.nodes)]
        for scope in tracer.open_scopes:
            scope.nodes = [node for node in scope.nodes if node not in dead]
        tracer.overwritten.forget(self.overwritten)
        tracer.reads.forget(self.reads)
        tracer.calls.forget(self.calls)
        tracer.random.settle()
