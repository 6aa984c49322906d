"""Several processes at once, each with an end in sight."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import revgraph

ROOT = Path(revgraph.__file__).parents[1]
PYTHON = (sys.executable, "-W", "error")


@dataclass(frozen=True, slots=True)
class Ended:
    """How a process ended, and what it wrote to both of its streams."""

    status: int
    text: str


def together(
    commands: Sequence[Sequence[object]],
    folder: Path,
    environments: Sequence[Mapping[str, str]] | None = None,
    timeout: float = 900,
) -> list[Ended]:
    """Run all commands at once, with this revgraph, on one thread each; what is late is killed."""
    environments = environments or [{}] * len(commands)
    logs = [folder / f"log-{index}" for index in range(len(commands))]
    running = [
        _start(command, own, log) for command, own, log in zip(commands, environments, logs, strict=True)
    ]
    deadline = time.monotonic() + timeout
    try:
        for each in running:
            each.wait(max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        pass
    finally:
        for each in running:
            if each.poll() is None:
                each.kill()
                each.wait()
    return [Ended(each.returncode, log.read_text()) for each, log in zip(running, logs, strict=True)]


def ranks(count: int) -> list[dict[str, str]]:
    """The environments of `count` processes on this machine that meet at a port that is free."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    sizes = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    return [{**meeting, **sizes, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


def _start(command: Sequence[object], own: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    paths = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **own}
    with log.open("wb") as file:
        words = [str(word) for word in command]
        return subprocess.Popen(words, env=environment, stdout=file, stderr=subprocess.STDOUT)
