"""`--save` and `--plan`: a plan from one command to another, files written whole, and what is refused."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import revgraph as rg
from revgraph.cli import plan_files
from revgraph.training import durable
from revgraph.training.metrics import read_rows

Run = Callable[..., Any]


@pytest.fixture
def saved(revgraph: Run, tiny: Path, tmp_path: Path) -> Path:
    """The plan of ordinary autograd, which no command would make by itself, for 8 images."""
    path = tmp_path / "plan.json"
    path.write_text(rg.keep_all(rg.load(tiny, batch=8).graph).to_json())
    return path


@pytest.mark.slow
def test_plan_is_saved_and_shown_again(revgraph: Run, tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "folder" / "plan.json"
    answer = revgraph("plan", tiny, "--batch", 3, "--save", path)
    assert answer.status == 0 and f"saved: {path}" in answer.err
    assert os.listdir(path.parent) == ["plan.json"]
    assert rg.Plan.from_json(path.read_text()) == rg.load(tiny, batch=3).plan
    before = path.read_text()
    again = revgraph("plan", tiny, "--batch", 3, "--plan", path, "--save", path, "--json")
    assert again.json["decisions"] == json.loads(before)["decisions"] and path.read_text() == before


@pytest.mark.slow
def test_saved_plan_is_drawn_and_measured(revgraph: Run, tiny: Path, saved: Path, tmp_path: Path) -> None:
    options = ("--batch", 8, "--plan", saved, "--json", "--measure", "--out", tmp_path / "plan.dot")
    found = revgraph("plan", tiny, *options).json
    kept = rg.keep_all(rg.load(tiny, batch=8).graph)
    assert found["decisions"] == kept.decisions and found["measured_peak_bytes"] == kept.peak_bytes
    assert (tmp_path / "plan.dot").read_text() == rg.draw(kept, tmp_path / "again.dot").read_text()


@pytest.mark.slow
def test_check_takes_a_saved_plan(revgraph: Run, tiny: Path, saved: Path) -> None:
    found = revgraph("check", tiny, "--plan", saved, "--json").json
    assert found["good"] is True and not found["drift"]  # nothing is rebuilt
    assert revgraph("check", tiny, "--json").json["drift"]


@pytest.mark.slow
def test_plan_in_exact_mode_is_for_exact_mode(revgraph: Run, tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    assert revgraph("plan", tiny, "--batch", 8, "--exact", "--save", path).status == 0
    assert revgraph("check", tiny, "--exact", "--plan", path).status == 0
    refused = revgraph("check", tiny, "--plan", path)
    assert refused.status == 2 and "this plan is for another graph" in refused.err


@pytest.mark.slow
def test_training_takes_a_saved_plan(
    revgraph: Run, tiny: Path, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nets: list[rg.ReversibleModule] = []
    load = rg.load
    monkeypatch.setattr(rg, "load", lambda *given, **named: nets.append(load(*given, **named)) or nets[-1])
    options = ("--steps", 2, "--batch", 8, "--plan", saved, "--no-tensorboard", "--out", tmp_path / "run")
    answer = revgraph("train", tiny, *options)
    assert answer.status == 0, answer.err
    assert set(nets[-1].plan.decisions.values()) == {"keep"} and len(read_rows(tmp_path / "run")) == 2


@pytest.mark.slow
def test_run_is_kept_where_the_plan_is_refused(
    revgraph: Run, tiny: Path, saved: Path, tmp_path: Path
) -> None:
    options = ("--steps", 2, "--no-tensorboard", "--out", tmp_path / "run")
    assert revgraph("train", tiny, *options, "--batch", 8).status == 0
    refused = revgraph("train", tiny, *options, "--overwrite", "--batch", 4, "--plan", saved)
    assert refused.status == 2 and refused.out == ""
    assert f"error: {saved}: this plan is for another graph" in refused.err
    assert "value 'image' is 8x3x32x32 float32 in the plan, and 4x3x32x32 float32 in the net" in refused.err
    assert len(read_rows(tmp_path / "run")) == 2


@pytest.mark.slow
def test_run_without_its_plan_file_does_not_begin(revgraph: Run, tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "none.json"
    refused = revgraph("train", tiny, "--plan", path, "--out", tmp_path / "run")
    assert refused.status == 2 and not (tmp_path / "run").exists()
    assert refused.err == f"error: the plan {path} cannot be read: No such file or directory\n"


@pytest.mark.slow
@pytest.mark.parametrize("command", ["plan", "train"])
def test_plan_and_budget_exclude_each_other(revgraph: Run, tiny: Path, saved: Path, command: str) -> None:
    refused = revgraph(command, tiny, "--plan", saved, "--budget", "1 GiB")
    assert refused.status == 2 and "give --plan or --budget, not both" in refused.err


def sparse(path: Path) -> None:
    path.write_bytes(b"")
    os.truncate(path, 2**40)


PLACES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "No such file or directory"),
    "folder": (lambda path: path.mkdir(), "is not a file. Give one that `revgraph plan NET --save FILE`"),
    "pipe": (lambda path: os.mkfifo(path), "is not a file"),
    "endless device": (lambda path: path.symlink_to("/dev/zero"), "is not a file"),
    "sparse giant": (sparse, "is larger than the 67,108,864 bytes that a plan may have"),
    "no text": (lambda path: path.write_bytes(b"\xff\xfe"), "the file is not UTF-8 text (at byte 0)"),
    "no plan": (lambda path: path.write_text("cos\nsystem\n"), "this is not a plan in revgraph's JSON form"),
    "a report": (lambda path: path.write_text('{"network": "tiny"}'), "it has no 'revgraph_plan'"),
}


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_what_is_no_plan_is_status_2(revgraph: Run, tiny: Path, tmp_path: Path, place: str) -> None:
    make, said = PLACES[place]
    path = tmp_path / "other.json"
    make(path)
    for command in ("plan", "check"):
        refused = revgraph(command, tiny, "--plan", path)
        assert refused.status == 2 and refused.out == "", refused.out
        assert refused.err.startswith("error: ") and said in refused.err and str(path) in refused.err


@pytest.mark.slow
def test_edited_plan_is_refused(revgraph: Run, tiny: Path, saved: Path) -> None:
    data = json.loads(saved.read_text())
    data["peak_bytes"] += 1
    saved.write_text(json.dumps(data))
    refused = revgraph("plan", tiny, "--batch", 8, "--plan", saved)
    assert refused.status == 2 and "the text was changed, or another version" in refused.err


@pytest.mark.slow
def test_full_disk_leaves_the_old_plan(tiny: Path, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = rg.load(tiny, batch=3).plan
    before = saved.read_text()

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(durable, "sync", full)
    with pytest.raises(OSError, match="No space left"):
        plan_files.save_plan(plan, saved)
    assert saved.read_text() == before and sorted(os.listdir(saved.parent)) == ["plan.json", "tiny.yaml"]


@pytest.mark.slow
def test_report_of_a_saved_plan_is_that_of_the_plan(revgraph: Run, tiny: Path, saved: Path) -> None:
    kept = rg.keep_all(rg.load(tiny, batch=8).graph)
    read = rg.Plan.from_json(saved.read_text())
    assert read == kept and "read from a file" in read.summary()
    assert revgraph("plan", tiny, "--batch", 8, "--plan", saved).out == f"{read}\n"
