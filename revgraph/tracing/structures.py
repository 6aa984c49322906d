"""Structures of what calls give: how many tensors, in which containers, and what is none.

Code that takes a result apart was traced for one structure, which is that of the example. Where it depends on
the sizes of what was computed, or on what runs inside of a module that is one node, each call is held to it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from revgraph.tracing.proxies import TRACE_AGAIN, OtherForm


@dataclass(frozen=True, slots=True)
class Container:
    """A container of results: its class, what is in it, and the keys of that in a dictionary."""

    kind: type
    items: tuple[Any, ...]
    keys: tuple[Any, ...] | None = None


@dataclass(frozen=True, slots=True)
class Fixed:
    """A number, a text or None that the code had made when it was traced."""

    value: Any


@dataclass(frozen=True, slots=True)
class Leaf:
    """A tensor, or what is no container of any."""

    is_tensor: bool


TENSOR, OTHER = Leaf(True), Leaf(False)
PLAIN = (int, float, complex, str, bytes, type(None))
# Where a node's meta holds the structure of what it gives, if the code goes by that.
STRUCTURE = "revgraph_structure"


def structure_of(tree: Any, leaf_of: Callable[[Any], Any]) -> Any:
    """The structure of a tree of containers, whose leaves have those that `leaf_of` says."""
    if isinstance(tree, dict):
        items = tuple([structure_of(each, leaf_of) for each in tree.values()])
        return Container(type(tree), items, tuple(tree))
    if isinstance(tree, (tuple, list)):
        return Container(type(tree), tuple([structure_of(each, leaf_of) for each in tree]))
    return leaf_of(tree)


def leaf_structure(leaf: Any) -> Any:
    """That of what is no container."""
    if isinstance(leaf, Tensor):
        return TENSOR
    return Fixed(leaf) if isinstance(leaf, PLAIN) else OTHER


def outer_structure(container: Any) -> Container:
    """That of a container alone, whatever is in it."""
    keys = tuple(container) if isinstance(container, dict) else None
    return Container(type(container), (OTHER,) * len(container), keys)


def check_structure(found: Any, expected: Any) -> None:
    """Hold the result of a call to the structure that it had for the example.

    Raises:
        OtherForm: it has another one.
    """
    if expected is not TENSOR or not isinstance(found, Tensor):
        _check(found, expected)


def _check(found: Any, expected: Any) -> None:
    if isinstance(expected, Fixed):
        fits = type(found) is type(expected.value) and repr(found) == repr(expected.value)
    elif isinstance(expected, Leaf):
        fits = not expected.is_tensor or isinstance(found, Tensor)
    elif isinstance(expected, Container) and type(found) is expected.kind:
        fits = len(found) == len(expected.items)
        fits = fits and (expected.keys is None or tuple(found) == expected.keys)
    else:
        fits = False
    if not fits:
        raise OtherForm(
            f"a call that gave {_told(expected)} for the example input gives {_told_of(found)} for this one, "
            f"and the traced code goes by that. {TRACE_AGAIN}",
            "what a call gives",
        )
    if isinstance(expected, Container):
        for one, other in zip(
            found if expected.keys is None else found.values(), expected.items, strict=True
        ):
            _check(one, other)


def _told(structure: Any) -> str:
    if isinstance(structure, Leaf):
        return "a tensor" if structure.is_tensor else "something"
    if isinstance(structure, Fixed):
        return repr(structure.value)
    named = structure.kind.__name__
    if structure.keys is not None:
        return f"a {named} of {', '.join(map(repr, structure.keys))}"
    return f"a {named} of {len(structure.items)}"


def _told_of(found: Any) -> str:
    if isinstance(found, Tensor):
        return "a tensor"
    if isinstance(found, (tuple, list, dict)):
        return _told(outer_structure(found))
    return repr(found) if isinstance(found, (int, float, str, type(None))) else f"a {type(found).__name__}"
