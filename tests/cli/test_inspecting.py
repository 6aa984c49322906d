"""`list` and `show`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import revgraph as rg
from revgraph.cli import shipped
from revgraph.cli.inspecting import list_
from revgraph.reporting import report

Run = Callable[..., Any]
ROOT = Path(__file__).parents[2]


def test_list_shows_the_shipped_networks_with_their_parameters(revgraph: Run) -> None:
    answer = revgraph("list")
    assert answer.status == 0 and answer.err == ""
    (line,) = [line for line in answer.out.splitlines() if "revnet-38 " in line]
    assert "464,890" in line


def test_list_shows_what_can_be_set(revgraph: Run) -> None:
    (line,) = [line for line in revgraph("list").out.splitlines() if line.startswith("reversible-lm ")]
    assert "depth=4" in line and "908,544" in line
    found = {item["name"]: item["settings"] for item in revgraph("list", "--json").json}
    assert found["revvit"]["patch"] == 4 and found["revnet-38"] == {"classes": 10}


def test_list_leaves_out_in_a_narrow_terminal_what_has_no_room(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    list_()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 3 * len(shipped.networks()) + 6
    assert "(RevGNN;" in " ".join(lines)
    assert "settings" not in lines[1] and "--json" in lines[-1]
    monkeypatch.setenv("COLUMNS", "180")
    list_()
    assert "depth=4" in capsys.readouterr().out


def test_list_as_json(revgraph: Run) -> None:
    found = {item["name"]: item["parameters"] for item in revgraph("list", "--json").json}
    assert found["revnet-38"] == 464_890 and found["resnet-32"] == 464_154


def test_the_list_is_of_the_networks_as_they_are() -> None:
    """If not, `make gallery` writes it anew."""
    assert shipped.networks() == shipped.counted()


def test_list_takes_no_torch() -> None:
    code = "import sys; from revgraph.cli.inspecting import list_; list_(); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_show_prints_the_graph(revgraph: Run, tiny: Path) -> None:
    answer = revgraph("show", tiny, "--batch", 3)
    assert answer.status == 0
    assert answer.out == str(report(rg.load(tiny, batch=3).graph)) + "\n"
    assert "block0.f" in answer.out or "block.0.f" in answer.out


def test_show_as_json_is_the_graph(revgraph: Run, tiny: Path) -> None:
    answer = revgraph("show", tiny, "--json", "--batch", 3)
    assert rg.Graph.from_json(answer.out) == rg.load(tiny, batch=3).graph


def test_parameters_of_the_network_are_set(revgraph: Run, tiny: Path) -> None:
    values = revgraph("show", tiny, "--json", "--set", "classes=7").json["values"]
    assert values[-1]["shape"] == [100, 7]
