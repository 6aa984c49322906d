"""What can be reported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from revgraph.graph import Graph
from revgraph.planning import Moment, Plan


@runtime_checkable
class Measured(Protocol):
    """What `rg.measure` returns; `seconds` may come besides."""

    @property
    def peak_bytes(self) -> int: ...
    @property
    def held_bytes(self) -> int: ...
    @property
    def flops(self) -> int: ...
    @property
    def flops_ratio(self) -> float: ...
    @property
    def calls(self) -> Mapping[str, int]: ...


@runtime_checkable
class Compared(Protocol):
    """What `rg.check` returns."""

    @property
    def max_relative_error(self) -> float: ...
    @property
    def angle_degrees(self) -> float: ...
    @property
    def drift(self) -> Mapping[str, float]: ...
    @property
    def verdict(self) -> str: ...
    @property
    def begins_at(self) -> str | None: ...
    @property
    def flips(self) -> Mapping[str, int]: ...


@runtime_checkable
class Held(Protocol):
    """What `rg.saved` returns."""

    @property
    def summary(self) -> str: ...
    @property
    def notes(self) -> tuple[str, ...]: ...
    def cells(self) -> list[tuple[str, ...]]: ...
    def data(self) -> dict[str, Any]: ...


One = Graph | Plan | Measured | Compared | Held | Mapping[str, Measured]
Many = Sequence[Plan] | Sequence[Moment]
Reportable = One | Many


def all_are(kind: type, items: object) -> bool:
    """Whether this is a list, and not an empty one, of such things only."""
    return isinstance(items, (list, tuple)) and bool(items) and all(isinstance(item, kind) for item in items)


def unknown(given: object) -> str:
    """The message for what has no report."""
    return (
        f"cannot report a {type(given).__name__}: give a Graph, a Plan, what rg.measure, rg.check "
        "or rg.saved returned, a list of plans or of moments, or a mapping of names to measurements"
    )
