"""The language model's benchmark writes what it measured, and a chart of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.language_model import PROMPT, main


@pytest.mark.slow
def test_everything_reported_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    assert main(["--quick", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "language_model.json").read_text())
    page = (tmp_path / "language_model.md").read_text()
    assert page in capsys.readouterr().out
    assert len(found["loss"]) == found["steps"] == 6 and found["tests"][-1]["step"] == 6
    assert f"{found['tests'][-1]['bits_per_byte']:.3f}" in page
    for side in (found["one_step"]["stored"], found["one_step"]["inverted"]):
        assert side["held_bytes"] == side["held_bytes_predicted"]
        assert side["peak_bytes"] == side["peak_bytes_predicted"]
    assert found["one_step"]["inverted"]["held_bytes"] < found["one_step"]["stored"]["held_bytes"]
    assert 0 < found["yardsticks"]["xz"] < found["yardsticks"]["single bytes"] < 8
    assert PROMPT.decode().strip() in page and len(found["written"]) > 100
    assert (tmp_path / "language_model.svg").read_text().startswith("<?xml")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "language_model.json",
        "language_model.md",
        "language_model.svg",
    ]
