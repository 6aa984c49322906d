"""The tree that a specification is read into, from YAML or Python: lists, tables, scalars, with places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from revgraph.errors import SpecError
from revgraph.specs.hints import shortened
from revgraph.specs.limits import Limits

Plain: TypeAlias = "str | int | float | bool | None"
Tree: TypeAlias = "Scalar | Listing | Table"


@dataclass(frozen=True, slots=True)
class Scalar:
    """A text, number, truth value or nothing; `where` is its place, as "file:line"."""

    value: Plain
    where: str
    size: int = 1
    depth: int = 1


@dataclass(frozen=True, slots=True)
class Listing:
    """A list. `size` counts the trees in it and `depth` their nesting, with every alias written out."""

    items: tuple[Tree, ...]
    where: str
    size: int
    depth: int


@dataclass(frozen=True, slots=True)
class Table:
    """A mapping from words to trees, in the order written."""

    items: tuple[tuple[str, Tree], ...]
    where: str
    size: int
    depth: int

    def get(self, key: str) -> Tree | None:
        """What stands under the key."""
        return next((tree for name, tree in self.items if name == key), None)

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(key for key, _ in self.items)


def listing(items: Sequence[Tree], where: str, limits: Limits) -> Listing:
    """A list of these items.

    Raises:
        SpecError: it is too large or nested too deep.
    """
    return Listing(tuple(items), where, *_extent(items, where, limits))


def table(items: Sequence[tuple[str, Tree]], where: str, limits: Limits) -> Table:
    """A mapping of these items; errors as for `listing`."""
    return Table(tuple(items), where, *_extent([tree for _, tree in items], where, limits))


def described(tree: Tree) -> str:
    """What stands there, for an error's text."""
    if isinstance(tree, Listing):
        return f"a list of {len(tree.items)}"
    if isinstance(tree, Table):
        return f"a mapping with {shortened(tree.keys[0], 30)}" if tree.items else "an empty mapping"
    if tree.value is None:
        return "nothing"
    if isinstance(tree.value, bool):
        return "true" if tree.value else "false"
    if isinstance(tree.value, str):
        return f"the text {shortened(tree.value)}"
    return f"the number {tree.value}"


def too_deep(where: str, limits: Limits) -> SpecError:
    return SpecError(
        f"{where}: this is nested deeper than {limits.depth} levels. Write a flatter specification."
    )


def too_large(where: str, limits: Limits) -> SpecError:
    return SpecError(
        f"{where}: the specification has more than {limits.nodes} entries once aliases and parameters are "
        "written out. Use `repeat` for layers that recur."
    )


def _extent(items: Sequence[Tree], where: str, limits: Limits) -> tuple[int, int]:
    size = 1 + sum(item.size for item in items)
    depth = 1 + max((item.depth for item in items), default=0)
    if size > limits.nodes:
        raise too_large(where, limits)
    if depth > limits.depth:
        raise too_deep(where, limits)
    return size, depth
