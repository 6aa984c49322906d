"""Versions of Python's functions that see a proxy for what it is: `type`, `id`, `callable`; and of `globals`.

No class can overload these. So the globals of opened code have the versions here under their names meanwhile.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor

from revgraph.tracing.proxies import Untraceable, is_proxy

# What stands for tensors where code runs without memory, or in `torch.export`.
INSTEAD = (FakeTensor, FunctionalTensor)


class _Asking(type):
    """The class of `Type`."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if cls is not Type:
            return type.__call__(cls, *args, **kwargs)
        if len(args) == 1 and not kwargs:
            return args[0].guarded_type() if is_proxy(args[0]) else _type_of(args[0])
        return type(*args, **kwargs)

    def __instancecheck__(cls, thing: Any) -> bool:
        return isinstance(thing, type) if cls is Type else type.__instancecheck__(cls, thing)

    def __subclasscheck__(cls, kind: Any) -> bool:
        return issubclass(kind, type) if cls is Type else type.__subclasscheck__(cls, kind)


class Type(type, metaclass=_Asking):
    """`type`, which tells of a proxy the class of what it stands for."""


def _type_of(thing: Any) -> type:
    """The type of a thing, where `torch.export` runs the code, for the tensors that it gives instead."""
    if isinstance(thing, INSTEAD):
        return nn.Parameter if isinstance(thing, nn.Parameter) else Tensor
    return type(thing)


def identity(thing: Any) -> int:
    """`id`, which neither a proxy nor a tensor without memory has for what it stands for."""
    if is_proxy(thing) or isinstance(thing, INSTEAD):
        raise Untraceable("it asks for the id of a traced tensor, which is another one in each call")
    return id(thing)


def is_callable(thing: Any) -> bool:
    """`callable`, which a tensor is not."""
    return callable(thing.fake if is_proxy(thing) else thing)


def global_names() -> Any:
    """`globals`, by which code may read anything."""
    raise Untraceable("it reads globals(), where nothing sees what it takes; write the name itself")


STAND_INS: dict[str, Any] = {
    "globals": global_names,
    "type": Type,
    "id": identity,
    "callable": is_callable,
}
