"""A specification's parameters: defaults, values given instead, and where they may stand."""

from __future__ import annotations

from typing import Any

import pytest

from revgraph import specs
from revgraph.errors import SpecError

TEXT = """
parameters: {width: 4, depth: 2, act: ReLU, bias: true, p: 0.5, shape: [2, 2]}
inputs: {x: ["$width"]}
layers:
  - wide: {Linear: {in_features: $width, out_features: 4, bias: $bias}, repeat: $depth}
  - act: $act
  - drop: {Dropout: $p}
  - image: {Reshape: $shape}
"""


def message(text: str, **parameters: Any) -> str:
    with pytest.raises(SpecError) as caught:
        specs.build(text, **parameters)
    return str(caught.value)


def test_defaults_stand_where_they_are_named() -> None:
    built = specs.build(TEXT)
    assert built.parameters == {
        "width": 4,
        "depth": 2,
        "act": "ReLU",
        "bias": True,
        "p": 0.5,
        "shape": (2, 2),
    }
    assert list(built.module.state_dict()) == ["wide0.weight", "wide0.bias", "wide1.weight", "wide1.bias"]
    assert built.module(*specs.example_inputs(built)).shape == (2, 2, 2)


def test_given_values_replace_the_defaults() -> None:
    built = specs.build(TEXT, depth=1, act="Tanh", bias=False, p=1, shape=[1, 4, 1])
    assert list(built.module.state_dict()) == ["wide0.weight"]
    assert type(built.module.get_submodule("act")).__name__ == "Tanh"
    assert built.module(*specs.example_inputs(built)).shape == (2, 1, 4, 1)
    assert built.parameters["p"] == 1


def test_an_unknown_parameter_is_refused_with_the_known_ones() -> None:
    assert message(TEXT, widht=3) == (
        "there is no parameter 'widht'. Did you mean 'width'? "
        "The parameters are width, depth, act, bias, p, shape."
    )
    plain = "inputs: {x: [4]}\nlayers: [a: ReLU]\n"
    assert message(plain, width=3) == "there is no parameter 'width'. This network has none."


@pytest.mark.parametrize(
    ("name", "value", "described"),
    [
        ("width", "4", "the text '4'"),
        ("width", 4.5, "the number 4.5"),
        ("width", True, "true"),
        ("width", None, "nothing"),
        ("bias", 1, "the number 1"),
        ("p", "a", "the text 'a'"),
        ("shape", 4, "the number 4"),
        ("act", ["ReLU"], "a list of 1"),
    ],
)
def test_a_value_of_another_kind_is_refused(name: str, value: Any, described: str) -> None:
    assert message(TEXT, **{name: value}).startswith(
        f"parameter '{name}' cannot be {described}: its default is "
    )


def test_an_object_as_a_value_is_refused() -> None:
    assert message(TEXT, width=object()).startswith(
        "parameter 'width': a specification holds mappings, lists"
    )


def test_a_misspelt_reference_is_named_with_its_line() -> None:
    assert message(TEXT.replace("$act", "$actt")) == (
        "text:6: there is no parameter 'actt'. Did you mean 'act'? "
        "The parameters are width, depth, act, bias, p, shape."
    )


def test_a_text_that_only_holds_a_dollar_is_a_text() -> None:
    built = specs.build("description: costs 5$, or $ 5\ninputs: {x: [4]}\nlayers: [a: ReLU]\n")
    assert built.description == "costs 5$, or $ 5"


@pytest.mark.parametrize(
    ("declared", "text"),
    [
        (
            "[a]",
            "text:1: `parameters` is a list of 1; it must give each parameter its default, "
            "as in {classes: 10}",
        ),
        ("{a-b: 1}", "text:1: 'a-b' cannot name a parameter: use letters, digits and underscores"),
        ("{batch: 1}", "text:1: 'batch' cannot name a parameter: it is an argument of its own"),
        (
            "{a: {b: 1}}",
            "text:1: parameter 'a' cannot be a mapping with 'b': "
            "give a number, text, truth value, or a list of such",
        ),
        (
            "{a: }",
            "text:1: parameter 'a' cannot be nothing: give a number, text, truth value, or a list of such",
        ),
    ],
)
def test_wrong_declarations_are_refused(declared: str, text: str) -> None:
    assert message(f"parameters: {declared}\ninputs: {{x: [4]}}\nlayers: [a: ReLU]\n") == text
