"""The comparison with other libraries measures what it says, and puts up with peers that are missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

import revgraph as rg
from benchmarks.comparison.contenders import Contender, contenders
from benchmarks.comparison.networks import Network, chain
from benchmarks.comparison.resizing import ResizingTracker
from benchmarks.comparison.results import compare
from benchmarks.comparison.running import Candidate, run_plainly
from benchmarks.comparison.tables import table
from benchmarks.shared import machine, markdown_table, write_json, write_text

pytestmark = pytest.mark.slow  # for what they look at takes long, and is made once for all of them

ROOT = Path(__file__).parents[2]
EVALUATIONS = {"memcnn": 3, "revtorch": 2, "revlib": 2, "reformer-pytorch": 2, "invtorch": 3}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("peers")
    command = [sys.executable, "-m", "benchmarks.peers", "--quick", "--out", str(out)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (out / "peers.md").read_text() in done.stdout
    return out


@pytest.fixture(scope="module")
def networks(written: Path) -> list[dict[str, Any]]:
    return json.loads((written / "peers.json").read_text())["networks"]


def rows_of(networks: list[dict[str, Any]], contender: str) -> list[dict[str, Any]]:
    return [row for network in networks for row in network["rows"] if row["contender"] == contender]


def test_every_contender_has_a_row_for_every_network(networks: list[dict[str, Any]]) -> None:
    names = [contender.name for contender in contenders()]
    assert [[row["contender"] for row in network["rows"]] for network in networks] == [names] * 3


@pytest.mark.parametrize("name", EVALUATIONS)
def test_a_peer_is_measured_or_says_why_not(networks: list[dict[str, Any]], name: str) -> None:
    rows = rows_of(networks, name)
    if rows[0]["version"] is None:
        assert all("not installed" in row["problem"] and row["step"] is None for row in rows)
        pytest.skip(f"{name} is not installed")
    for row in rows:
        assert row["problem"] is None
        assert row["step"]["evaluations"] == EVALUATIONS[name]
        assert max(row["errors_float64"]) < 1e-11


def test_revgraph_evaluates_twice_counts_one_step_and_agrees_with_plain(
    networks: list[dict[str, Any]],
) -> None:
    for network, row in zip(networks, rows_of(networks, "revgraph"), strict=True):
        plain = network["rows"][0]
        assert row["step"]["evaluations"] <= 2
        assert row["step"]["flops"] <= plain["step"]["flops"] * 4 / 3
        assert row["step"]["held_bytes"] < plain["step"]["held_bytes"]
        assert row["step"]["peak_bytes"] < plain["step"]["peak_bytes"]
        assert row["step"]["batch_norm_steps"] in (None, 1)
        assert max(row["errors_float64"]) < 1e-12
        assert row["times"]["ratio"] > 0


def test_the_files_name_the_machine_and_no_path(written: Path) -> None:
    found = json.loads((written / "peers.json").read_text())
    assert found["machine"]["libraries"]["torch"] == torch.__version__
    assert found["threads"] == 1
    assert len(found["load_average"]) == 2
    for file in written.iterdir():
        assert str(ROOT) not in file.read_text()


@pytest.mark.skipif(find_spec("matplotlib") is None, reason="matplotlib is not installed")
def test_words_in_the_chart_are_words(written: Path) -> None:
    svg = (written / "peers.svg").read_text()
    assert ">revgraph</text>" in svg
    assert "fill: #ffffff" not in svg


def test_bytes_are_those_that_measure_finds() -> None:
    network = chain(3, rounds=1, seed=0)
    (_, row) = compare([network], [contenders()[0], contenders()[-1]], lambda text: None).rows
    measured = rg.measure(network.net, network.example)
    assert row.step is not None
    assert (row.step.held_bytes, row.step.peak_bytes) == (measured.held_bytes, measured.peak_bytes)
    assert row.step.flops == measured.flops


def test_a_peer_that_fails_is_a_row_with_the_reason() -> None:
    def fail(network: Network, scale: float) -> Candidate:
        raise ZeroDivisionError("no | way\nat all")

    broken = Contender("broken", fail, distribution="broken", is_peer=True)
    result = compare([chain(1, rounds=1, seed=0)], [contenders()[0], broken], lambda text: None)
    assert result.rows[1].problem == "ZeroDivisionError: no | way"
    assert "not run" in table(result).splitlines()[-1]


def test_what_revgraph_raises_is_raised() -> None:
    def fail(network: Network, scale: float) -> Candidate:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        compare([chain(1, rounds=1, seed=0)], [Contender("revgraph", fail)], lambda text: None)


def test_doubling_leaves_the_network_as_it_was() -> None:
    network = chain(1, rounds=1, seed=0)
    before = {name: value.clone() for name, value in network.net.state_dict().items()}
    doubled = run_plainly(network, 2.0).net.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in network.net.state_dict().items())
    assert all(torch.equal(value, 2 * before[name]) for name, value in doubled.items())


def test_a_resized_storage_counts_what_it_has() -> None:
    resize = torch.UntypedStorage.resize_
    with ResizingTracker() as tracker:
        value = torch.ones(100)
        value.untyped_storage().resize_(0)
        assert tracker.live() == 0
        value.untyped_storage().resize_(400)
        assert tracker.live() == 400
        del value
        assert tracker.live() == 0
        assert tracker.peak() == 400
    assert torch.UntypedStorage.resize_ is resize


def test_a_table_is_straight_and_keeps_its_columns() -> None:
    lines = markdown_table(["", "a | b"], [["one\ntwo", "1"], ["three", "22,222,222"]]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert "a \\| b" in lines[0]
    assert lines[2].startswith("| one two |")


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="nan"):
        write_json(path, {"a": float("nan")})
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\ud800")
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(path.parent.iterdir()) == [path]


def test_the_machine_is_described() -> None:
    found = machine("no-such-distribution")
    assert found["cpu"] and found["cores"] >= 1
    assert found["libraries"]["no-such-distribution"] is None
