"""Proxies that carry a shadow: what the traced value is for the example input."""

from __future__ import annotations

import operator
import sys
from types import FrameType
from typing import Any

import torch
from torch import Tensor, fx, nn

from revgraph.errors import TraceError
from revgraph.expressions import leaves
from revgraph.storages import memory_key
from revgraph.tracing.user_code import IDENTICAL, caller, is_users, may_compare


class Untraceable(Exception):
    """The forward being traced does something that a graph cannot record."""


class ReadPastAttributes(Untraceable):
    """The forward computes something of parameters or buffers that no attribute was asked for."""


class CollectingHooks(Untraceable):
    """Hooks that may speak to the code around, through a context variable that it has set."""


# What a proxy has of its own; assigning anything else to it would assign it to no tensor.
OWN_ATTRIBUTES = frozenset({"attr", "items", "node", "root", "shadow", "tracer", "_proxy"})


class ShadowProxy(fx.Proxy):
    """An fx proxy whose `shadow` is its value for the example input; tensors are shapes without memory.

    Python's questions about numbers (truth, length, index) are answered from the shadow, and the answer
    is recorded as a guard that other inputs are held to.
    """

    shadow: Any
    tracer: Any

    def __init__(self, node: fx.Node, tracer: Any) -> None:
        super().__init__(node, tracer)
        self.items: dict[Any, Any] = {}

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in OWN_ATTRIBUTES:
            raise Untraceable(f"the attribute {name!r} of a traced tensor is assigned")
        super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            return ShadowAttribute(self, name)
        value = getattr(self.shadow, name)  # or it has no such attribute either
        if value is None:
            return self.tracer.create_proxy("call_function", getattr, (self, name), {}).held_to_none()
        return _for_code(ShadowAttribute(self, name), value, sys._getframe(1))

    def fixed(self) -> Any:
        """What it stands for, to which other inputs are held."""
        return self._answer("value")

    def kind(self) -> type:
        """The class of what it stands for."""
        if not is_tensor(self.shadow):
            return self._answer("type")
        if self.node.op == "get_attr" and str(self.node.target) in self.tracer.parameter_paths:
            return nn.Parameter
        return Tensor

    def __getitem__(self, key: Any) -> Any:
        if not holds_tensors(self.shadow):
            return self.tracer.create_proxy("call_function", operator.getitem, (self, key), {})
        if isinstance(key, slice):
            return tuple(self)[key]
        if key not in self.items:
            item = self.tracer.create_proxy("call_function", operator.getitem, (self, key), {})
            self.items[key] = item.held_to_none() if item.shadow is None else item
        return self.items[key]

    def held_to_none(self) -> None:
        """None, which code asks for with `is`; other inputs must give it too."""
        self.tracer.create_proxy("call_function", guard, (self, "none", True, caller()), {})

    def _answer(self, ask: str) -> Any:
        if is_tensor(self.shadow):
            raise Untraceable("the path through the code depends on the values in a tensor")
        if self.node.op == "get_attr" and type(self.shadow) is bool:  # a training flag
            return QUESTIONS[ask](self.tracer.reads.flag(str(self.node.target), self.shadow))
        if self.node.op == "get_attr":
            raise Untraceable(f"the path through the code depends on {self.node.target}")
        self.tracer.check_random()
        answer = QUESTIONS[ask](self.shadow)
        self.tracer.create_proxy("call_function", guard, (self, ask, answer, caller()), {})
        return answer

    def __bool__(self) -> bool:
        return self._answer("bool")

    def __int__(self) -> int:
        return self._answer("int")

    def __float__(self) -> float:
        return self._answer("float")

    def __index__(self) -> int:
        return self._answer("int")

    def __str__(self) -> str:
        return repr(self) if is_tensor(self.shadow) or holds_tensors(self.shadow) else self._answer("text")

    def __format__(self, spec: str) -> str:
        shadow = self.shadow
        if not spec and not is_tensor(shadow):
            return str(self)
        return format(self._answer("float" if type(shadow) is float else "int"), spec)

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise Untraceable("a tensor is turned into a numpy array")

    def __setitem__(self, key: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})

    def __len__(self) -> int:
        if is_tensor(self.shadow):
            return self.size(0).__index__()
        return len(self.shadow) if holds_tensors(self.shadow) else self._answer("len")

    def __iter__(self) -> Any:
        if isinstance(self.shadow, dict):
            return iter(self.shadow)
        return iter([self[index] for index in range(len(self))])

    def keys(self) -> Any:
        return self.shadow.keys()

    def __contains__(self, item: Any) -> bool:
        raise Untraceable("`in` asks for the values of a traced object")

    def __hash__(self) -> int:
        if isinstance(self.shadow, IDENTICAL):
            raise Untraceable(
                f"{self.shadow!r} of a traced tensor is looked up in a set or dictionary; compare it by =="
            )
        return id(self)


