"""Expressions: short straight-line programs over registers, which call modules by their paths."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn
from torch.fx.immutable_collections import immutable_dict
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Register:
    """The place of an operand among the registers of its expression."""

    index: int


@dataclass(frozen=True, slots=True)
class ObjectForm:
    """The form of an object of user code (a dataclass, a cache, a graph batch): class and attributes.

    Forms of one `number` above 0 stand for one object.
    """

    kind: type
    fields: dict[str, Any]
    number: int = 0


@dataclass(frozen=True, slots=True)
class Call:
    """One call: its target is a module's path, a function, a method's name or an attribute's path.

    `frees` are the registers that no later call reads.
    """

    kind: Literal["module", "function", "method", "attribute"]
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: int
    frees: tuple[int, ...]
    where: str = ""

    def __reduce__(self) -> Any:
        target, args = self.target, (self.args, self.kwargs, self.result, self.frees, self.where)
        name = _name_in_functional(target)
        return (_call_by_name, (self.kind, name, *args)) if name else (Call, (self.kind, target, *args))

    def run(self, root: nn.Module, registers: list[Any]) -> Any:
        args = [fill(arg, registers) for arg in self.args]
        kwargs = {key: fill(arg, registers) for key, arg in self.kwargs.items()} if self.kwargs else {}
        for index in self.frees:
            registers[index] = None
        if self.kind == "module":
            return module_at(root, self.target)(*args, **kwargs)
        if self.kind == "function":
            return self.target(*args, **kwargs)
        if self.kind == "method":
            return getattr(args[0], self.target)(*args[1:], **kwargs)
        return attribute_at(root, self.target)


def _name_in_functional(target: Any) -> str:
    """The name of a function of torch's that its own name does not tell, as pickles need it; else ""."""
    if "<locals>" not in str(getattr(target, "__qualname__", "")):
        return ""
    return next((name for name, each in vars(functional).items() if each is target), "")


def _call_by_name(kind: Any, name: str, *args: Any) -> Call:
    return Call(kind, getattr(functional, name), *args)


@dataclass(frozen=True, slots=True)
class Expression:
    """Calls in order. The first `inputs` registers are given; `outputs` are the registers returned."""

    calls: tuple[Call, ...]
    inputs: int
    outputs: tuple[int, ...]
    size: int = field(default=0)

    def run(self, root: nn.Module, inputs: Sequence[Any]) -> tuple[Any, ...]:
        """The outputs for these inputs, with modules looked up below `root`."""
        registers = [*inputs, *[None] * (self.size - self.inputs)]
        del inputs
        for call in self.calls:
            registers[call.result] = call.run(root, registers)
        return tuple([registers[index] for index in self.outputs])

    @property
    def module_paths(self) -> tuple[str, ...]:
        """The modules that are called."""
        return tuple(dict.fromkeys(call.target for call in self.calls if call.kind == "module"))

    @property
    def attribute_paths(self) -> tuple[str, ...]:
        """The parameters, buffers and other attributes that are read directly."""
        return tuple(dict.fromkeys(call.target for call in self.calls if call.kind == "attribute"))


def expression(calls: Sequence[Call], inputs: int, outputs: tuple[int, ...]) -> Expression:
    """An expression of these calls, with each register freed at its last use."""
    last_use: dict[int, int] = {}
    for position, call in enumerate(calls):
        for index in operands(call):
            last_use[index] = position
    kept = set(outputs)
    freed: list[Call] = []
    for position, call in enumerate(calls):
        frees = tuple(index for index, last in last_use.items() if last == position and index not in kept)
        freed.append(Call(call.kind, call.target, call.args, call.kwargs, call.result, frees, call.where))
    size = max([inputs, *(call.result + 1 for call in calls)])
    return Expression(tuple(freed), inputs, outputs, size)


def taken_apart(function: Callable[..., Any], inputs: int, outputs: int) -> Expression:
    """An expression that calls a function of its inputs and returns the items of its result."""
    calls = [Call("function", function, tuple(map(Register, range(inputs))), {}, inputs, ())]
    calls += [
        Call("function", operator.getitem, (Register(inputs), place), {}, inputs + 1 + place, ())
        for place in range(outputs)
    ]
    return expression(calls, inputs, tuple(range(inputs + 1, inputs + 1 + outputs)))


def operands(call: Call) -> list[int]:
    """The registers that a call reads."""
    return [leaf.index for leaf in leaves((call.args, call.kwargs)) if isinstance(leaf, Register)]


def fill(tree: Any, registers: Sequence[Any]) -> Any:
    """The tree with every `Register` replaced by what stands there."""
    if type(tree) is Register:
        return registers[tree.index]
    if issubclass(type(tree), (tuple, list, dict, slice, ObjectForm)):
        return map_leaves(lambda leaf: registers[leaf.index] if type(leaf) is Register else leaf, tree)
    return tree


def map_leaves(function: Callable[[Any], Any], tree: Any) -> Any:
    """The tree of tuples, lists, dictionaries and slices with `function` applied to its leaves."""
    kind = type(tree)  # not isinstance: a proxy answers that for what it stands for
    if kind is tuple:  # as most are
        return tuple([map_leaves(function, item) for item in tree])
    if issubclass(kind, tuple):
        items = [map_leaves(function, item) for item in tree]
        if hasattr(kind, "_fields"):
            return kind(*items)
        return kind(items) if hasattr(kind, "n_sequence_fields") else tuple(items)
    if issubclass(kind, list):
        return [map_leaves(function, item) for item in tree]
    if issubclass(kind, dict):
        pairs = [(key, map_leaves(function, item)) for key, item in tree.items()]
        if kind is dict or kind is immutable_dict:  # which torch.fx makes of a plain one
            return dict(pairs)
        return with_pairs(tree, pairs)
    if kind is ObjectForm:
        return ObjectForm(tree.kind, map_leaves(function, tree.fields), tree.number)
    if kind is slice:
        return slice(*(map_leaves(function, part) for part in (tree.start, tree.stop, tree.step)))
    return function(tree)


def with_pairs(tree: Any, pairs: Sequence[tuple[Any, Any]]) -> Any:
    """A copy of a dictionary of any class with other items at its keys."""
    like = copy.copy(tree)
    for key, item in pairs:
        like[key] = item
    return like


def apply_function(function: Any, *args: Any, **kwargs: Any) -> Any:
    """What an `autograd.Function` gives: a call of it as a plain function."""
    return function.apply(*args, **kwargs)


def leaves(tree: Any) -> list[Any]:
    """The leaves of such a tree, in order."""
    found: list[Any] = []
    _gather(tree, found)
    return found


def _gather(tree: Any, found: list[Any]) -> None:
    kind = type(tree)  # as in `map_leaves`
    if issubclass(kind, (tuple, list)):
        for item in tree:
            _gather(item, found)
    elif issubclass(kind, dict):
        for item in tree.values():
            _gather(item, found)
    elif kind is ObjectForm:
        _gather(tree.fields, found)
    elif kind is slice:
        found += (tree.start, tree.stop, tree.step)
    else:
        found.append(tree)


def module_at(root: nn.Module, path: str) -> nn.Module:
    """The submodule at a dotted path; at "" the root, or the model that the root stands for."""
    if not path:
        return root.__dict__.get("_model", root)
    module: Any = root
    for name in path.split("."):
        module = module._modules[name]
    return module


def attribute_at(root: nn.Module, path: str) -> Any:
    """The parameter, buffer or other attribute at a dotted path."""
    owner, _, name = path.rpartition(".")
    return getattr(module_at(root, owner) if owner else root, name)
