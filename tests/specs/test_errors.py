"""Every mistake ends in a SpecError that says where it is, what stands there, and what to write instead."""

from __future__ import annotations

from typing import Any

import pytest

from revgraph import specs
from revgraph.errors import RevgraphError, SpecError


def message(source: Any, **arguments: Any) -> str:
    with pytest.raises(SpecError) as caught:
        specs.build(source, **arguments)
    assert isinstance(caught.value, RevgraphError)
    return str(caught.value)


def layers(*lines: str) -> str:
    """A specification of these layers, the first of which stands on line 3."""
    return "\n".join(["inputs: {x: [4]}", "layers:", *(f"  {line}" for line in lines), ""])


WHOLE = [
    (
        "\n",
        "text: the specification is empty. It needs at least `inputs` and `layers`.",
    ),
    (
        "hello\nworld\n",
        "text:1: here stands the text 'hello world', but there must be a mapping with `inputs` and `layers`",
    ),
    (
        "- a\n- b\n",
        "text:1: here stands a list of 2, but there must be a mapping with `inputs` and `layers`",
    ),
    (
        "name: a\n\nlayers: []\n",
        "text:1: the specification has no 'inputs'. It needs at least `inputs` and `layers`.",
    ),
    (
        "inputs: {x: [4]}\nlayer: []\n",
        "text:2: a specification has no key 'layer'. Did you mean 'layers'? Its keys are name, "
        "description, parameters, batch, exact, inputs, layers, outputs.",
    ),
    (
        "inputs: [4]\nlayers: []\n",
        "text:1: here stands a list of 1, but there must be a mapping from each input's name to its "
        "shape, as {image: [3, 32, 32]}",
    ),
    (
        "inputs: {}\nlayers: []\n",
        "text:1: a network has at least one input, as {image: [3, 32, 32]}",
    ),
    (
        "inputs: {x: 4}\nlayers: []\n",
        "text:1: here stands the number 4, but there must be a shape without the batch, or {shape: "
        "[...], dtype: ...}",
    ),
    (
        "inputs: {x: [4, -1]}\nlayers: []\n",
        "text:1: -1 is out of range: there must be a size, from 1 to 16777216",
    ),
    (
        "inputs: {x: [4.5]}\nlayers: []\n",
        "text:1: here stands the number 4.5, but there must be a size",
    ),
    (
        "inputs: {x: {dtype: float32}}\nlayers: []\n",
        "text:1: input 'x' has no `shape`",
    ),
    (
        "inputs: {x: {shape: [4], type: float32}}\nlayers: []\n",
        "text:1: an input has no key 'type'. Did you mean 'dtype'? Its keys are shape, dtype, batched, fill.",
    ),
    (
        "inputs: {x: {shape: [4], dtype: float31}}\nlayers: []\n",
        "text:1: there is no dtype 'float31'. Did you mean 'float32'? The dtypes are float32, float64, "
        "float16, bfloat16, complex64, int64, int32, int16, int8, uint8, bool.",
    ),
    (
        "inputs: {x: {shape: [4], batched: 1}}\nlayers: []\n",
        "text:1: `batched` must be true or false: whether the batch comes before the shape",
    ),
    (
        "inputs: {x: {shape: [4], fill: a}}\nlayers: []\n",
        "text:1: `fill` must be a number, true or false: every element of an example input",
    ),
    (
        "inputs:\n  x: [4]\n  y: [4]\nlayers:\n  - a: {ReLU: , in: x}\n",
        "text:2: no layer reads the input 'y'. Name it after `in`, or leave it out.",
    ),
    (
        "inputs: {x: [4]}\nlayers: [a: ReLU]\noutputs: b\n",
        "text:3: no value is named 'b' at this point. The values so far are x, a.",
    ),
    (
        "inputs: {x: [4]}\nlayers: {a: ReLU}\n",
        "text:2: here stands a mapping with 'a', but there must be a list of layers, each `- name: module`",
    ),
    (
        "name: [a]\ninputs: {x: [4]}\nlayers: [a: ReLU]\n",
        "text:1: here stands a list of 1, but there must be the network's name",
    ),
    (
        "batch: 0\ninputs: {x: [4]}\nlayers: [a: ReLU]\n",
        "text:1: 0 is out of range: there must be a number of samples, from 1 to 1048576",
    ),
    (
        "inputs: {x: [4]\nlayers: []\n",
        "text:2: this is not YAML: did not find expected ',' or '}'",
    ),
    (
        "inputs:\n\tx: [4]\n",
        "text:2: this is not YAML: found character '\\t' that cannot start any token (while scanning for "
        "the next token). Indent with spaces, not tabs.",
    ),
    (
        "inputs:\n  x: [4] # \x07\n",
        "text:2: this is not YAML: it holds the control character '\\x07'",
    ),
    (
        "inputs: {x: [4]}\n---\nlayers: []\n",
        "text:2: a second document begins here. A specification is one document.",
    ),
    (
        "? [a]\n: b\n",
        "text:1: a key must be a word, not a list, mapping or alias",
    ),
    (
        "a: &a [*a]\n",
        "text:1: '*a' stands inside what it names, so it would never end",
    ),
    (
        "{inputs: {x: [4]}, layers: [a: {Linear: [4, 4], in: z}]}",
        "text:1: no value is named 'z' at this point. The values so far are x.",
    ),
]


