"""Trees of arguments and results whose tensors are taken out, with a `Place` where each was."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from revgraph.expressions import leaves, map_leaves
from revgraph.tracing.arguments import fields_of, is_structured
from revgraph.tracing.proxies import is_proxy

PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.layout, slice)


@dataclass(frozen=True, slots=True)
class Place:
    """Stands for one of a call's tensors."""

    index: int


def placed(found: list[Tensor], leaf: Any) -> Any:
    """A place for a tensor, which is added to those found."""
    if not isinstance(leaf, Tensor):
        return leaf
    found.append(leaf)
    return Place(len(found) - 1)


def is_plain(tree: Any) -> bool:
    return all(isinstance(leaf, (Tensor, *PLAIN)) for leaf in leaves(tree))


def all_leaves(tree: Any) -> list[Any]:
    found: list[Any] = []
    mapped(found.append, tree)
    return found


def is_same(before: list[Any], after: list[Any]) -> bool:
    """Whether leaves are what they were: tensors and other things themselves, numbers by value."""
    return len(before) == len(after) and all(
        one is two or (type(one) is type(two) and isinstance(one, PLAIN) and one == two)
        for one, two in zip(before, after, strict=True)
    )


def mapped(function: Callable[[Any], Any], tree: Any, known: dict[int, Any] | None = None) -> Any:
    """The tree with `function` applied to its leaves; user code's objects with tensors are made anew."""
    made: dict[int, Any] = {} if known is None else known

    def leaf(each: Any) -> Any:
        if is_proxy(each) or type(each) is Place or not _carries_tensors(each):
            return function(each)
        if id(each) not in made:
            copy: Any = object.__new__(type(each))
            made[id(each)] = copy, each  # which stays alive, and with it its identity
            for name, item in fields_of(each).items():
                object.__setattr__(copy, name, mapped(function, item, made))
        return made[id(each)][0]

    return map_leaves(leaf, tree)


def _carries_tensors(value: Any) -> bool:
    """Whether a value is an object of user code with tensors in it."""
    if not is_structured(value):
        return False
    pending, seen = [value], {id(value)}
    while pending:
        for leaf in leaves(fields_of(pending.pop())):
            if is_proxy(leaf) or isinstance(leaf, (Tensor, Place)):
                return True
            if is_structured(leaf) and id(leaf) not in seen:
                seen.add(id(leaf))
                pending.append(leaf)
    return False


def filled(tree: Any, tensors: Sequence[Any]) -> Any:
    """The tree with these in their places."""
    return mapped(lambda leaf: tensors[leaf.index] if type(leaf) is Place else leaf, tree)
