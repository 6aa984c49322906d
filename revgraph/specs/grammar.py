"""The grammar of a whole specification: name, description, parameters, inputs, layers, outputs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from revgraph.errors import SpecError
from revgraph.rounding import is_power_of_two
from revgraph.specs import expect
from revgraph.specs.hints import listed, meant, shortened
from revgraph.specs.layers import body
from revgraph.specs.limits import Limits
from revgraph.specs.parameters import parameters, substitute
from revgraph.specs.syntax import InputShape, Spec, size
from revgraph.specs.trees import Listing, Scalar, Tree

KEYS = ("name", "description", "parameters", "batch", "exact", "inputs", "layers", "outputs")
INPUT_KEYS = ("shape", "dtype", "batched", "fill")
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    )
}
# The fewest samples with which batch normalization works on vectors.
BATCH = 2
DIMENSIONS = 16
WIDEST_TITLE = 100


def specification(
    tree: Tree, name: str, batch: int | None, given: Mapping[str, Any], limits: Limits
) -> tuple[Spec, dict[str, Any]]:
    """The specification in a tree, for a batch and with parameters as given, and the parameters' values.

    Raises:
        SpecError: what does not follow the grammar, with its place; too many layers; unknown parameters.
    """
    top = expect.a_table(tree, "a mapping with `inputs` and `layers`")
    expect.only(top, KEYS, "a specification")
    for key in ("inputs", "layers"):
        if top.get(key) is None:
            raise SpecError(
                f"{top.where}: the specification has no {key!r}. It needs at least `inputs` and `layers`."
            )
    values = parameters(top.get("parameters"), given, limits)
    parts = {key: substitute(item, values, limits) for key, item in top.items if key != "parameters"}
    inputs = _inputs(parts["inputs"], _batch(parts.get("batch"), batch), limits, samples=batch or 1)
    names = tuple(each.name for each in inputs)
    network = body(names, parts["layers"], parts.get("outputs"), parts["inputs"].where)
    if (count := size(network)) > limits.layers:
        raise SpecError(
            f"{parts['layers'].where}: with every `repeat` written out the network has {count} layers, "
            f"functions of couplings included; the limit is {limits.layers}. Repeat less, or raise "
            "`limits.layers`."
        )
    described = parts.get("description")
    named = parts.get("name")
    spec = Spec(
        name if named is None else _title(named),
        "" if described is None else expect.a_text(described, "a sentence about the network"),
        inputs,
        network,
        _exact(parts.get("exact")),
    )
    return spec, {key: _plain(value) for key, value in values.items()}


def _title(tree: Tree) -> str:
    title = expect.a_text(tree, "the network's name")
    if "\n" in title or len(title) > WIDEST_TITLE:
        raise SpecError(
            f"{tree.where}: {shortened(title)} cannot be a network's name: it has at most {WIDEST_TITLE} "
            "characters, in one line"
        )
    return title


def _batch(tree: Tree | None, given: int | None) -> int:
    if given is not None:
        if not isinstance(given, int) or isinstance(given, bool) or given < 1:
            raise SpecError(f"batch must be a whole number of at least 1, not {given!r}")
        return given
    return BATCH if tree is None else expect.an_integer(tree, "a number of samples", 1, 2**20)


def _exact(tree: Tree | None) -> bool | float:
    """Whether streams are on a grid: false, true, or the grid's resolution."""
    if tree is None:
        return False
    value = tree.value if isinstance(tree, Scalar) else None
    if isinstance(value, bool):
        return value
    if isinstance(value, (int, float)) and is_power_of_two(value):
        return float(value)
    raise SpecError(
        f"{tree.where}: `exact` is true, false, or a resolution that is a power of two (0.00390625 is 2**-8)"
    )


def _inputs(tree: Tree, batch: int, limits: Limits, *, samples: int) -> tuple[InputShape, ...]:
    declared = expect.a_table(tree, "a mapping from each input's name to its shape, as {image: [3, 32, 32]}")
    if not declared.items:
        raise SpecError(f"{tree.where}: a network has at least one input, as {{image: [3, 32, 32]}}")
    inputs = tuple(_input(expect.name(name, item.where), item, batch) for name, item in declared.items)
    for each, (_, item) in zip(inputs, declared.items, strict=True):
        # A batch that the caller asks for is the caller's affair; `samples` takes it out of the account.
        if (elements := math.prod(each.shape) // samples) > limits.elements:
            raise SpecError(
                f"{item.where}: input {each.name!r} has {elements} elements; the limit is {limits.elements}. "
                "Give a smaller shape or `batch`."
            )
    return inputs


def _input(name: str, tree: Tree, batch: int) -> InputShape:
    if isinstance(tree, Listing):
        return InputShape(name, (batch, *_shape(tree)), torch.float32)
    declared = expect.a_table(tree, "a shape without the batch, or {shape: [...], dtype: ...}")
    expect.only(declared, INPUT_KEYS, "an input")
    shape, dtype = declared.get("shape"), declared.get("dtype")
    batched, fill = declared.get("batched"), declared.get("fill")
    if shape is None:
        raise SpecError(f"{tree.where}: input {name!r} has no `shape`")
    if batched is not None and not (isinstance(batched, Scalar) and isinstance(batched.value, bool)):
        raise SpecError(
            f"{batched.where}: `batched` must be true or false: whether the batch comes before the shape"
        )
    if fill is not None and not (isinstance(fill, Scalar) and isinstance(fill.value, (int, float))):
        raise SpecError(
            f"{fill.where}: `fill` must be a number, true or false: every element of an example input"
        )
    whole = _shape(shape)
    with_batch = batched is None or batched.value is True
    kind = torch.float32 if dtype is None else _dtype(dtype)
    return InputShape(
        name,
        (batch, *whole) if with_batch else whole,
        kind,
        None if fill is None else _fill(fill, kind),
    )


def _fill(tree: Scalar, dtype: torch.dtype) -> float:
    assert isinstance(tree.value, (int, float))
    try:
        torch.full((2,), tree.value, dtype=dtype)
    except (RuntimeError, OverflowError):
        name = str(dtype).removeprefix("torch.")
        raise SpecError(f"{tree.where}: {tree.value} is no {name}: give a `fill` within its range") from None
    return tree.value


def _shape(tree: Tree) -> tuple[int, ...]:
    sizes = expect.a_listing(tree, "a shape without the batch, as [3, 32, 32]").items
    if len(sizes) > DIMENSIONS:
        raise SpecError(f"{tree.where}: this shape has {len(sizes)} dimensions; the limit is {DIMENSIONS}")
    return tuple(expect.an_integer(item, "a size", 1, 2**24) for item in sizes)


def _dtype(tree: Tree) -> torch.dtype:
    name = expect.a_text(tree, "the name of a dtype")
    if name not in DTYPES:
        raise SpecError(
            f"{tree.where}: there is no dtype {shortened(name)}.{meant(name, DTYPES)} The dtypes are "
            f"{listed(DTYPES)}."
        )
    return DTYPES[name]


def _plain(tree: Tree) -> Any:
    if isinstance(tree, Listing):
        return tuple(_plain(item) for item in tree.items)
    return tree.value if isinstance(tree, Scalar) else None
