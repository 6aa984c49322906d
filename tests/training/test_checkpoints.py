"""A checkpoint is whole or absent, whatever happens while it is written, and reading one runs no code."""

from __future__ import annotations

import errno
import pickle
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from revgraph.errors import DataError
from revgraph.training import checkpoints as module
from revgraph.training.checkpoints import Checkpoint, checkpoints, load_state, load_weights, save
from revgraph.training.checksums import write_checksums
from revgraph.training.durable import sweep
from revgraph.training.errors import TrainingError
from revgraph.training.randomness import random_states, restore_random_states

STATE = {"numbers": [1, 2.5, None, "x"], "tensor": torch.arange(3)}


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Within the block, the system refuses to let any file grow beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_weights_are_safetensors_under_the_nets_own_names(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    saved = save(tmp_path, 5, net, STATE)
    assert saved == Checkpoint(5, tmp_path / "step-00000005")
    assert names(saved.folder) == ["checksums.json", "model.safetensors", "state.pt"]
    assert load_file(saved.folder / "model.safetensors").keys() == net.state_dict().keys()


def test_weights_and_state_come_back(tmp_path: Path) -> None:
    net, other = nn.Linear(2, 3), nn.Linear(2, 3)
    saved = save(tmp_path, 5, net, STATE)
    load_weights(saved, other)
    state = load_state(saved)
    assert torch.equal(net.weight, other.weight) and torch.equal(net.bias, other.bias)
    assert state["numbers"] == STATE["numbers"] and state["tensor"].tolist() == [0, 1, 2]
    assert state["step"] == 5


def test_tied_weights_are_written_once_and_come_back(tmp_path: Path) -> None:
    def tied() -> nn.Sequential:
        net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        net[1].weight = net[0].weight
        return net

    net, other = tied(), tied()
    load_weights(save(tmp_path, 1, net, {}), other)
    assert torch.equal(net[0].weight, other[1].weight)
    assert other[0].weight is other[1].weight


def test_last_two_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 10, 100):
        save(tmp_path, step, nn.Linear(1, 1), {})
    assert names(tmp_path) == ["step-00000010", "step-00000100"]
    assert [checkpoint.step for checkpoint in checkpoints(tmp_path)] == [10, 100]


@pytest.mark.parametrize("allowed", [0, 300, 2000])
def test_full_disk_leaves_the_previous_checkpoint(tmp_path: Path, allowed: int) -> None:
    net = nn.Linear(40, 40)
    first = save(tmp_path, 1, net, STATE)
    weight = net.weight.detach().clone()
    with torch.no_grad():
        net.weight.zero_()
    match = r"the checkpoint of step 2 could not be written .* The checkpoint of step 1 is intact\. Make room"
    with largest_file(allowed), pytest.raises(TrainingError, match=match):
        save(tmp_path, 2, net, STATE)
    assert names(tmp_path) == ["step-00000001"]
    load_weights(first, net)
    assert torch.equal(net.weight, weight) and load_state(first)["step"] == 1


@pytest.mark.parametrize("stage", ["save_model", "torch.save", "sync", "rename"])
def test_failure_at_any_stage_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    save(tmp_path, 1, nn.Linear(2, 2), STATE)

    def fail(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    target: dict[str, tuple[Any, str]] = {
        "save_model": (module, "save_model"),
        "torch.save": (torch, "save"),
        "sync": (module.new_folder.__wrapped__.__globals__["os"], "fsync"),  # type: ignore[attr-defined]
        "rename": (Path, "rename"),
    }
    with monkeypatch.context() as patch:
        patch.setattr(*target[stage], fail)
        with pytest.raises(TrainingError, match="No space left on device"):
            save(tmp_path, 2, nn.Linear(2, 2), STATE)
    assert names(tmp_path) == ["step-00000001"]
    assert save(tmp_path, 2, nn.Linear(2, 2), STATE).step == 2


def test_unfinished_folders_are_no_checkpoints_and_are_swept(tmp_path: Path) -> None:
    save(tmp_path, 1, nn.Linear(2, 2), {})
    for name in (".unfinished-step-00000002", ".discarded-step-00000000"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"half")
    (tmp_path / ".unfinished-metrics.csv").write_text("half")
    assert [checkpoint.step for checkpoint in checkpoints(tmp_path)] == [1]
    sweep(tmp_path)
    assert names(tmp_path) == ["step-00000001"]


def test_no_checkpoints_where_there_is_no_folder(tmp_path: Path) -> None:
    assert checkpoints(tmp_path / "gone") == []


class Payload:
    """Touches a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


def test_hostile_state_runs_no_code(tmp_path: Path) -> None:
    saved = save(tmp_path, 1, nn.Linear(1, 1), {})
    touched = tmp_path / "touched"
    torch.save({"revgraph": 2, "x": Payload(touched)}, saved.folder / "state.pt")
    write_checksums(saved.folder, ["model.safetensors", "state.pt"])
    with pytest.raises(DataError, match=r"state\.pt' is missing or damaged: Weights only"):
        load_state(saved)
    assert not touched.exists()


@pytest.mark.parametrize("file", ["model.safetensors", "state.pt"])
@pytest.mark.parametrize("content", [None, b"", b"garbage" * 100, "half", pickle.dumps(1, protocol=2)])
def test_damaged_file_is_named_with_the_one_before(
    tmp_path: Path, file: str, content: bytes | str | None
) -> None:
    save(tmp_path, 3, nn.Linear(9, 9), STATE)
    newest = save(tmp_path, 4, nn.Linear(9, 9), STATE)
    path = newest.folder / file
    if content is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if content == "half" else content)
    with pytest.raises(DataError, match=rf"{file}'.*step-00000004' to go on from step 3|not a state"):
        if file == "state.pt":
            load_state(newest)
        else:
            load_weights(newest, nn.Linear(9, 9))


def test_another_networks_weights_are_refused(tmp_path: Path) -> None:
    saved = save(tmp_path, 1, nn.Linear(2, 2), {})
    with pytest.raises(DataError, match="are another network's"):
        load_weights(saved, nn.Linear(2, 3))
    with pytest.raises(DataError, match="are another network's"):
        load_weights(saved, nn.Sequential(nn.Linear(2, 2)))


def test_random_states_survive_a_checkpoint(tmp_path: Path) -> None:
    import random

    import numpy as np

    saved = save(tmp_path, 1, nn.Linear(1, 1), {"random": random_states()})

    def draw() -> tuple[float, float, float, float]:
        return random.gauss(0, 1), random.random(), float(np.random.normal()), torch.rand(1).item()

    expected = draw()
    draw()
    restore_random_states(load_state(saved)["random"])
    assert draw() == expected
