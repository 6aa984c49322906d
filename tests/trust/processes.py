"""Several processes of one script, each with its rank and a file to find the others by."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import revgraph

ROOT = Path(revgraph.__file__).parents[1]


def environment(**more: str) -> dict[str, str]:
    """The environment of a process that imports this revgraph and computes on one thread."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests"))),
        "OMP_NUM_THREADS": "1",
        **more,
    }


def run_together(script: Path, folder: Path, processes: int = 2, timeout: float = 90) -> None:
    """Run `script FOLDER RANK PROCESSES` in as many processes; all must end well, and in time."""
    commands = [
        [sys.executable, "-W", "error", str(script), str(folder), str(rank), str(processes)]
        for rank in range(processes)
    ]
    logs = [folder / f"log-{rank}" for rank in range(processes)]
    running = [_start(command, log) for command, log in zip(commands, logs, strict=True)]
    deadline = time.monotonic() + timeout
    try:
        while any(each.poll() is None for each in running) and time.monotonic() < deadline:
            if any(each.returncode for each in running):
                break
            time.sleep(0.1)
        # The others may be about to say why.
        time.sleep(0.5 if any(each.returncode for each in running) else 0)
    finally:
        for each in running:
            if each.poll() is None:
                each.kill()
            each.wait()
    statuses = [each.returncode for each in running]
    assert statuses == [0] * processes, "\n".join((str(statuses), *(log.read_text() for log in logs)))


def _start(command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as file:
        return subprocess.Popen(command, env=environment(), stdout=file, stderr=subprocess.STDOUT)
