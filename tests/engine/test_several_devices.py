"""Nets on two devices, whose backward passes autograd runs in several threads at once.

The second device computes on the CPU (`second_device`), in processes of their own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from engine.second_device import what_is_missing
from trust.processes import PYTHON, together

pytestmark = [
    pytest.mark.skipif(bool(what_is_missing()), reason=what_is_missing()),
    pytest.mark.slow,  # for what they look at takes long, and is made once for all of them
]

HERE = Path(__file__).parent
PLANS = ("default", "inverted", "recomputed", "run again")
WAYS = 8
# With turns as on the CPU, where one node runs at a time; without as on GPUs, where nothing is held.
RUNS = (
    ("with", "Weave", "Moving"),
    ("with", "Branches", "Apart"),
    ("without", "Taps", "Changing"),
)
TOLERANCE = 1e-9
Found = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What came of each net, with and without turns."""
    folder = tmp_path_factory.mktemp("devices")
    files = [folder / f"{number}.json" for number, _ in enumerate(RUNS)]
    commands = [
        (*PYTHON, HERE / "devices_worker.py", file, *run) for file, run in zip(files, RUNS, strict=True)
    ]
    for ended in together(commands, folder, timeout=1200):
        assert ended.status == 0, ended.text
    found: Found = {"with": {}, "without": {}}
    for file, (turns, *_) in zip(files, RUNS, strict=True):
        found[turns].update(json.loads(file.read_text()))
    return found


@pytest.mark.parametrize("last", ["cpu", "second"])
def test_a_pass_has_threads_that_are_alike_and_ends_in_any_of_them(found: Found, last: str) -> None:
    """Of torch itself, what the engine builds on."""
    told = found["with"][f"pass that ends on {last}"]
    assert told["own thread"]
    assert told["called back in"] in ("cpu", "second")
    assert told["states"]["cpu"] == told["states"]["second"]
    assert told["states"]["cpu"]["gradients"] and told["states"]["cpu"]["keeps the graph"]
    assert told["states"]["cpu"]["dispatch mode"] == "Watching"
    assert told["states"]["cpu"]["precision"] == ["torch.float16", "torch.bfloat16"]


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize(("turns", "net"), [(turns, net) for turns, *nets in RUNS for net in nets])
def test_gradients_on_two_devices_are_those_of_autograd(
    found: Found, turns: str, net: str, plan: str
) -> None:
    start = f"{net}, {plan}, "
    results = {name: each for name, each in found[turns].items() if name.startswith(start)}
    # Taps are boundaries, so that nothing is rebuilt on the second device where couplings alone are.
    one_alone = plan == "inverted" and net in ("Taps", "Changing")
    assert results.pop(f"{start}threads") == (1 if one_alone else 2)
    assert len(results) == WAYS
    off = {name: each for name, each in results.items() if isinstance(each, str) or not each <= TOLERANCE}
    assert not off
