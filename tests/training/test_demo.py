"""The demonstration, shortened: what it prints and writes, and its exit status."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import revgraph as rg
from revgraph.training import demo
from revgraph.training.comparing import compare
from revgraph.training.metrics import read_rows


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "RECIPE", replace(demo.RECIPE, steps=2, warmup=1, batch=4))


@pytest.mark.slow
def test_demo_says_whether_its_accuracy_is_reached_and_can_be_run_again(
    short: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert demo.main(["--out", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "that is below the 97% which this demonstration promises." in out
    assert out.index("This takes less than a minute on this machine: 2 steps") < out.index("step 2 of 2")
    assert out.count("test accuracy") == 1
    for figure in ("held bytes, measured", "peak bytes, measured", "FLOPs, measured", "seconds, measured"):
        assert figure in out
    assert "angle between the two gradients" in out
    for file in ("plan.svg", "metrics.csv", "checkpoints/step-00000002"):
        assert (tmp_path / file).exists() and str(tmp_path / file) in out
    assert [row.step for row in read_rows(tmp_path)] == [1, 2]
    monkeypatch.setattr(demo, "TARGET", 0.0)
    assert demo.main(["--out", str(tmp_path)]) == 0
    assert "promises" not in capsys.readouterr().out


@pytest.mark.slow
def test_demo_that_cannot_write_is_bad_input(
    short: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert demo.main(["--out", str(tmp_path / "file")]) == 2
    assert "error: cannot write to the folder" in capsys.readouterr().out


def test_comparison_is_measured_on_one_net_and_leaves_it(inverted: Callable[[], rg.ReversibleModule]) -> None:
    net = inverted()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    images = torch.randn(20, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    told: list[str] = []
    found = compare(net, images, repeats=2, progress=told.append)
    assert found.inverted.plan == net.plan and found.stored.plan == rg.keep_all(net.graph)
    assert found.inverted.held_bytes == rg.measure(net, images).held_bytes < found.stored.held_bytes
    assert 1 < found.inverted.flops / found.stored.flops <= 1.3334
    assert found.angle < 0.5 and found.batch == 20 and min(found.stored.seconds, found.inverted.seconds) > 0
    assert any("2 of 3" in text for text in told)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
