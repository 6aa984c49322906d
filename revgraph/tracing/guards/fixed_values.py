"""What a trace fixed: one thing that opened code read, as it was, and whether it still is.

Most of it is the model's: attributes of modules and of the objects that these hold, which are copied and
pickled with the model. The rest is `outside` of it: globals, free variables, attributes of classes, the
environment. Copies share those. A pickled read finds its namespace again by the module's name; what cannot
be found there by value or by name does not hold any more, and the net's next call is traced.
"""

from __future__ import annotations

import array
import copy
import functools
import os
import sys
from collections import deque
from collections.abc import MutableMapping
from contextvars import ContextVar
from dataclasses import dataclass
from types import BuiltinFunctionType, CellType, FunctionType, MethodType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

PLAIN = (
    *(bool, int, float, complex, str, bytes, type(None), range, slice),
    *(torch.device, torch.Size, torch.dtype, torch.layout, torch.memory_format),
)
CONTAINERS = (list, tuple, dict, set, frozenset, deque)
NAMED = (FunctionType, BuiltinFunctionType, MethodType, type, property)


class MISSING:
    """Stands for what is not there."""


class LOST:
    """Stands for what a pickle could not hold: nothing is it."""


class Namespace:
    """A module's globals, found again by its name; or the environment, which has none."""

    def __init__(self, name: str, place: MutableMapping[str, Any]) -> None:
        self.name = name
        self.place = place

    def __deepcopy__(self, memo: Any) -> Namespace:
        return self

    def __reduce__(self) -> Any:
        return namespace_of, (self.name,)


def namespace_of(name: str) -> Namespace:
    """The namespace of that name."""
    if name == ENVIRONMENT.name:
        return ENVIRONMENT
    return Namespace(name, vars(sys.modules[name]) if name in sys.modules else {})


ENVIRONMENT = Namespace("", os.environ)


class AttributeNames:
    """The names of an object's attributes, for code that asks for all of them."""

    def __init__(self, owner: Any) -> None:
        self.owner = owner

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name in vars(self.owner) if name != "forward")  # which a trace may put there


class Cell:
    """A free variable of a function: copies of the function share it."""

    def __init__(self, cell: CellType) -> None:
        self.cell = cell

    @property
    def content(self) -> Any:
        try:
            return self.cell.cell_contents
        except ValueError:  # it is empty by now
            return MISSING

    def __deepcopy__(self, memo: Any) -> Cell:
        return self

    def __reduce__(self) -> Any:
        return LOST, ()


class ContextValue:
    """What a context variable holds, as an attribute."""

    def __init__(self, variable: ContextVar[Any]) -> None:
        self.variable = variable

    @property
    def value(self) -> Any:
        return self.variable.get(MISSING)

    def __deepcopy__(self, memo: Any) -> ContextValue:
        return self


@dataclass(frozen=True, slots=True)
class Read:
    """One thing that opened code read: whose, which, and what it was. `path` is how the code wrote it.

    `version` is that of a tensor.
    """

    owner: Any
    name: str
    value: Any
    path: str
    version: int = 0
    outside: bool = False

    def now(self) -> Any:
        """The thing as it is, in the form that `value` has."""
        if isinstance(self.owner, Namespace):
            value = self.owner.place.get(self.name, MISSING)
        else:
            value = getattr(self.owner, self.name, MISSING)
        return snapshot(value) if isinstance(self.value, Snapshot) else value

    def holds(self) -> bool:
        """Whether it is what it was."""
        return same(self.now(), self.value)

    def text(self, owner: str) -> str:
        """The expression that reads it, of the variable of its owner's."""
        if isinstance(self.owner, Namespace):
            return f"{owner}({self.name!r}, MISSING)"
        if self.value is MISSING:
            return f"getattr({owner}, {self.name!r}, MISSING)"
        return f"{owner}.{self.name}" if self.name.isidentifier() else f"getattr({owner}, {self.name!r})"

    def asked(self) -> Any:
        """What stands for the owner in that expression."""
        return self.owner.place.get if isinstance(self.owner, Namespace) else self.owner

    def __deepcopy__(self, memo: Any) -> Read:
        if self.outside:
            return self
        kind, given = self.__reduce__()
        return kind(*copy.deepcopy(given, memo))

    def __reduce__(self) -> Any:
        owner, value = self.owner, self.value
        if not self.outside:
            held = version_of(value) == self.version
            return _read_again, (owner, self.name, value, self.path, held)
        if isinstance(owner, FunctionType):
            found = _function_named(owner.__module__, owner.__qualname__) is owner
            plain = value if _is_plain(snapshot(value)) else LOST
            return _read_of_function, (
                owner.__module__,
                owner.__qualname__ if found else "",
                self.name,
                plain,
                self.path,
            )
        if not isinstance(owner, Namespace) and not (isinstance(owner, type) and _is_found(owner)):
            owner, value = LOST, LOST
        elif isinstance(value, NAMED):  # code, which is another process's anyway
            return _read_by_name, (owner, self.name, self.path)
        elif not _is_plain(value):
            value = LOST
        return Read, (owner, self.name, value, self.path, 0, True)


