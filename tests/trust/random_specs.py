"""Random specifications for hypothesis: of any form, of wrong types, misspelt; and valid ones."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

from hypothesis import strategies as st

from revgraph.specs.registry import BUILT_IN, LAYER_KEYS

EXAMPLE = """
name: example
description: Two streams, each kind of layer once.
parameters: {width: 4, classes: 3}
batch: 2
inputs:
  x: {shape: [8], dtype: float32}
  mask: {shape: [4], dtype: float32, batched: true, fill: 1}
layers:
  - streams: {Split: {parts: 2, dim: -1}, out: [x1, x2], in: x}
  - block:
      repeat: 2
      layers:
        - mix:
            Additive:
              f:
                inputs: [v, m]
                layers:
                  - all: {Concatenate: {dim: -1}, in: [v, m]}
                  - a: {Linear: [8, 4]}
                  - b: Tanh
            target: x1
            others: [x2, mask]
        - feed: {Affine: {f: {Linear: [$width, 8]}, bound: 1.5}, target: x2, others: x1}
  - both: {Additive: {f: {Linear: [4, 4]}, g: {layers: [c: {Linear: [4, 4]}]}}, in: [x1, x2], out: [y1, y2]}
  - again: {use: both, in: [y1, y2], out: [y1, y2]}
  - joined: {Concatenate: {dim: -1}, in: [y1, y2]}
  - head: {Linear: {in_features: 8, out_features: $classes}}
outputs: head
"""
WORDS = st.sampled_from(
    [
        *LAYER_KEYS,
        *BUILT_IN,
        "f",
        "g",
        "x",
        "x1",
        "name",
        "dim",
        "$width",
        "$none",
        "a",
        "a.b",
        "<<",
        "..",
        "1",
    ]
)
NUMBERS = st.one_of(
    st.integers(-3, 9),
    st.sampled_from([2**31, -(2**31), 2**63, 10**18, 10**30]),
    st.floats(),
)
LEAVES = st.one_of(WORDS, NUMBERS, st.booleans(), st.none(), st.text(max_size=6), st.binary(max_size=2))
TREES = st.recursive(
    LEAVES,
    lambda trees: st.one_of(
        st.lists(trees, max_size=4), st.dictionaries(st.one_of(WORDS, LEAVES), trees, max_size=4)
    ),
    max_leaves=12,
)
LAYERS = st.lists(st.dictionaries(WORDS, TREES, min_size=1, max_size=3), max_size=3)
MAPPINGS = st.one_of(
    st.builds(lambda layers: {"inputs": {"x": [4]}, "layers": layers}, LAYERS),
    st.builds(
        lambda inputs, layers, more: {**more, "inputs": inputs, "layers": layers},
        TREES,
        LAYERS,
        st.dictionaries(WORDS, TREES, max_size=2),
    ),
)
PIECES = [
    *(
        "{",
        "}",
        "[",
        "]",
        ": ",
        "- ",
        "\n",
        "\n  ",
        "\n    ",
        ", ",
        "&a ",
        "*a",
        "<<: ",
        "!",
        "!!python/object:os ",
    ),
    *("'", '"', "|\n", ">\n", "#", "$", "%", "---\n", "...\n", "? ", "\t", "\0", "\x1b", "\\", "~", "9" * 20),
    *("é", "\u2028", "\ud800", "\U0001f600", ".inf", ".nan", "1e999", "0x10", "010", "1_0", "yes", "null"),
]


@st.composite
def misspelt(draw: Any) -> str:
    """The example, with up to four pieces cut out, put in, or written twice."""
    text = EXAMPLE
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(text)))
        gone = draw(st.one_of(st.integers(0, 2), st.integers(0, 20)))
        copied = draw(st.integers(0, len(text)))
        new = draw(st.one_of(st.sampled_from(PIECES), WORDS, st.just(text[copied : copied + 20])))
        text = text[:place] + new + text[place + gone :]
    return text + "\n"


WRONG: list[Any] = [None, True, -1, 0, 1.5, 10**17, float("inf"), "x", "", "$none", [], [1], {}, {"a": 1}]


def wrong_types(tree: Any) -> Iterator[Any]:
    """The tree with each of its places, one after another, holding each wrong value instead."""
    for path in paths_of(tree):
        for value in WRONG:
            yield replaced(tree, path, value)


def replaced(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy of the tree with this value at that place."""
    changed = deepcopy(tree)
    place = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return changed


def paths_of(tree: Any) -> Iterator[tuple[Any, ...]]:
    """Every place in nested mappings and lists, as the keys that lead there."""
    children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, child in children:
        yield (key,)
        yield from ((key, *path) for path in paths_of(child))


WIDTH = 4


@st.composite
def valid(draw: Any) -> dict[str, Any]:
    """A specification that follows the grammar: streams, couplings of each form, boundaries and wiring."""
    count = draw(st.integers(2, 3))
    streams = [f"x{index + 1}" for index in range(count)]
    layers: list[dict[str, Any]] = []
    for index in range(draw(st.integers(1, 6))):
        layers.append({f"l{index}": draw(_layer(streams))})
    if draw(st.booleans()):
        layers = [{"group": {"layers": layers, "repeat": draw(st.integers(1, 2))}}]
    layers.append({"joined": {"Concatenate": {"dim": -1}, "in": streams}})
    layers.append({"head": {"Linear": [WIDTH * count, draw(st.integers(1, 3))]}})
    return {"inputs": {name: [WIDTH] for name in streams}, "layers": layers}


@st.composite
def _layer(draw: Any, streams: list[str]) -> dict[str, Any]:
    order = draw(st.permutations(streams))
    target, others = order[0], order[1 : 1 + draw(st.integers(1, len(order) - 1))]
    kind = draw(st.sampled_from(["half", "affine", "pair", "boundary", "swap"]))
    if kind == "half":
        return {"Additive": {"f": draw(_function(len(others)))}, "target": target, "others": others}
    if kind == "affine":
        term = draw(_function(len(others), 2 * WIDTH))
        return {"Affine": {"f": term}, "target": target, "others": others}
    if kind == "pair":
        functions = {"f": draw(_function(1)), "g": draw(_function(1))}
        return {"Additive": functions, "in": order[:2], "out": order[:2]}
    if kind == "boundary":
        return {"Linear": [WIDTH, WIDTH], "in": target, "out": target}
    return {"Permute": [1, 0], "in": order[:2], "out": order[:2]}


@st.composite
def _function(draw: Any, inputs: int, width: int = WIDTH) -> Any:
    names = [f"v{index}" for index in range(inputs)]
    layers: list[dict[str, Any]] = []
    if inputs > 1:
        layers.append({"all": {"Concatenate": {"dim": -1}, "in": names}})
    layers.append({"first": {"Linear": [WIDTH * inputs, 5]}})
    layers.append({"bend": draw(st.sampled_from(["Tanh", "Sigmoid", "GELU", "SiLU"]))})
    layers.append({"last": {"Linear": {"in_features": 5, "out_features": width}}})
    if inputs == 1 and draw(st.booleans()):
        return layers
    return {"inputs": names, "layers": layers}


@st.composite
def spoilt(draw: Any) -> Any:
    """A valid specification with one or two of its places holding something else."""
    tree = draw(valid())
    for _ in range(draw(st.integers(1, 2))):
        paths = list(paths_of(tree))
        if paths:
            tree = replaced(tree, draw(st.sampled_from(paths)), draw(st.one_of(LEAVES, TREES)))
    return tree
