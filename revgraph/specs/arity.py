"""How many values a module takes and makes, as far as that is known before it runs."""

from __future__ import annotations

from torch import nn

from revgraph.couplings import Coupling, function_names
from revgraph.errors import SpecError
from revgraph.specs.hints import listed
from revgraph.specs.limits import Limits
from revgraph.specs.syntax import Layer
from revgraph.wiring import Permute, Split


def made(module: nn.Module, layer: Layer, reads: int, limits: Limits) -> int:
    """The number of values that the layer makes from `reads` values.

    Raises:
        SpecError: the module takes another number of values, or makes another number than `out` names.
    """
    if isinstance(module, Coupling) and type(module).forward is Coupling.forward:
        count = _coupling(module, layer, reads)
    elif layer.target is not None:
        raise SpecError(
            f"{layer.where}: {type(module).__name__} is no coupling, so it has no `target`: use `in` and "
            "`out`"
        )
    else:
        count = _declared(module, layer, reads)
    named = None if layer.makes is None else len(layer.makes)
    if count is not None and count > limits.values:
        raise SpecError(f"{layer.where}: this layer makes {count} values; the limit is {limits.values}")
    if count is not None and named is not None and count != named:
        raise SpecError(
            f"{layer.where}: {type(module).__name__} makes {_values(count)} here, but `out` names {named}: "
            f"{listed(layer.makes or ())}"
        )
    return count or named or 1


def _coupling(module: Coupling, layer: Layer, reads: int) -> int:
    """1 for a half-step or bijection, or as many as there are functions."""
    functions, kind = len(module.names), type(module).__name__
    if functions > 1:
        if layer.target is not None:
            raise SpecError(
                f"{layer.where}: {kind} with the functions {listed(module.names)} changes {functions} "
                "streams in turn, so it has no one `target`: use `in` and `out`, or give it f alone"
            )
        if reads != functions:
            raise SpecError(
                f"{layer.where}: {kind} with the functions {listed(function_names(functions))} takes "
                f"{functions} streams, but reads {_values(reads)}"
            )
        return functions
    if functions == 1 and (layer.target is None or reads < 2):
        raise SpecError(
            f"{layer.where}: {kind} with one function is a half-step: name the stream that it changes and "
            "the values that its function reads, as in target: x1, others: [x2]"
        )
    if functions == 0 and reads != 1:
        raise SpecError(
            f"{layer.where}: {kind} without functions takes one stream, but reads {_values(reads)}"
        )
    return 1


def _declared(module: nn.Module, layer: Layer, reads: int) -> int | None:
    if isinstance(module, Split):
        return module.parts
    if isinstance(module, Permute):
        if reads != len(module.order):
            raise SpecError(
                f"{layer.where}: {type(module).__name__} orders {_values(len(module.order))}, but reads "
                f"{reads}"
            )
        return reads
    count = getattr(module, "outputs", None)
    return count if isinstance(count, int) and count > 0 else None


def _values(count: int) -> str:
    return "1 value" if count == 1 else f"{count} values"