def _read_again(owner: Any, name: str, value: Any, path: str, held: bool) -> Read:
    """A copied read, whose tensor counts its edits from the start."""
    return Read(owner, name, value, path, version_of(value) if held else -1)


def _read_by_name(owner: Any, name: str, path: str) -> Read:
    found = Read(owner, name, LOST, path, 0, True)
    value = found.now()
    return Read(owner, name, value, path, 0, True) if isinstance(value, NAMED) else found


def _read_of_function(module: str, function: str, name: str, value: Any, path: str) -> Read:
    """A read of a function that is found again by its name; of others the code is taken for what it was."""
    owner = _function_named(module, function)
    if name == "__code__":
        return Read(owner, name, getattr(owner, name, MISSING), path, 0, True)
    now = getattr(owner, name, MISSING)
    if not isinstance(value, Snapshot) and same(snapshot(now), snapshot(value)):
        value = now
    return Read(owner, name, value, path, 0, True)


def _is_found(kind: type) -> bool:
    """Whether a class is found again by its name."""
    found: Any = sys.modules.get(kind.__module__)
    for part in kind.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is kind


def _function_named(module: str, name: str) -> FunctionType | None:
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found if type(found) is FunctionType else None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The content of a container: kinds and plain leaves by value, everything else by identity."""

    kind: type
    items: tuple[Any, ...]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Snapshot) or self.kind is not other.kind:
            return False
        return len(self.items) == len(other.items) and all(map(same, self.items, other.items))

    __hash__ = None  # pyright: ignore


@dataclass(frozen=True, slots=True)
class EditedTensor:
    """A tensor in a container, with the number of its edits in place."""

    tensor: Tensor
    version: int

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, EditedTensor) and self.tensor is other.tensor and self.version == other.version
        )

    __hash__ = None  # pyright: ignore

    def __reduce__(self) -> Any:
        return _edited_again, (self.tensor, version_of(self.tensor) == self.version)


def _edited_again(tensor: Tensor, held: bool) -> EditedTensor:
    return EditedTensor(tensor, version_of(tensor) if held else -1)


COMPARED = (Snapshot, EditedTensor, MethodType, frozenset)


def same(one: Any, two: Any) -> bool:
    """Whether two things read are the same: plain ones by value and type, others by identity."""
    if one is two:
        return True
    if type(one) is not type(two) or not isinstance(one, (*PLAIN, *COMPARED)):
        return False
    if isinstance(one, (float, complex)):  # by the sign of zeros, too, and what is no number is itself
        return repr(one) == repr(two)
    return bool(one == two)


def snapshot(value: Any, around: tuple[int, ...] = ()) -> Any:
    """A container's content to compare with later; anything else as it is. It lies in those `around`."""
    kind = type(value)
    if issubclass(kind, CONTAINERS):
        items: Any = value
        if issubclass(kind, dict):
            items = [each for pair in dict.items(value) for each in pair]
        elif issubclass(kind, (set, frozenset)):
            return Snapshot(kind, (frozenset(value), frozenset([(type(each), each) for each in value])))
        if kind not in CONTAINERS and getattr(value, "__dict__", None):
            items = [*items, *(each for pair in vars(value).items() for each in pair)]
    elif kind is SimpleNamespace:
        items = [each for pair in vars(value).items() for each in pair]
    elif kind.__module__ == "numpy" and kind.__name__ == "ndarray":
        return Snapshot(kind, (str(value.dtype), str(value.shape), value.tobytes()))
    elif kind in (bytearray, array.array):
        return Snapshot(kind, (bytes(value),))
    elif kind is functools.partial:
        items = [value.func, *value.args, *(each for pair in value.keywords.items() for each in pair)]
    else:
        return value
    inside = (*around, id(value))
    return Snapshot(kind, tuple([_item(each, inside) for each in items]))


def _item(value: Any, around: tuple[int, ...]) -> Any:
    kind = type(value)
    if kind in PLAIN or id(value) in around:
        return value
    if issubclass(kind, Tensor) and not issubclass(kind, nn.Parameter):
        return EditedTensor(value, version_of(value))
    return snapshot(value, around)


def version_of(value: Any) -> int:
    """How often a tensor was edited in place, as far as that is counted."""
    return value._version if isinstance(value, Tensor) and not value.is_inference() else 0


def is_held_by_value(value: Any) -> bool:
    """Whether the value of a read is compared by equality."""
    return isinstance(value, (*PLAIN, MethodType, Snapshot))


def _is_plain(value: Any) -> bool:
    if isinstance(value, Snapshot):
        return all(map(_is_plain, value.items))
    if isinstance(value, frozenset):
        return all(map(_is_plain, value))
    return isinstance(value, PLAIN) or value is MISSING