class ShadowAttribute(ShadowProxy):
    """An attribute of a proxy; becomes a node when it is used, or a method call when it is called."""

    def __init__(self, root: ShadowProxy, attr: str) -> None:
        self.root = root
        self.attr = attr
        self.tracer = root.tracer
        self.items = {}
        self._proxy: Any = None

    def _made(self) -> Any:
        if self._proxy is None:
            self._proxy = self.tracer.create_proxy("call_function", getattr, (self.root, self.attr), {})
        return self._proxy

    @property
    def node(self) -> fx.Node:
        return self._made().node

    @property
    def shadow(self) -> Any:
        return self._made().shadow

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        proxy = self.tracer.create_proxy("call_method", self.attr, (self.root, *args), kwargs)
        return _for_code(proxy, proxy.shadow, sys._getframe(1))


def _for_code(proxy: ShadowProxy, value: Any, frame: FrameType) -> Any:
    """The proxy; what it stands for where the code that asked for it may compare that by `is`."""
    is_compared = isinstance(value, IDENTICAL) and is_users(frame.f_globals.get("__name__", ""))
    if is_compared and may_compare(frame, type(value)):
        return proxy.fixed()
    return proxy


QUESTIONS: dict[str, Any] = {
    "bool": bool,
    "int": int,
    "float": float,
    "len": len,
    "none": lambda thing: thing is None,
    "value": lambda thing: thing,
    "type": type,
    "text": str,
    "distinct": lambda things: len({*map(id, things)}) == len(things),
}


def _in_place(operation: Any) -> Any:
    """The in-place form of an operator: on a tensor it changes what the proxy, and any alias, stands for."""

    def change(self: ShadowProxy, other: Any) -> Any:
        if not is_tensor(self.shadow):
            return NotImplemented
        self.tracer.create_proxy("call_function", operation, (self, other), {})
        return self

    return change


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor"):
    setattr(ShadowProxy, f"__i{_name}__", _in_place(getattr(operator, f"i{_name}")))


def guard(actual: Any, ask: str, expected: Any, where: str) -> None:
    """Hold an input to the answer on which the trace went one way and not another.

    Raises:
        TraceError: this input's answer is another one.
    """
    answer = QUESTIONS[ask](actual)
    if answer != expected or type(answer) is not type(expected):
        what = "a number" if ask in ("bool", "int", "float", "len") else "something"
        raise TraceError(
            f"at {where} the model asked for {what} that was {expected!r} for the example input and is "
            f"{answer!r} for this one, so the traced path may not be the right one. "
            "Trace the model again with an input like this."
        )


def overlaps(one: Tensor, two: Tensor) -> bool:
    """Whether two tensors may share memory. Slices of one tensor along one dimension are told apart."""
    if memory_key(one) != memory_key(two):
        return False
    if one.layout is not torch.strided or two.layout is not torch.strided or one.stride() != two.stride():
        return True
    first, second = (one, two) if one.storage_offset() <= two.storage_offset() else (two, one)
    gap = second.storage_offset() - first.storage_offset()
    for stride, size in zip(first.stride(), first.shape, strict=True):
        larger = min((other for other in first.stride() if other > stride), default=None)
        if stride and gap >= stride * size and gap % stride == 0 and (larger is None or gap < larger):
            return False
    return True


def is_tensor(shadow: Any) -> bool:
    return isinstance(shadow, Tensor)


def holds_tensors(shadow: Any) -> bool:
    """Whether a shadow is a container with tensors inside."""
    return not is_tensor(shadow) and any(is_tensor(leaf) for leaf in leaves(shadow))
