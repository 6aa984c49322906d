"""The face of a net: its class, through which it shows its model's attributes, methods and signature.

A net's class is made for its model's class: `forward` has the model's own signature, what the model's class
says of `len`, indexing and iteration is passed on to the model, and so are the methods of `nn.Module` that it
overrides (`state_dict`, `_apply`, ...). Whatever else the net does not have is the model's (`__getattr__`).
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from weakref import WeakValueDictionary

from torch import nn

CONTAINER = (
    *("__len__", "__getitem__", "__setitem__", "__delitem__", "__iter__", "__contains__", "__reversed__"),
    *("__add__", "__iadd__", "__mul__", "__imul__", "__rmul__", "__bool__"),
)
# What of nn.Module's is the net's own, whatever the model's class says.
OWN_METHODS = frozenset({"forward", "_call_impl", "_wrapped_call_impl", "_get_name", "train", "compile"})
_made: WeakValueDictionary[tuple[type, type], type] = WeakValueDictionary()


def class_for(base: type, model_type: type[nn.Module]) -> type:
    """The class of nets, a child of `base`, whose model is of this class."""
    found = _made.get((base, model_type))
    if found is None:
        overridden = (
            name
            for name in dir(model_type)
            if not name.startswith("__")
            and name not in OWN_METHODS
            and inspect.isfunction(getattr(nn.Module, name, None))
            and getattr(model_type, name) is not getattr(nn.Module, name)
        )
        passed = {name: _passing(name) for name in (*CONTAINER, *overridden) if hasattr(model_type, name)}
        passed["forward"] = _forward(base, model_type)
        names = {"__module__": base.__module__, "__qualname__": base.__qualname__, "_model_type": model_type}
        found = _made[base, model_type] = type(base.__name__, (base,), {**names, **passed})
    return found


def blank(base: type, model_type: type[nn.Module]) -> Any:
    """A net that is to be given its state, for pickle and copy."""
    return object.__new__(class_for(base, model_type))


def _passing(name: str) -> Callable[..., Any]:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        model = self.__dict__["_model"]
        result = getattr(model, name)(*args, **kwargs)
        return self if result is model else result

    method.__name__ = name
    return method


def _forward(base: Any, model_type: type[nn.Module]) -> Callable[..., Any]:
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self._called(*args, **kwargs)

    forward.__doc__ = model_type.forward.__doc__
    with suppress(TypeError, ValueError):  # of a scripted module, none can be known
        forward.__signature__ = inspect.signature(model_type.forward)
    return forward


def checkpointing_replaced(*_: Any, **__: Any) -> None:
    """What a net's `gradient_checkpointing_enable` does: it tells what takes its place."""
    warnings.warn(
        "a net's plan takes the place of gradient checkpointing, which stays off: it says what is stored, "
        "inverted and recomputed. For less memory set net.plan = revgraph.plan(net.graph, budget='least'), "
        "or a budget in bytes.",
        stacklevel=2,
    )
