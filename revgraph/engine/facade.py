"""The face of a net: its class, through which it is a model of its model's class.

A net's class is made for its model's class, inherits from it and has its name: `isinstance`, the signature of
`forward`, and what tools decide by the name of a class, are the model's. But of what is inherited only
`__call__` runs on the net. Whatever the model's class has besides (methods, properties, values, `len`,
indexing, iteration, what it overrides of `nn.Module`) stands in the net's class as a reference to the model,
which alone has the state; and attributes that only the instance has are looked up there, too
(`ReversibleModule.__getattr__`).
"""

from __future__ import annotations

import inspect
from abc import ABCMeta
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from weakref import WeakValueDictionary

from torch import nn

from revgraph.couplings import Boundary, Coupling
from revgraph.errors import warn
from revgraph.wiring import Wiring

# What of nn.Module's is the net's own, whatever the model's class says.
OWN_METHODS = frozenset({"_call_impl", "_wrapped_call_impl", "compile"})
# What libraries call the method of a model that switches checkpointing on.
CHECKPOINTING = frozenset(
    {
        "gradient_checkpointing_enable",  # transformers
        "activation_checkpointing_enable",  # transformers from 5.20 on
        "enable_gradient_checkpointing",  # diffusers
        "set_grad_checkpointing",  # timm
    }
)
MISSING = object()
_made: WeakValueDictionary[tuple[type, type], type] = WeakValueDictionary()


def class_for(base: type, model_type: type[nn.Module]) -> type:
    """The class of nets, a child of `base`, whose model is of this class."""
    found = _made.get((base, model_type))
    if found is None:
        names = {name: _passed(name, model_type) for name in dir(model_type) if _is_to_pass(name, base)}
        names = {name: each for name, each in names.items() if each is not MISSING}
        names["forward"] = _forward(base, model_type)
        names["__module__"] = base.__module__
        names["__qualname__"] = f"{base.__qualname__}[{model_type.__qualname__}]"
        found = _made[base, model_type] = _class(base, model_type, names)
    return found


def blank(base: type, model_type: type[nn.Module]) -> Any:
    """A net that is to be given its state, for pickle and copy."""
    return object.__new__(class_for(base, model_type))


def _class(base: type, model_type: type[nn.Module], names: dict[str, Any]) -> type:
    # A trace around a net takes it for one node, and not for the coupling that its model is. Classes that are
    # made by code of their own (scripted ones, members of a registry) have no children here.
    metaclass: Any = type(model_type)
    if not issubclass(model_type, (Boundary, Coupling, Wiring)) and metaclass in (type, ABCMeta):
        with suppress(TypeError):  # such as one with slots
            return metaclass(model_type.__name__, (base, model_type), names)
    return type(model_type.__name__, (base,), names)


def _is_to_pass(name: str, base: type) -> bool:
    """Whether an attribute of the model's class is none that `base` has of its own."""
    return not any(name in vars(each) for each in base.__mro__ if each not in (nn.Module, object))


def _passed(name: str, model_type: type[nn.Module]) -> Any:
    """What a net's class has for an attribute of its model's class, if anything."""
    if name in CHECKPOINTING:
        return staticmethod(checkpointing_replaced)
    given, usual = _found(model_type, name), _found(nn.Module, name)
    if given is usual:
        return MISSING
    if name in OWN_METHODS:
        return usual
    if not (name.startswith("__") and name.endswith("__")):
        return (
            _method(name) if inspect.isfunction(given) and usual is not MISSING else Passed(name, model_type)
        )
    if name == "__call__" or not inspect.isfunction(given):
        return MISSING
    return _method(name) if usual is MISSING else usual


def _found(owner: type, name: str) -> Any:
    """An attribute of a class as it stands there."""
    return next((vars(each)[name] for each in owner.__mro__ if name in vars(each)), MISSING)


class Passed:
    """An attribute of a net's class that is the model's: on a net, that of its model."""

    def __init__(self, name: str, model_type: type[nn.Module]) -> None:
        self.name, self.model_type = name, model_type

    def __get__(self, net: Any, owner: type | None = None) -> Any:
        return getattr(self.model_type if net is None else net.__dict__["_model"], self.name)


def _method(name: str) -> Callable[..., Any]:
    """A method that calls the model's, and returns the net where that returns the model."""

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


def checkpointing_replaced(*args: Any, **kwargs: Any) -> None:
    """What a net's methods for checkpointing do: they tell what takes its place."""
    if False in (*args, kwargs.get("enable")):  # it is to be off, and is
        return
    warn(
        "a net's plan takes the place of gradient checkpointing, which stays off: it says what is stored, "
        "inverted and recomputed. For less memory set net.plan = revgraph.plan(net.graph, budget='least'), "
        "or a budget in bytes.",
        UserWarning,
    )
