"""What a specification says, as data: inputs, layers over named values, and the modules they call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class InputShape:
    """One input of a network: its name, shape (with the batch, where it has one) and dtype.

    `fill` is the element that examples are filled with; None lets `example_inputs` choose.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    fill: float | None = None


@dataclass(frozen=True, slots=True)
class ModuleCall:
    """A module by its registered name, with arguments: plain values, tuples of such, modules or bodies."""

    name: str
    positional: tuple[Any, ...]
    keywords: tuple[tuple[str, Any], ...]
    where: str


@dataclass(frozen=True, slots=True)
class Group:
    """Layers under a common name; their values are those of the body around them."""

    layers: tuple[Layer, ...]


@dataclass(frozen=True, slots=True)
class Use:
    """The module of an earlier layer once more, with the same parameters."""

    name: str


@dataclass(frozen=True, slots=True)
class Layer:
    """One entry of a list of layers.

    `reads`, `extras` and `makes` are the value names after `in`, `with` and `out`. `reads` is None for
    "the previous layer's", `makes` None for "this layer's name". `target` is the stream that a half-step
    changes, with `reads` its others. `repeat` is None for a layer that stands once.
    """

    name: str
    what: ModuleCall | Group | Use
    reads: tuple[str, ...] | None
    extras: tuple[tuple[str, str], ...]
    makes: tuple[str, ...] | None
    target: str | None
    repeat: int | None
    where: str


@dataclass(frozen=True, slots=True)
class Body:
    """Layers with named inputs and outputs; `outputs` is None for "what the last layer makes".

    `where` is the place of the inputs, `end` that of the outputs or the last layer.
    """

    inputs: tuple[str, ...]
    layers: tuple[Layer, ...]
    outputs: tuple[str, ...] | None
    where: str
    end: str


@dataclass(frozen=True, slots=True)
class Spec:
    """A whole specification, its parameters put in."""

    name: str
    description: str
    inputs: tuple[InputShape, ...]
    body: Body
    exact: bool | float = False


def size(what: Any) -> int:
    """How many layers there are with every repeat written out, the functions of couplings included."""
    if isinstance(what, Layer):
        return size(what.what) * (1 if what.repeat is None else what.repeat)
    if isinstance(what, (Group, Body)):
        return sum(size(layer) for layer in what.layers)
    if isinstance(what, Use):
        return 1
    if isinstance(what, ModuleCall):
        return 1 + size(what.positional) + sum(size(value) for _, value in what.keywords)
    return sum(size(item) for item in what) if isinstance(what, tuple) else 0
