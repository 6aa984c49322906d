"""A full disk, Ctrl-C or a kill while something is saved loses nothing that was saved before."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from trust.disk_checks import (
    SPEC,
    THINGS,
    at_line,
    full_at,
    interrupt,
    killed_at_line,
    largest_file,
    saved_in_vain,
    until_spared,
)

import revgraph as rg

linux = pytest.mark.skipif(sys.platform != "linux", reason="limits, /dev/full and tmpfs are Linux's")


@pytest.fixture(autouse=True)
def single_thread() -> Iterator[None]:
    """Networks this small are faster so, above all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Any]:
    """Makes a new folder with something saved in it."""
    numbers = count()

    def make(name: str) -> Path:
        folder = tmp_path / str(next(numbers))
        folder.mkdir()
        THINGS[name].begin(folder)
        return folder

    yield make


@pytest.mark.parametrize(("name", "least"), [("checkpoint", 5), ("metrics", 4), ("drawing", 3), ("plan", 3)])
def test_full_disk_at_any_call_loses_nothing(place: Any, name: str, least: int) -> None:
    struck = until_spared(lambda at: saved_in_vain(THINGS[name], place(name), lambda: full_at(at)))
    assert struck >= least


@linux
@pytest.mark.parametrize("name", THINGS)
def test_full_disk_after_any_number_of_bytes_loses_nothing(place: Any, name: str) -> None:
    for size in (0, 1, 60, 150, 400, 1000, 2500, 3800):
        folder = place(name)
        saved_in_vain(THINGS[name], folder, lambda size=size: largest_file(size))


@pytest.mark.parametrize(("name", "each"), [("checkpoint", 6), ("metrics", 6), ("drawing", 1), ("plan", 1)])
def test_ctrl_c_at_any_line_loses_nothing(place: Any, name: str, each: int) -> None:
    struck = until_spared(
        lambda at: saved_in_vain(THINGS[name], place(name), lambda: at_line(at, interrupt)), each
    )
    assert struck >= 5


@pytest.mark.slow
@linux
@pytest.mark.parametrize(("name", "each"), [("checkpoint", 6), ("metrics", 12), ("drawing", 1), ("plan", 1)])
def test_kill_at_any_line_loses_nothing(place: Any, name: str, each: int) -> None:
    assert until_spared(lambda at: killed_at_line(THINGS[name], place(name), at), each) >= 5


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)]
    if sys.platform != "linux" or os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("name", THINGS)
def test_really_full_disk_loses_nothing(small_disk: Path, name: str) -> None:
    THINGS[name].begin(small_disk)
    for ballast in range(64, 0, -4):
        filler = small_disk / "filler"
        with suppress(OSError):  # as much as there is room for
            filler.write_bytes(bytes(ballast * 1024))
        try:
            THINGS[name].save(small_disk)
            saved = True
        except (rg.RevgraphError, OSError):
            saved = False
        filler.unlink()
        assert not list(small_disk.rglob(".*"))
        THINGS[name].intact(small_disk)
        if saved:
            break
    assert saved


@pytest.mark.slow
@linux
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", [("show",), ("plan", "--json")])
def test_output_to_a_full_disk_is_one_message(
    tmp_path: Path, command: tuple[str, ...], unbuffered: str
) -> None:
    path = tmp_path / "net.yaml"
    path.write_text(SPEC)
    root = Path(rg.__file__).parents[1]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-m", "revgraph", command[0], str(path), *command[1:]],
            env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=600,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert "No space left on device" in done.stderr
