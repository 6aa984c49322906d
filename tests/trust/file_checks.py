"""Damage to checkpoints, data files and graphs: what each check asserts, and what the damage is."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import nn
from trust.random_specs import EXAMPLE, LEAVES, paths_of, replaced
from trust.weighing import Outcome, timed, weighed

import revgraph as rg
from revgraph.training import cifar
from revgraph.training.checkpoints import Checkpoint, load_state, load_weights, restoring, save
from revgraph.training.checksums import CHECKSUMS, write_checksums
from revgraph.training.images import Data, Images
from revgraph.training.processes import Together
from revgraph.training.recipe import Recipe
from revgraph.training.trainer import Trainer

FILES = ("model.safetensors", "state.pt")
RECORDS = 3
LAYOUT = replace(
    cifar.CIFAR10,
    train=tuple(replace(file, records=RECORDS) for file in cifar.CIFAR10.train),
    test=replace(cifar.CIFAR10.test, records=RECORDS),
)


@dataclass(frozen=True, slots=True)
class Damage:
    """What happens to a file of `size` bytes: at a place of it, given as a share of the size."""

    kind: str
    place: float
    value: int

    def of(self, content: bytes) -> bytes:
        place = int(self.place * len(content))
        if self.kind == "flip":
            place = min(place, len(content) - 1)
            flipped = content[place] ^ (1 << self.value % 8)
            return content[:place] + bytes([flipped]) + content[place + 1 :]
        if self.kind == "cut":
            return content[:place]
        if self.kind == "gap":
            return content[:place] + content[place + 1 + self.value :]
        if self.kind == "zeros":
            return content[:place] + bytes(1 + self.value) + content[place + 1 + self.value :]
        return content[:place] + bytes([self.value % 256]) * (1 + self.value) + content[place:]


DAMAGES = st.builds(
    Damage,
    st.sampled_from(["flip", "flip", "flip", "cut", "gap", "zeros", "more"]),
    st.floats(0, 1),
    st.integers(0, 300),
)


class Checkpoints:
    """One whole checkpoint of a small run, to be damaged in one place at a time."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        pixels, labels = torch.rand(8, 3, 32, 32), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
        images = Images(pixels, labels)
        data = Data("made", 3, images, images, pixels.mean(0), False)
        self.net = nn.Sequential(nn.AvgPool2d(16), nn.Flatten(), nn.Linear(12, 3))
        recipe = Recipe(steps=4, batch=4, warmup=1)
        self.trainer = Trainer(self.net, data, recipe, Together(recipe))
        self.trainer.step(1)
        self.saved: Checkpoint = save(folder, 1, self.net, self.trainer.state())
        self.whole = {path.name: path.read_bytes() for path in self.saved.folder.iterdir()}

    def restore(self) -> None:
        with restoring(self.saved):
            self.trainer.restore(load_state(self.saved))
        load_weights(self.saved, self.net)

    def damaged(self, name: str, content: bytes) -> Outcome:
        """Damage by accident: anything but the bytes written is a DataError, and the net is as it was."""
        return self._refused(name, content, lambda: None)

    def forged(self, name: str, content: bytes) -> Outcome:
        """Damage with right checksums: a DataError, and the net as it was, or something well-formed."""
        return self._refused(name, content, lambda: write_checksums(self.saved.folder, FILES), forged=True)

    def _refused(
        self, name: str, content: bytes, then: Callable[[], None], *, forged: bool = False
    ) -> Outcome:
        path = self.saved.folder / name
        before = [weight.clone() for weight in self.net.state_dict().values()]
        try:
            path.write_bytes(content)
            then()
            files = {each.name: each.read_bytes() for each in self.saved.folder.iterdir()}
            outcome = (weighed if forged else timed)(self.restore)
            assert files == {each.name: each.read_bytes() for each in self.saved.folder.iterdir()}
        finally:
            for other, right in self.whole.items():
                (self.saved.folder / other).write_bytes(right)
        if outcome.kind == "done":
            harmless = content == self.whole[name] or (
                name == CHECKSUMS and json.loads(content) == json.loads(self.whole[name])
            )
            assert forged or harmless, f"{name}: the damage was not noticed"
            self.restore()
        else:
            assert outcome.kind == "DataError" or (forged and outcome.kind == "TrainingError"), outcome
            after = self.net.state_dict().values()
            assert all(map(torch.equal, before, after)), "the net was changed before the error"
        return outcome


class Cifar:
    """CIFAR-10's six files with few records, to be damaged in one place at a time."""

    def __init__(self, folder: Path) -> None:
        random = np.random.default_rng(0)
        self.folder = folder
        for file in (*LAYOUT.train, LAYOUT.test):
            records = random.integers(0, 256, (RECORDS, 3073))
            records[:, 0] %= 10
            records.astype(np.uint8).tofile(folder / file.name)
        self.path = folder / LAYOUT.test.name
        self.whole = self.path.read_bytes()

    def damaged(self, damage: Damage) -> Outcome:
        """A DataError, or where size and labels are still possible, that data; the files are not touched."""
        content = damage.of(self.whole)
        self.path.write_bytes(content)
        outcome = timed(lambda: cifar.load_cifar(self.folder, LAYOUT))
        assert self.path.read_bytes() == content
        labels = content[:: LAYOUT.record_bytes]
        possible = len(content) == len(self.whole) and max(labels) < 10
        assert outcome.kind == ("done" if possible else "DataError"), outcome
        return outcome


def graph_text() -> str:
    """A graph with every kind of node, as JSON."""
    return rg.load(EXAMPLE).graph.to_json()


Changes = list[tuple[tuple[Any, ...], Any]]


def breakages(text: str) -> st.SearchStrategy[Damage | Changes]:
    """What can become of the graph's JSON: one or two places changed, or its text damaged."""
    tree = json.loads(text)
    places = list(paths_of(tree))
    values = st.one_of(
        LEAVES.filter(lambda leaf: not isinstance(leaf, bytes)),
        st.sampled_from([2**48 - 1, 2**48, 10**400, "\ud800", "n" * 10_000, [], [[]], {}, "in0", "out9"]),
    )
    changed = st.lists(st.tuples(st.sampled_from(places), values), min_size=1, max_size=2)
    return st.one_of(changed, DAMAGES)


def broken(text: str, breakage: Damage | Changes) -> str:
    if isinstance(breakage, Damage):
        return breakage.of(text.encode()).decode("utf-8", "surrogateescape")
    return _changed(json.loads(text), breakage)


def graph_read(text: str) -> Outcome:
    """A GraphError of a readable length, or a graph that can be shown, written and planned."""
    outcome = timed(lambda: _used(text))
    assert outcome.kind in ("done", "GraphError", "PlanError"), outcome
    assert len(outcome.text) < 1000, outcome.text[:2000]
    return outcome


def _used(text: str) -> None:
    graph = rg.Graph.from_json(text)
    assert rg.Graph.from_json(graph.to_json()) == graph
    assert str(graph)
    rg.plan(graph)


def _changed(tree: Any, changes: Changes) -> str:
    for path, value in changes:
        try:
            tree = replaced(tree, path, value)
        except (KeyError, IndexError, TypeError):
            continue  # the first change took away the second one's place
    return json.dumps(tree)
