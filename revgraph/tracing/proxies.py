"""fx proxies that know their value for the example input, and answer Python's questions with it.

torch.fx stops at `if x.shape[0] > 1`, `range(len(x))` or `int(x.size(1))`, for a symbol has no truth, length
or number. Here the value for the example input answers. That fixes one way through the code, so each answer
is recorded as a call of `guard`, a node of the graph: another input either gives the same answer or is
refused when the graph runs. Two kinds of question are never answered so:

- What depends on the numbers in a tensor: they are not known, and another batch would differ.
- Python's `is`, `type` and `id`, which no class can overload. They are met where they are asked: see
  `guards/calls.py`. What may be compared by `is` (a dtype, a flag) is given to such code as it is, guarded.
"""

from __future__ import annotations

import operator
import sys
from types import FrameType
from typing import Any

import torch
from torch import Tensor, fx, nn

from revgraph.errors import TraceError
from revgraph.expressions import leaves
from revgraph.tracing.user_code import IDENTICAL, caller, is_users, may_compare

TRACE_AGAIN = "Trace the model again with an input like this."


class Untraceable(Exception):
    """The forward being traced does something that a graph cannot record."""


class AsksIdentity(Untraceable):
    """Code asks by `is` whether two tensors are one, and these may be."""

    def __init__(self) -> None:
        super().__init__(
            "it asks by `is` whether two tensors are one, and these may be; compare what they are for "
            "(a flag, None)"
        )


class ReadPastAttributes(Untraceable):
    """The forward computes something of parameters or buffers that no attribute was asked for."""


class OtherForm(TraceError):
    """A call is of another form than the graph's, as `place` says; "" where there are few of such forms."""

    def __init__(self, text: str, place: str = "") -> None:
        super().__init__(text)
        self.place = place


class NeedsAutograd(Untraceable):
    """Code does something with a computed tensor that only autograd's own forward could answer for."""


class CollectingHooks(Untraceable):
    """Hooks that may speak to the code around, through a context variable that it has set."""


# Of a tensor that a net computes without autograd these are not what code expects.
AUTOGRAD_STATE = frozenset({"requires_grad", "grad_fn", "is_leaf"})
AUTOGRAD_HOOKS = frozenset({"register_hook", "retain_grad"})
# What a proxy has of its own; assigning anything else to it would assign it to no tensor.
OWN_ATTRIBUTES = frozenset({"attr", "items", "node", "root", "fake", "tracer", "_proxy"})


class FakeProxy(fx.Proxy):
    """An fx proxy whose `fake` is its value for the example input.

    Tensors among these values are fake ones, with a shape, a dtype and a device and without memory; they are
    real ones where the model cannot run on fakes. Python's questions about numbers (truth, length, index) are
    answered from the fake, and the answer is recorded as a guard that other inputs are held to.
    """

    fake: Any
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
            return FakeAttribute(self, name)
        if name in AUTOGRAD_HOOKS and is_tensor(self.fake):
            raise NeedsAutograd(
                f"it calls {name} on a tensor, and a net computes without autograd what it rebuilds in the "
                "backward. Put a full backward hook on a module instead"
            )
        if (
            name in AUTOGRAD_STATE
            and is_tensor(self.fake)
            and not self.fake.requires_grad  # or it was asked for
            and self.node.op not in ("placeholder", "get_attr")
        ):
            raise Untraceable(f"it asks for {name} of a tensor that it has computed, which a net may rebuild")
        value = getattr(self.fake, name)  # or it has no such attribute either
        if value is None:
            return self.tracer.create_proxy("call_function", getattr, (self, name), {}).guarded_none()
        return _for_code(FakeAttribute(self, name), value, sys._getframe(1))

    def guarded_value(self) -> Any:
        """What it stands for, to which other inputs are held."""
        return self._answer("value")

    def guarded_type(self) -> type:
        """The class of what it stands for."""
        if not is_tensor(self.fake):
            return self._answer("type")
        if self.node.op == "get_attr" and str(self.node.target) in self.tracer.parameter_paths:
            return nn.Parameter
        return Tensor

    def __getitem__(self, key: Any) -> Any:
        if not holds_tensors(self.fake):
            return self.tracer.create_proxy("call_function", operator.getitem, (self, key), {})
        if isinstance(key, slice):
            return tuple(self)[key]
        if type(key) is int and key < 0 and isinstance(self.fake, (tuple, list)):
            key = range(len(self))[key]
        if key not in self.items:
            item = self.tracer.create_proxy("call_function", operator.getitem, (self, key), {})
            self.items[key] = item.guarded_none() if item.fake is None else item
        return self.items[key]

    def guarded_none(self) -> None:
        """None, which code asks for with `is`; other inputs must give it too."""
        self.tracer.create_proxy("call_function", guard, (self, "none", True, caller()), {})

    def _answer(self, ask: str) -> Any:
        if is_tensor(self.fake):
            raise Untraceable("the path through the code depends on the values in a tensor")
        if self.node.op == "get_attr" and type(self.fake) is bool:  # a training flag
            return QUESTIONS[ask](self.tracer.reads.flag(str(self.node.target), self.fake))
        if self.node.op == "get_attr":
            raise Untraceable(f"the path through the code depends on {self.node.target}")
        self.tracer.random.check()
        answer = QUESTIONS[ask](self.fake)
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
        return repr(self) if is_tensor(self.fake) or holds_tensors(self.fake) else self._answer("text")

    def __format__(self, spec: str) -> str:
        fake = self.fake
        if not spec and not is_tensor(fake):
            return str(self)
        return format(self._answer("float" if type(fake) is float else "int"), spec)

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise Untraceable("a tensor is turned into a numpy array")

    def __setitem__(self, key: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})

    def __len__(self) -> int:
        if is_tensor(self.fake):
            return self.size(0).__index__()
        if not holds_tensors(self.fake):
            return self._answer("len")
        self.hold_count()
        return len(self.fake)

    def hold_count(self) -> None:
        """Hold other inputs to as many tensors in this container, which the code goes through."""
        if not has_fixed_length(self.fake):
            self.tracer.hold_to_structure(self.node)

    def __iter__(self) -> Any:
        if isinstance(self.fake, dict):
            self.hold_count()
            return iter(self.fake)
        return iter([self[index] for index in range(len(self))])

    def keys(self) -> Any:
        self.hold_count()
        return self.fake.keys()

    def __contains__(self, item: Any) -> bool:
        raise Untraceable("`in` asks for the values of a traced object")

    def __hash__(self) -> int:
        if isinstance(self.fake, IDENTICAL):
            raise Untraceable(
                f"{self.fake!r} of a traced tensor is looked up in a set or dictionary; compare it by =="
            )
        if is_tensor(self.fake) or holds_tensors(self.fake):
            return id(self)
        return hash(self.guarded_value())  # a number or a size, by which it is found


