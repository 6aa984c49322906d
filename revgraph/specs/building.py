"""Building a network from its specification, and examples of its inputs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from revgraph.errors import SpecError
from revgraph.specs import sources
from revgraph.specs.assembling import assemble, check
from revgraph.specs.grammar import specification
from revgraph.specs.limits import DEFAULT, Limits
from revgraph.specs.networks import Network
from revgraph.specs.sources import Source
from revgraph.specs.syntax import InputShape

# Elements from which an input is traced as zeros.
LARGE = 2**20


@dataclass(frozen=True, slots=True)
class Built:
    """A network made from a specification.

    `module` is an ordinary module: plain autograd trains it. `inputs` are the shapes it was declared for,
    `parameters` the values its specification's parameters had, and `exact` whether `rg.load` is to put its
    streams on a fixed-point grid (of which resolution, if it is a number).
    """

    module: Network
    inputs: tuple[InputShape, ...]
    name: str
    description: str
    parameters: Mapping[str, Any]
    exact: bool | float = False


def build(
    source: Source, /, *, batch: int | None = None, limits: Limits = DEFAULT, **parameters: Any
) -> Built:
    """The network that a specification describes, with its parameters initialized from the global generator.

    Args:
        source: a shipped network's name, the path of a YAML file, YAML text, or a mapping of the same form.
        batch: samples in the inputs' shapes; the specification's own `batch` or else 2 unless given.
        limits: how large the specification and its network may be.
        parameters: values for the specification's parameters, instead of its defaults.

    Raises:
        SpecError: what is wrong in the specification, where, and what was expected there.

    Example:
        >>> from revgraph import specs
        >>> built = specs.build("revnet-38", classes=100)
        >>> sum(parameter.numel() for parameter in built.module.parameters())
        475060
    """
    tree, name = sources.read(source, limits)
    spec, values = specification(tree, name, batch, parameters, limits)
    check(spec.body, limits)
    return Built(assemble(spec.body, limits), spec.inputs, spec.name, spec.description, values, spec.exact)


def example_inputs(built: Built, device: torch.device | str | None = None) -> tuple[Tensor, ...]:
    """One tensor for each input, always the same: normal numbers, or zeros of an integer or bool dtype.

    An input with a `fill` is filled with it. The global random state is left alone.
    """
    return tuple(_example(shape, seed, device) for seed, shape in enumerate(built.inputs))


def traced_inputs(built: Built) -> tuple[Tensor, ...]:
    """As `example_inputs`, for tracing, which hardly ever looks at the numbers.

    Large ones are zeros, which take memory only where somebody writes or reads them.

    Raises:
        SpecError: an input is too large for this machine.
    """
    made: list[Tensor] = []
    for seed, shape in enumerate(built.inputs):
        try:
            small = math.prod(shape.shape) <= LARGE
            made.append(_example(shape, seed, None) if small else torch.zeros(shape.shape, dtype=shape.dtype))
        except RuntimeError as error:
            raise SpecError(
                f"{built.name}: an example of input {shape.name!r}, of shape {list(shape.shape)}, does not "
                "fit into this machine's memory. Give a smaller batch or shape."
            ) from error
    return tuple(made)


def _example(shape: InputShape, seed: int, device: torch.device | str | None) -> Tensor:
    if shape.fill is not None:
        return torch.full(shape.shape, shape.fill, dtype=shape.dtype, device=device)
    if shape.dtype.is_floating_point or shape.dtype.is_complex:
        example = torch.empty(shape.shape, dtype=shape.dtype, device=device)
        if example.is_meta:
            return example
        return example.normal_(generator=torch.Generator(example.device).manual_seed(seed))
    return torch.zeros(shape.shape, dtype=shape.dtype, device=device)
