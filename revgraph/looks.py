"""Looks: keys that are equal for modules and inputs that cost the same and give the same shapes.

Code often numbers its layers (`layer_idx`), and asks for the number only where there is a cache. So a look
comes in two parts: the structure, and the values of attributes of the modules that users wrote. `reads_of`
sees which of these a run reads; a module that differs in others only would have run the same.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from types import BuiltinFunctionType, CellType, FunctionType, MethodType
from typing import Any, TypeAlias
from unittest.mock import patch

import torch
from torch import Tensor, nn

# Objects by how deep they were looked into and their ids: themselves, and what they look like.
Memo: TypeAlias = dict[tuple[int, int], tuple[Any, Any]]
# An attribute of several modules: the module's number among them, and the name.
Place: TypeAlias = tuple[int, str]

PLAIN = (int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
CONTAINERS = (list, tuple, set, frozenset, deque)
TABLES = frozenset(nn.Module().__dict__) - {"training"}
# How code gets at all attributes at once; torch's modules and revgraph do so without looking at the user's.
WHOLE = frozenset({"__dict__", "__reduce_ex__", "__getstate__", "__deepcopy__", "__copy__"})
HARMLESS = ("torch.nn.modules.module", "revgraph.")
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
DEPTH = 2  # how deep objects are looked into
EMPTY = CellType()
LONG = 1000  # items of a container up to which it is compared by content


class Structure:
    """What a module looks like, with its hash, which is asked for often and takes long to find."""

    __slots__ = ("_content", "_hash")

    def __init__(self, content: tuple[Any, ...]) -> None:
        self._content = content
        self._hash = hash(content)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return isinstance(other, Structure) and (self._hash, self._content) == (other._hash, other._content)

    def __repr__(self) -> str:
        return repr(self._content)


# Structures by the ids of their modules, and by themselves, so that equal ones are one object.
Structures: TypeAlias = dict[Any, Structure]


def look_of(module: nn.Module, told: Structures | None = None) -> Any:
    """A module's type, attributes and parameters' forms, and those of its children."""
    return structure_of(module, told), tuple(attributes_of(family([module])).items())


def structure_of(module: nn.Module, told: Structures | None = None) -> Structure:
    """The look without the values of attributes of modules that are not torch's.

    `told` remembers those of modules that stay as they are for as long as it is used.
    """
    told = {} if told is None else told
    if id(module) not in told:
        found = _structure_of(module, told)
        told[id(module)] = told.setdefault(found, found)
    return told[id(module)]


def _structure_of(module: nn.Module, told: Structures) -> Structure:
    plain = repr(_plain(module)) if is_torchs(module) else tuple(_attributes(module))
    own = tuple(
        (name, None if tensor is None else form_of(tensor))
        for table in (module._parameters, module._buffers)
        for name, tensor in table.items()
    )
    children = tuple(
        [
            (name, child if child is None else structure_of(child, told))
            for name, child in module._modules.items()
        ]
    )
    return Structure((type(module), plain, own, children, _hooks(module)))


def _hooks(module: nn.Module) -> str:
    """What a module's hooks look like; "" without any, as most modules are."""
    tables = [module.__dict__[name] for name in HOOKS if module.__dict__[name]]
    if not tables:
        return ""
    told: Memo = {}
    return repr([[_told(hook, DEPTH, told) for hook in table.values()] for table in tables])


def family(modules: Sequence[nn.Module]) -> list[nn.Module]:
    """Modules with all that they contain, in the order in which structures have them."""
    found: list[nn.Module] = []
    for module in modules:
        found.append(module)
        found += family([child for child in module._modules.values() if child is not None])
    return found


def attributes_of(modules: Sequence[nn.Module], told: Memo | None = None) -> dict[Place, str]:
    """What the attributes of modules look like that are not torch's. `told` remembers objects."""
    told = {} if told is None else told
    return {
        (number, name): repr(_told(value, DEPTH, told))
        for number, module in enumerate(modules)
        if not is_torchs(module)
        for name, value in _attributes(module).items()
    }