class FakeAttribute(FakeProxy):
    """An attribute of a proxy; becomes a node when it is used, or a method call when it is called."""

    def __init__(self, root: FakeProxy, attr: str) -> None:
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
    def fake(self) -> Any:
        return self._made().fake

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        proxy = self.tracer.create_proxy("call_method", self.attr, (self.root, *args), kwargs)
        return _for_code(proxy, proxy.fake, sys._getframe(1))


def _for_code(proxy: FakeProxy, value: Any, frame: FrameType) -> Any:
    """The proxy; what it stands for where the code that asked for it may compare that by `is`."""
    is_compared = isinstance(value, IDENTICAL) and is_users(frame.f_globals.get("__name__", ""))
    if is_compared and may_compare(frame, type(value)):
        return proxy.guarded_value()
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

    def change(self: FakeProxy, other: Any) -> Any:
        if not is_tensor(self.fake):
            return NotImplemented
        self.tracer.create_proxy("call_function", operation, (self, other), {})
        return self

    return change


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor"):
    setattr(FakeProxy, f"__i{_name}__", _in_place(getattr(operator, f"i{_name}")))


def guard(actual: Any, ask: str, expected: Any, where: str) -> None:
    """Hold an input to the answer on which the trace went one way and not another.

    Raises:
        TraceError: this input's answer is another one.
    """
    answer = QUESTIONS[ask](actual)
    answer = tuple(answer) if isinstance(answer, torch.Size) else answer  # as a graph keeps it
    if answer != expected or type(answer) is not type(expected):
        what = "a number" if ask in ("bool", "int", "float", "len") else "something"
        few = type(expected) is bool or ask in ("none", "type")
        raise OtherForm(
            f"at {where} the model asked for {what} that was {expected!r} for the example input and is "
            f"{answer!r} for this one, so the traced path may not be the right one. "
            f"{TRACE_AGAIN}",
            "" if few else f"a number that is asked for at {where}",
        )


def has_fixed_length(items: Any) -> bool:
    """Whether a tuple is of a class that says its length: a named one, or of torch's return types."""
    return hasattr(items, "_fields") or hasattr(items, "n_sequence_fields")


def is_proxy(thing: Any) -> bool:
    """Whether a thing is a proxy of a trace: asked of its class, for `isinstance` is patched meanwhile."""
    return issubclass(type(thing), FakeProxy)


def is_tensor(fake: Any) -> bool:
    return isinstance(fake, Tensor)


def holds_tensors(fake: Any) -> bool:
    """Whether a fake is a container with tensors inside."""
    return not is_tensor(fake) and any(is_tensor(leaf) for leaf in leaves(fake))
