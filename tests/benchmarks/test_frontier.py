"""The frontier benchmark measures what it says, and revgraph's plans are predicted to the byte."""

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
from benchmarks.tradeoff.contenders import checkpointed, per_block
from benchmarks.tradeoff.networks import Network, random_dag, transformer, wide_chain
from benchmarks.tradeoff.results import COMPILED, study
from benchmarks.tradeoff.steps import measure_step

pytestmark = pytest.mark.slow  # for what they look at takes long, and is made once for all of them

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("frontier")
    command = [sys.executable, "-m", "benchmarks.frontier", "--quick", "--out", str(out)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="module")
def networks(written: Path) -> list[dict[str, Any]]:
    return json.loads((written / "frontier.json").read_text())["networks"]


def test_every_network_has_all_contenders(networks: list[dict[str, Any]]) -> None:
    assert [network["network"] for network in networks] == ["transformer", "random", "chain"]
    for network in networks:
        assert len(network["others"]) == 4
        assert len(network["duels"]) == len([each for each in network["others"] if each["peak_bytes"]])


def test_every_plan_is_predicted_to_the_byte(networks: list[dict[str, Any]]) -> None:
    for network in networks:
        within = [duel["ours"] for duel in [*network["duels"], network["below"]] if duel and duel["ours"]]
        for planned in [*network["frontier"], *within]:
            assert planned["predicted_peak_bytes"] == planned["measured"]["peak_bytes"]
            assert planned["predicted_held_bytes"] == planned["measured"]["held_bytes"]
            assert planned["predicted_flops_ratio"] == pytest.approx(planned["measured"]["flops_ratio"])
            assert planned["equal"]


def test_a_frontier_rises_in_bytes_and_falls_in_flops(networks: list[dict[str, Any]]) -> None:
    for network in networks:
        points = [each["measured"] for each in network["frontier"]]
        assert points == sorted(points, key=lambda each: each["peak_bytes"])
        ratios = [each["flops_ratio"] for each in points]
        assert ratios == sorted(set(ratios), reverse=True)
        assert ratios[-1] == 1


def test_plans_within_the_others_peaks_keep_to_them(networks: list[dict[str, Any]]) -> None:
    for network in networks:
        for duel in network["duels"]:
            assert duel["budget"] == duel["other"]["peak_bytes"]
            if duel["ours"] is None:
                assert duel["problem"]
                continue
            assert duel["ours"]["measured"]["peak_bytes"] <= duel["budget"]
            more = duel["ours"]["measured"]["flops"] > duel["other"]["flops"]
            assert duel["verdict"] == ("more" if more else "no more")
            assert bool(duel["reason"]) == more


def test_the_files_name_the_machine_and_no_path(written: Path) -> None:
    found = json.loads((written / "frontier.json").read_text())
    assert found["machine"]["libraries"]["torch"] == torch.__version__
    for file in written.iterdir():
        assert str(ROOT) not in file.read_text()
    assert "What the columns mean" in (written / "frontier.md").read_text()


@pytest.mark.skipif(find_spec("matplotlib") is None, reason="matplotlib is not installed")
def test_words_in_the_charts_are_words(written: Path) -> None:
    charts = sorted(written.glob("frontier-*.svg"))
    assert [chart.stem for chart in charts] == ["frontier-chain", "frontier-random", "frontier-transformer"]
    for chart in charts:
        svg = chart.read_text()
        assert ">revgraph</text>" in svg
        assert f">{COMPILED}</text>" in svg
        assert "fill: #ffffff" not in svg


@pytest.fixture(params=["transformer", "random", "chain"])
def network(request: pytest.FixtureRequest) -> Network:
    if request.param == "transformer":
        return transformer(blocks=1, batch=2, length=4, width=8)
    if request.param == "random":
        return random_dag(moves=6, streams=3, batch=4, width=4)
    return wide_chain(blocks=1, batch=8, width=4)


def test_a_step_is_measured_as_the_library_measures_it(network: Network) -> None:
    step = measure_step(network.net, network.net, network.inputs)
    measured = rg.measure(network.net, *network.inputs)
    assert (step.peak_bytes, step.held_bytes, step.flops) == (
        measured.peak_bytes,
        measured.held_bytes,
        measured.flops,
    )


def test_the_model_and_the_net_compute_the_same(network: Network) -> None:
    torch.testing.assert_close(network.net(*network.inputs), network.model(*network.inputs))
    torch.testing.assert_close(per_block(network.model)(*network.inputs), network.model(*network.inputs))


def test_checkpoints_compute_products_again(network: Network) -> None:
    plain = measure_step(network.model, network.model, network.inputs)
    again = measure_step(checkpointed(network.model, 1), network.model, network.inputs)
    assert again.products > plain.products
    assert again.held_bytes < plain.held_bytes


def test_a_partitioner_that_fails_is_a_row_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(model: object, budget: float) -> object:
        raise ZeroDivisionError("no | way\nat all")

    monkeypatch.setattr("benchmarks.tradeoff.results.partitioned", fail)
    result = study(wide_chain(blocks=1, batch=8, width=4), [0.5], lambda text: None)
    assert result.others[-1].problem == "ZeroDivisionError: no | way"
    assert result.below is None
    assert len(result.duels) == 2