@contextmanager
def reads_of(modules: Sequence[nn.Module]) -> Iterator[set[tuple[int, str | None]]]:
    """A block in which attributes that are read of modules are collected, with the modules' ids.

    The name is None where code gets at all of them at once.
    """
    seen: set[tuple[int, str | None]] = set()
    original: Any = nn.Module.__getattribute__
    seen.update((id(each), None) for each in modules if type(each).__getattribute__ is not original)
    known = {id(module) for module in modules}

    def read(owner: Any, name: str) -> Any:
        if id(owner) in known:
            if name not in WHOLE:
                seen.add((id(owner), name))
            elif not sys._getframe(1).f_globals.get("__name__", "").startswith(HARMLESS):
                seen.add((id(owner), None))
        return original(owner, name)

    with patch.object(nn.Module, "__getattribute__", read):
        yield seen


def places_of(
    seen: set[tuple[int, str | None]], modules: Sequence[nn.Module], values: Mapping[Place, str]
) -> tuple[Place, ...]:
    """The places among `values` that were seen to be read."""
    return tuple(
        (number, name)
        for number, name in values
        if (id(modules[number]), name) in seen or (id(modules[number]), None) in seen
    )


def form_of(value: Any) -> Any:
    """A tensor's form, in which operators choose their ways too by strides; for other things, what they
    print as."""
    if isinstance(value, Tensor):
        stride = value.stride() if value.layout is torch.strided and not value.is_nested else ()
        return tuple(value.shape), stride, value.dtype, value.layout, value.device, value.requires_grad
    return repr(value)


def is_torchs(module: nn.Module) -> bool:
    """Whether a module is one of torch's own, all of whose plain attributes matter."""
    return type(module).__module__.startswith("torch.")


def _plain(module: nn.Module) -> tuple[tuple[str, Any], ...]:
    return tuple(
        (key, value)
        for key, value in module.__dict__.items()
        if not key.startswith("_") and isinstance(value, (int, float, str, tuple, type(None)))
    )


def _attributes(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in module.__dict__.items() if name not in TABLES}


def _code_of(function: FunctionType) -> list[Any]:
    """What tells two functions apart that have one name, as lambdas have."""
    code = function.__code__
    return [code.co_filename, code.co_firstlineno, code.co_code, code.co_names, repr(code.co_consts)]


def _told(value: Any, depth: int, told: Memo) -> Any:
    """A value as something to print: plain ones as they are, functions by name, objects by what they hold."""
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, Tensor):
        return form_of(value)
    if isinstance(value, nn.Module) or not depth:
        return type(value)
    if isinstance(value, (dict, *CONTAINERS)):
        if len(value) > LONG:
            return type(value), len(value), id(value)
        keys = [_told(key, 0, told) for key in value] if isinstance(value, dict) else None
        items = value.values() if isinstance(value, dict) else value
        found = [_told(each, depth - 1, told) for each in items]
        return type(value), keys, sorted(map(repr, found)) if isinstance(value, (set, frozenset)) else found
    if isinstance(value, partial):
        return partial, _told([value.func, value.args, value.keywords], depth, told)
    if isinstance(value, MethodType):
        return value.__module__, value.__qualname__, _told(value.__self__, depth - 1, told)
    if isinstance(value, (type, BuiltinFunctionType)):
        return value.__module__, value.__qualname__
    if (depth, id(value)) not in told:  # kept alive, or another one could get its number
        if isinstance(value, FunctionType):
            held: Any = [value.__module__, value.__qualname__, value.__defaults__, value.__kwdefaults__]
            held += _code_of(value)
            held += [cell.cell_contents for cell in value.__closure__ or () if cell != EMPTY]
        else:
            held = getattr(value, "__dict__", None)
        told[depth, id(value)] = value, (type(value), _told(held, depth, told))
    return told[depth, id(value)][1]
