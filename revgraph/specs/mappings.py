"""Reading a Python mapping into the same tree as YAML text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from revgraph.errors import SpecError
from revgraph.specs.hints import shortened
from revgraph.specs.limits import Limits
from revgraph.specs.scalars import readable
from revgraph.specs.trees import Scalar, Tree, listing, table, too_deep, too_large


def read_mapping(value: Any, name: str, limits: Limits) -> Tree:
    """The tree of nested mappings, lists and tuples; places are paths such as "spec.layers[2].head".

    Raises:
        SpecError: something in it is none of these and no text, number, truth value or None; or it is too
            large, too deep or contains itself.
    """
    return _Reader(limits).read(value, name, 0)


class _Reader:
    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.nodes = 0

    def read(self, value: Any, where: str, depth: int) -> Tree:
        self.nodes += 1
        if self.nodes > self.limits.nodes:
            raise too_large(where, self.limits)
        if value is None or isinstance(value, (str, int, float, bool)):
            return self._scalar(value, where)
        if depth >= self.limits.depth:
            raise too_deep(where, self.limits)
        if isinstance(value, Mapping):
            return table(
                [
                    (self._key(key, where), self.read(item, f"{where}.{_cut(key)}", depth + 1))
                    for key, item in value.items()
                ],
                where,
                self.limits,
            )
        if isinstance(value, (list, tuple)):
            items = [self.read(item, f"{where}[{index}]", depth + 1) for index, item in enumerate(value)]
            return listing(items, where, self.limits)
        raise SpecError(
            f"{where}: a specification holds mappings, lists, texts, numbers, truth values and None, "
            f"not {type(value).__name__}. Register a module of your own under a name, and write the name."
        )

    @staticmethod
    def _scalar(value: str | float | None, where: str) -> Scalar:
        if isinstance(value, str):
            readable(value, where)
        if isinstance(value, int) and abs(value) >= 10**18:
            raise SpecError(f"{where}: the number is too large")
        if isinstance(value, float) and value != value:
            raise SpecError(f"{where}: nan is no number that a specification can hold")
        return Scalar(value, where)

    @staticmethod
    def _key(key: Any, where: str) -> str:
        if not isinstance(key, str):
            raise SpecError(f"{where}: a key must be a word, not {shortened(repr(key))}")
        return readable(key, where)


def _cut(key: Any) -> str:
    """The key as part of a place, cut where it is long."""
    text = str(key)
    return text if len(text) <= 40 else text[:37] + "..."
