"""Writing to disk so that a crash leaves the old or the new, never something in between."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

UNFINISHED = ".unfinished-"
DISCARDED = ".discarded-"


def sync(path: Path) -> None:
    """Wait until the file or folder at `path` has reached the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open folders, and journals renames by itself.
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path`, which becomes `path` by one rename when the block ends well.

    All that the block wrote is on the disk before the rename. If the block fails, or the rename, nothing is
    left of it; if the process is killed, a folder remains that `sweep` removes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.parent / f"{UNFINISHED}{path.name}"
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir()
        yield unfinished
        for file in unfinished.iterdir():
            sync(file)
        sync(unfinished)
        unfinished.rename(path)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    sync(path.parent)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, which replaces `path` when the block ends well, as in `new_folder`."""
    unfinished = path.parent / f"{UNFINISHED}{path.name}"
    try:
        yield unfinished
        sync(unfinished)
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    sync(path.parent)


def discard(folder: Path) -> None:
    """Remove `folder`: first its name, in one step, then what is in it."""
    hidden = folder.parent / f"{DISCARDED}{folder.name}"
    shutil.rmtree(hidden, ignore_errors=True)
    folder.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove from `folder` what a killed process left unfinished or half removed."""
    for prefix in (UNFINISHED, DISCARDED):
        for path in folder.glob(f"{prefix}*"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
