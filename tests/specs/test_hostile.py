"""Hostile and broken specifications end in SpecError, soon and without memory; no code of theirs runs."""

from __future__ import annotations

import os
import resource
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from specs.hostile_corpus import CORPUS, HEAD
from trust.weighing import KILOBYTES, SECONDS, timed

from revgraph import specs
from revgraph.specs.registry import LAYER_KEYS


@pytest.mark.slow
@pytest.mark.parametrize("name", CORPUS)
def test_a_hostile_specification_is_refused_soon_and_without_memory(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcome = timed(lambda: specs.build(CORPUS[name]))
    assert outcome.kind == "SpecError" and len(outcome.text) < 1000
    assert outcome.seconds < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < KILOBYTES
    assert os.listdir(tmp_path) == []


SMALL = specs.Limits(parameters=10**6, layers=300, elements=10**6)
SHIPPED = [(files("revgraph") / "models" / f"{name}.yaml").read_text() for name in ("revnet-38", "resnet-32")]
WORDS = st.sampled_from(
    [
        *LAYER_KEYS,
        "Linear",
        "Additive",
        "Affine",
        "Split",
        "ReLU",
        "Sum",
        "f",
        "g",
        "x",
        "x1",
        "name",
        "$classes",
        "a",
    ]
)
LEAVES = st.one_of(WORDS, st.integers(-3, 9), st.floats(), st.booleans(), st.none(), st.text(max_size=5))
TREES = st.recursive(
    LEAVES,
    lambda trees: st.one_of(
        st.lists(trees, max_size=4),
        st.dictionaries(WORDS, trees, max_size=4),
        st.dictionaries(WORDS, LEAVES, max_size=3),
    ),
    max_leaves=12,
)
PIECES = st.lists(
    st.one_of(
        WORDS,
        st.sampled_from(
            ["{", "}", "[", "]", ": ", "- ", "\n", "\n  ", ", ", "&a ", "*a", "!", "'", '"', "$"]
        ),
    ),
    max_size=40,
)


def built_or_refused(source: Any) -> bool:
    """Whether it was built; anything but a network or a SpecError, in time, is the test's failure."""
    outcome = timed(lambda: build(source))
    assert outcome.seconds < SECONDS
    assert outcome.kind == "done" or (outcome.kind == "SpecError" and outcome.text)
    return outcome.kind == "done"


def build(source: Any) -> None:
    assert specs.build(source, limits=SMALL).module.steps


@settings(max_examples=150, deadline=None)
@given(layers=st.lists(st.dictionaries(WORDS, TREES, min_size=1, max_size=2), max_size=3), outputs=TREES)
def test_random_layers_are_built_or_refused(layers: list[Any], outputs: Any) -> None:
    mapping = {"parameters": {"classes": 3}, "inputs": {"x": [4]}, "layers": layers}
    built = built_or_refused(mapping)
    # Naming values that exist can only help where a half-step comes last; naming none cannot.
    if built_or_refused({**mapping, "outputs": outputs}) and not built:
        assert outputs is not None


@settings(max_examples=150, deadline=None)
@given(pieces=PIECES)
def test_random_text_is_built_or_refused(pieces: list[str]) -> None:
    text = HEAD + "".join(pieces) + "\n"
    assert built_or_refused(text) == built_or_refused(text + "# a comment\n")


@settings(max_examples=60, deadline=None)
@given(
    text=st.sampled_from(SHIPPED),
    place=st.integers(0, 1000),
    gone=st.integers(0, 12),
    new=st.one_of(st.text(max_size=4), WORDS, st.sampled_from(["9", "-", ": ", "\n"])),
)
def test_shipped_specs_with_a_slip_of_the_pen_are_built_or_refused(
    text: str, place: int, gone: int, new: str
) -> None:
    built = built_or_refused(text[:place] + new + text[place + gone :] + "\n")
    if place >= len(text) and new in ("\n", ""):
        assert built
