"""Operators of an exported graph as calls that a trace records, and that can be copied and pickled."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch._ops import OpOverload

from revgraph.tracing.in_place import InPlace
from revgraph.tracing.proxies import Untraceable

ATEN = torch.ops.aten
# Under the names by which sums, products and rearrangements are known, with the same arguments.
AS_FUNCTIONS: dict[Any, Any] = {
    ATEN.exp.default: torch.exp,
    ATEN.exp2.default: torch.exp2,
    ATEN.cat.default: torch.cat,
    ATEN.stack.default: torch.stack,
    ATEN.chunk.default: torch.chunk,
    ATEN.split.Tensor: torch.split,
    ATEN.split.sizes: torch.split,
    ATEN.split_with_sizes.default: torch.split,
    ATEN.unbind.int: torch.unbind,
    ATEN.permute.default: torch.permute,
    ATEN.transpose.int: torch.transpose,
    ATEN.t.default: torch.t,
    ATEN.reshape.default: torch.reshape,
    ATEN.flatten.using_ints: torch.flatten,
    ATEN.unflatten.int: torch.unflatten,
    ATEN.squeeze.dim: torch.squeeze,
    ATEN.squeeze.default: torch.squeeze,
    ATEN.unsqueeze.default: torch.unsqueeze,
    ATEN.flip.default: torch.flip,
    ATEN.roll.default: torch.roll,
    ATEN.pixel_shuffle.default: torch.pixel_shuffle,
    ATEN.pixel_unshuffle.default: torch.pixel_unshuffle,
    ATEN.view_as_real.default: torch.view_as_real,
    ATEN.view_as_complex.default: torch.view_as_complex,
}
AS_ARITHMETIC: dict[Any, tuple[Any, Any]] = {
    ATEN.add.Tensor: (operator.add, torch.add),
    ATEN.add.Scalar: (operator.add, torch.add),
    ATEN.sub.Tensor: (operator.sub, torch.sub),
    ATEN.sub.Scalar: (operator.sub, torch.sub),
    ATEN.mul.Tensor: (operator.mul, torch.mul),
    ATEN.mul.Scalar: (operator.mul, torch.mul),
    ATEN.div.Tensor: (operator.truediv, torch.div),
    ATEN.div.Scalar: (operator.truediv, torch.div),
}
# Memory as it lies would be other numbers when it runs again.
INITIALIZED: dict[Any, Any] = {
    ATEN.empty.memory_format: ATEN.zeros.default,
    ATEN.empty_like.default: ATEN.zeros_like.default,
    ATEN.new_empty.default: ATEN.new_zeros.default,
}
AS_METHODS = {ATEN.view.default: "view", ATEN.contiguous.default: "contiguous"}
# What only asserts what a form of call settles, or gives a constant.
ASSERTIONS = frozenset((ATEN._assert_tensor_metadata.default, ATEN._assert_async.msg))


@dataclass(frozen=True, slots=True)
class Mode:
    """The gradient mode, or autocast, in which a call runs: the arguments of torch's own switch."""

    kind: type[Any]
    args: tuple[Any, ...]

    def __call__(self) -> Any:
        return self.kind(*self.args)


@dataclass(frozen=True, slots=True)
class Operator:
    """An operator of torch's dispatcher, by its name, in the modes that the code around it switched to."""

    name: str
    overload: str
    modes: tuple[Mode, ...] = ()

    @property
    def __name__(self) -> str:
        return self.name.rpartition("::")[2]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        run = _overload(self.name, self.overload)
        if not self.modes:
            return run(*args, **kwargs)
        with ExitStack() as stack:
            for mode in self.modes:
                stack.enter_context(mode())
            return run(*args, **kwargs)


class EditedCopy(Operator):
    """What an operator that edits its first argument makes of it, as a tensor of its own."""

    def __call__(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return Operator.__call__(self, x.clone(), *args, **kwargs)


@cache
def _overload(name: str, overload: str) -> OpOverload:
    namespace, _, short = name.partition("::")
    return getattr(getattr(getattr(torch.ops, namespace), short), overload)


def call_of(
    overload: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any], modes: tuple[Mode, ...]
) -> tuple[str, Any]:
    """The kind and target of a traced call that computes what an operator does.

    Raises:
        Untraceable: the operator writes into something else than its first argument.
    """
    if "memory_format" not in kwargs or overload is ATEN.empty_like.default:
        overload = INITIALIZED.get(overload, overload)
    schema = overload._schema
    writes = [
        place for place, each in enumerate(schema.arguments) if each.alias_info and each.alias_info.is_write
    ]
    if writes:
        if writes != [0]:
            raise Untraceable(f"the operator {schema.name} writes into a tensor that is not its first")
        functional = _functional(overload)
        if functional is None:
            return "call_function", InPlace(EditedCopy(schema.name, overload._overloadname, modes))
        return "call_function", InPlace(call_of(functional, args, kwargs, modes)[1])
    if not modes and overload in AS_ARITHMETIC:
        short, whole = AS_ARITHMETIC[overload]
        return "call_function", whole if kwargs or len(args) > 2 else short
    if not modes and overload in AS_FUNCTIONS:
        return "call_function", AS_FUNCTIONS[overload]
    if not modes and overload in AS_METHODS and not kwargs:
        return "call_method", AS_METHODS[overload]
    return "call_function", Operator(schema.name, overload._overloadname, modes)


def _functional(overload: OpOverload) -> OpOverload | None:
    """The operator that gives as a new tensor what this one makes of its first argument."""
    namespace, _, name = overload._schema.name.partition("::")
    packet = getattr(getattr(torch.ops, namespace), name.removesuffix("_"), None)
    if (
        not hasattr(torch, name.removesuffix("_"))
        or packet is None
        or overload._overloadname not in packet.overloads()
    ):
        return None
    return getattr(packet, overload._overloadname)


def mode_of(target: Any, args: tuple[Any, ...]) -> tuple[Mode, Any, tuple[Any, ...]]:
    """The mode, the graph and the operands of a call that runs a graph in another mode.

    Raises:
        Untraceable: it is another kind of call.
    """
    name = getattr(target, "__name__", str(target))
    if name == "wrap_with_set_grad_enabled":
        enabled, inner, *operands = args
        return Mode(torch.set_grad_enabled, (enabled,)), inner, tuple(operands)
    if name == "wrap_with_autocast":
        *settings, inner = args[:5]
        return Mode(torch.autocast, tuple(settings)), inner, args[5:]
    raise Untraceable(f"torch.export made a call of {name} of it, which a graph does not record")
