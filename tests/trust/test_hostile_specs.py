"""Hostile specifications: refused with their place, within a second and 200 MB, and nothing of them runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trust.fuzzing import fuzzed
from trust.hostile_files import FILES, PLACES
from trust.random_specs import EXAMPLE, MAPPINGS, misspelt, spoilt, valid
from trust.spec_checks import gradients_agree, refused_or_built, wrong_types_everywhere
from trust.weighing import KILOBYTES, SECONDS

import revgraph as rg

ROOT = Path(rg.__file__).parents[1]
# The command's own batch replaces the one that is too large.
PLANNED = {"large batch"}


def answers(folder: Path) -> list[dict[str, Any]]:
    command = [sys.executable, "-W", "error", str(Path(__file__).with_name("spec_worker.py")), str(folder)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
def test_every_hostile_file_is_refused_soon_and_the_command_line_says_why(tmp_path: Path) -> None:
    *found, left = answers(tmp_path)
    assert left["files"] == [] and list(tmp_path.iterdir()) == []
    loads = [each for each in found if "kind" in each]
    assert len(loads) >= len(FILES) + len(PLACES)
    for each in loads:
        assert each["kind"] == "SpecError", each
        assert each["seconds"] < SECONDS and each["kilobytes"] < KILOBYTES, each
        assert 0 < len(each["text"]) < 1000, each
        if each["name"] in FILES:
            assert "net.yaml" in each["text"] or "input 'x'" in each["text"], each
    commands = [each for each in found if "status" in each]
    assert len(commands) == 2 * len(loads)
    for each in commands:
        if each["name"].partition(" ")[2] in PLANNED:
            assert each["status"] == 0
            continue
        assert each["status"] == 2 and each["raised"] is None, each
        assert each["out"] == "" and each["err"].startswith("error: ") and each["err"].count("\n") == 1, each
        assert "Traceback" not in each["err"]


@pytest.mark.slow
def test_wrong_types_everywhere_are_refused_or_built() -> None:
    rg.load(EXAMPLE)
    tally = wrong_types_everywhere(each=10)
    assert tally.kinds["SpecError"] > 100 and set(tally.kinds) <= {"SpecError", "done"}


def test_random_mappings_are_refused_or_built() -> None:
    assert fuzzed(refused_or_built, MAPPINGS, 150).cases >= 150


def test_misspelt_specifications_are_refused_or_built() -> None:
    assert fuzzed(refused_or_built, misspelt(), 150).cases >= 150


@pytest.mark.slow
def test_valid_specifications_with_a_place_spoilt_are_refused_or_built() -> None:
    # Most places matter, so that valid ones beside them show that not everything is refused.
    tally = fuzzed(refused_or_built, st.one_of(valid(), spoilt()), 40)
    assert tally.kinds["SpecError"] and tally.kinds["done"]


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(spec=valid(), start=st.integers(0, 9))
def test_valid_random_specifications_have_the_gradients_of_plain_autograd(
    spec: dict[str, Any], start: int
) -> None:
    gradients_agree(spec, start)


def test_swap_between_a_boundary_and_a_coupling_is_planned() -> None:
    spec = {
        "inputs": {"x1": [4], "x2": [4]},
        "layers": [
            {"first": {"Linear": [4, 4], "in": "x1", "out": "x1"}},
            {"swapped": {"Permute": [1, 0], "in": ["x1", "x2"], "out": ["x1", "x2"]}},
            {
                "coupled": {
                    "Additive": {
                        "f": [{"wide": {"Linear": [4, 5]}}, {"bend": "GELU"}, {"last": {"Linear": [5, 4]}}]
                    },
                    "target": "x2",
                    "others": ["x1"],
                }
            },
            {"joined": {"Concatenate": {"dim": -1}, "in": ["x1", "x2"]}},
            {"head": {"Linear": [8, 1]}},
        ],
    }
    gradients_agree(spec, 0)