@pytest.mark.parametrize(("text", "expected"), WHOLE)
def test_a_wrong_specification_is_named_with_its_line(text: str, expected: str) -> None:
    if "did not find expected" in expected:  # the parser's own words differ between its versions
        assert message(text).startswith("text:2: this is not YAML: ")
    else:
        assert message(text) == expected


def test_mappings_are_located_by_their_path() -> None:
    assert message({"inputs": {"x": [4]}, "layers": [{"a": "ReLU"}, {"b": {"Linear": [4, "4"]}}]}) == (
        "spec.layers[1].b.Linear: Linear's out_features must be of type int, not \"'4'\""
    )
    assert message({"inputs": {"x": [4]}, "layers": [{"a": print}]}) == (
        "spec.layers[0].a: a specification holds mappings, lists, texts, numbers, truth values and None, not "
        "builtin_function_or_method. Register a module of your own under a name, and write the name."
    )
    assert message({1: 2}) == "spec: a key must be a word, not '1'"
    assert message({"inputs": {"x": [float("nan")]}}).startswith("spec.inputs.x[0]: nan is no number")


def test_errors_name_the_file_and_line(tmp_path: Any) -> None:
    path = tmp_path / "wide.yaml"
    path.write_text("# a comment\n" + layers("- a: {Linear: [4]}"))
    assert message(path).startswith(f"{path}:4: Linear: missing a required argument")
    assert message(str(path)).startswith(f"{path}:4: Linear: missing a required argument")


@pytest.mark.parametrize("batch", [0, -3, 2.5, True, "8"])
def test_a_wrong_batch_is_refused(batch: Any) -> None:
    assert message("revnet-38", batch=batch) == f"batch must be a whole number of at least 1, not {batch!r}"


def test_layers_beyond_the_limit_are_counted_before_they_are_made() -> None:
    text = layers("- a: {layers: [b: {Linear: [4, 4], repeat: 1000}], repeat: 1000}")
    assert message(text) == (
        "text:3: with every `repeat` written out the network has 1000000 layers, functions of couplings "
        "included; the limit is 20000. Repeat less, or raise `limits.layers`."
    )
    few = specs.Limits(layers=4)
    assert "has 6 layers" in message(layers("- a: {Linear: [4, 4], repeat: 6}"), limits=few)
    specs.build(layers("- a: {Linear: [4, 4], repeat: 4}"), limits=few)


def test_parameters_beyond_the_limit_are_counted_before_they_are_made() -> None:
    assert message(layers("- a: {Linear: [60000, 60000]}")) == (
        "text:3: up to here the network has 3600060000 parameters; the limit is 268435456. Make it smaller, "
        "or raise `limits.parameters`."
    )
    few = specs.Limits(parameters=100)
    half_steps = layers(
        "- s: {Split: 2}",
        "- a: {Additive: {f: [b: &l {Linear: [2, 2]}, c: *l], g: *l}, repeat: 5}",
    )
    assert message(half_steps, limits=specs.Limits(parameters=89)).startswith(
        "text:4: up to here the network has 90 parameters; the limit is 89."
    )
    specs.build(half_steps, limits=few)


def test_a_large_input_is_refused_unless_the_batch_is_the_callers() -> None:
    text = "batch: 100000\ninputs: {x: [1000]}\nlayers: [a: ReLU]\n"
    assert message(text).startswith("text:2: input 'x' has 100000000 elements; the limit is 67108864.")
    assert specs.build(text, batch=200_000).inputs[0].shape == (200_000, 1000)
