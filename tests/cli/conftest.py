"""Commands run inside this process, and a network small enough to train in a moment."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from revgraph.cli.app import app

TINY = """
name: tiny
parameters: {classes: 10, width: 2}
inputs: {image: [3, 32, 32]}
layers:
  - small: {AvgPool2d: 8}
  - stem: {Conv2d: {in_channels: 3, out_channels: 4, kernel_size: 1}}
  - streams: {Split: 2}
  - block: {Additive: {f: {Conv2d: [2, 2, 1]}, g: {Conv2d: [2, 2, 1]}}, repeat: 2}
  - joined: Concatenate
  - flat: Flatten
  - head: {Linear: {in_features: 64, out_features: $classes}}
"""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command wrote, and its exit status."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Answer]


@pytest.fixture(autouse=True)
def single_thread() -> Iterator[None]:
    """Networks this small are faster so, above all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def revgraph() -> Run:
    """Runs a command: `revgraph("show", "revnet-38")`."""

    def run(*arguments: object) -> Answer:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="revgraph")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Answer(result.exit_code, result.stdout, result.stderr)

    return run


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """The YAML file of a network with four couplings."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path
