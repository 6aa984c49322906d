"""Checkpoints, data files and graphs that are damaged, foreign or forged: a typed error, nothing changed."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from trust.file_checks import (
    DAMAGES,
    FILES,
    LAYOUT,
    Checkpoints,
    Cifar,
    breakages,
    broken,
    graph_read,
    graph_text,
)
from trust.fuzzing import fuzzed

import revgraph as rg
from revgraph.errors import DataError, GraphError
from revgraph.training import cifar


@pytest.fixture(autouse=True)
def single_thread() -> Iterator[None]:
    """Networks this small are faster so, above all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "checkpoints")


@pytest.mark.parametrize("name", [*FILES, "checksums.json"])
def test_any_damage_to_a_checkpoint_is_noticed_and_the_net_is_as_it_was(
    checkpoint: Checkpoints, name: str
) -> None:
    whole = checkpoint.whole[name]
    tally = fuzzed(lambda damage: checkpoint.damaged(name, damage.of(whole)), DAMAGES, 60)
    assert tally.kinds["DataError"] >= 40


@pytest.mark.parametrize("name", FILES)
def test_forged_checkpoints_are_refused_or_well_formed(checkpoint: Checkpoints, name: str) -> None:
    whole = checkpoint.whole[name]
    tally = fuzzed(lambda damage: checkpoint.forged(name, damage.of(whole)), DAMAGES, 80)
    assert tally.kinds["DataError"] >= 10


class Touching:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


def saved_by_torch(thing: Any, **options: Any) -> bytes:
    written = io.BytesIO()
    torch.save(thing, written, **options)
    return written.getvalue()


def compressed(content: bytes) -> bytes:
    """The same zip archive with its parts deflated, so that few bytes become many."""
    written = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(content)) as source,
        zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for part in source.infolist():
            target.writestr(part.filename, source.read(part))
    return written.getvalue()


@pytest.mark.parametrize("name", FILES)
def test_forged_checkpoints_run_no_code_and_take_no_memory(
    checkpoint: Checkpoints, tmp_path: Path, name: str
) -> None:
    touched = tmp_path / "touched"
    bomb = Touching(touched)
    forgeries = {
        "pickle": pickle.dumps(bomb),
        "old pickle": pickle.dumps(bomb, protocol=0),
        "torch's pickle": saved_by_torch(bomb),
        "torch's old pickle": saved_by_torch(bomb, _use_new_zipfile_serialization=False),
        "inside a state": saved_by_torch({"revgraph": 2, "step": 1, "recipe": bomb}),
        "zip bomb": compressed(saved_by_torch({"revgraph": 2, "step": 1, "x": torch.zeros(10**8 // 4)})),
        "another's state": saved_by_torch({"model": {"weight": torch.zeros(3)}}),
        "state of another step": saved_by_torch({"revgraph": 2, "step": 7}),
        "empty state": saved_by_torch({"revgraph": 2, "step": 1}),
        "list": saved_by_torch([1, 2]),
        "vast header": (2**62).to_bytes(8, "little") + b"{}",
        "vast tensor": _safetensors('{"a":{"dtype":"F32","shape":[99999999999],"data_offsets":[0,4]}}'),
        "tensor out of bounds": _safetensors('{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4000000]}}'),
        "other names": _safetensors('{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'),
    }
    for content in forgeries.values():
        outcome = checkpoint.forged(name, content)
        assert outcome.kind == "DataError" and name in outcome.text
        assert outcome.seconds < 1 and outcome.kilobytes < 50_000, outcome
    assert not touched.exists()


def _safetensors(header: str) -> bytes:
    return len(header).to_bytes(8, "little") + header.encode() + bytes(4)


def test_missing_files_of_a_checkpoint_are_named(checkpoint: Checkpoints) -> None:
    for name in checkpoint.whole:
        path = checkpoint.saved.folder / name
        path.rename(path.with_suffix(".away"))
        with pytest.raises(DataError, match=f"missing or damaged.*{name}|{name}.*missing or damaged"):
            checkpoint.restore()
        path.with_suffix(".away").rename(path)
    checkpoint.restore()


def test_damaged_cifar_files_are_refused_or_still_possible(tmp_path: Path) -> None:
    tally = fuzzed(Cifar(tmp_path).damaged, DAMAGES, 150)
    assert tally.kinds["DataError"] and tally.kinds["done"]


def test_giant_cifar_file_takes_no_memory(tmp_path: Path) -> None:
    made = Cifar(tmp_path)
    with made.path.open("r+b") as file:
        file.truncate(2**40)
    with pytest.raises(DataError, match=r"is long: 1,099,511,627,776 bytes"):
        cifar.load_cifar(tmp_path, LAYOUT)


@pytest.mark.slow
def test_broken_graphs_are_refused_or_can_be_planned() -> None:
    text = graph_text()
    tally = fuzzed(lambda breakage: graph_read(broken(text, breakage)), breakages(text), 120)
    assert tally.kinds["GraphError"] >= 60
    assert rg.plan(rg.Graph.from_json(text)).decisions


@pytest.mark.parametrize("text", ["[" * 200_000, '{"a":' * 100_000, "9" * 100_000, "NaN", "\ud800"])
def test_vast_and_odd_json_is_no_graph(text: str) -> None:
    with pytest.raises(GraphError):
        rg.Graph.from_json(text)
