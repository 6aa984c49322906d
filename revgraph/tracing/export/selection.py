"""Which modules `torch.export` is to read, where a trace by torch.fx stops.

A trace that the model's own code stops, or whose opaque nodes hold more than half of the model's parameters,
is made again with export for that code. What export opens may hold opaque modules itself: then once more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol, TypeVar

from torch import nn

from revgraph.errors import RevgraphError, add_note
from revgraph.graph import Graph
from revgraph.program import Program
from revgraph.tracing.modes import is_autocast_around
from revgraph.tracing.proxies import AsksIdentity, CollectingHooks, ReadPastAttributes

if TYPE_CHECKING:
    from revgraph.tracing.tracer import Tracer

Exports = Mapping[str, str]  # the paths of modules, with the reason why fx cannot go into each
LARGE = 0.5
NOTHING: Exports = {}
UNSEEN = tuple(each.__name__ for each in (AsksIdentity, ReadPastAttributes, CollectingHooks))


class Trace(Protocol):
    """What is made of a model."""

    @property
    def program(self) -> Program: ...

    @property
    def tracer(self) -> Tracer: ...


Found = TypeVar("Found", bound=Trace)


def trace_with_exports(run: Callable[[Exports], Found]) -> Found:
    """The trace that `run` makes for these exports, with as many as are needed.

    Where the model's own code stops fx and export, the error is that of fx, with a note of export's.
    """
    try:
        found = run(NOTHING)
    except (
        RevgraphError,
        AsksIdentity,
        ReadPastAttributes,
        CollectingHooks,
    ):  # which export would not see, either
        raise
    except Exception as error:
        if is_autocast_around():  # casts would become constants of the graph
            raise
        exports = {"": reason_of(error)}
        try:
            found = run(exports)
        except Exception as second:
            add_note(error, f"torch.export cannot read it either ({reason_of(second)})")
            raise error from None
    else:
        exports = NOTHING
    while wanted := _wanted(found.program.graph, found.tracer, exports):
        exports = {**exports, **wanted}
        try:
            found = run(exports)
        except Exception:
            break
    return found


def reason_of(error: Exception) -> str:
    """Why an attempt failed, in a line: in the user's terms where torch speaks of its own inside."""
    text = str(error)
    if "incompatible function arguments" in text and "Proxy(" in text:
        return (
            f"it calls {text.partition('(')[0]} in torch's C++ code, which takes no traced values "
            "(torch.vmap and the other transforms of torch.func do that)"
        )
    if "is not a member of this module" in text or "is not installed as a submodule" in text:
        return (
            "it uses a parameter or module that is not part of the model (a copy made in the forward, or one "
            "kept in a plain list or dictionary)"
        )
    return f"{type(error).__name__}: {text.partition(chr(10))[0]}"


def _wanted(graph: Graph, tracer: Tracer, exports: Exports) -> Exports:
    """The opaque modules that export has not been tried on, if opaque ones are most of the model."""
    opaque = {node.module for node in graph.nodes if node.module in tracer.opaque}
    if is_autocast_around() or not opaque:
        return NOTHING
    modules = {path: tracer.root.get_submodule(path) for path in opaque}
    held = {id(each): each.numel() for module in modules.values() for each in module.parameters()}
    if sum(held.values()) <= LARGE * sum(each.numel() for each in tracer.root.parameters()):
        return NOTHING
    return {
        path: tracer.opaque[path]
        for path, module in sorted(modules.items())
        if path not in exports and _has_parts(module) and not tracer.opaque[path].startswith(UNSEEN)
    }


def _has_parts(module: nn.Module) -> bool:
    """Whether there is anything to plan in a module: several modules in it have parameters."""
    return sum(bool(each._parameters) for each in module.modules()) > 1
