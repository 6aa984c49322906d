"""Checksums of a folder's files, by which damage to them is noticed when they are read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

CHECKSUMS = "checksums.json"
LARGEST = 64 * 1024
CHUNK = 2**20


def write_checksums(folder: Path, names: Iterable[str]) -> None:
    """Write the SHA-256 of these files in `folder` into a file beside them."""
    sums = {name: checksum(folder / name) for name in names}
    (folder / CHECKSUMS).write_text(json.dumps({"sha256": sums}, indent=1) + "\n", encoding="ascii")


def verify_checksum(path: Path) -> None:
    """Nothing, where the file is the one that was written.

    Raises:
        OSError: it cannot be read, or there are no checksums beside it.
        ValueError: the file, or the checksums, are not what was written.
    """
    listed = path.parent / CHECKSUMS
    with listed.open("rb") as file:
        text = file.read(LARGEST)
    try:
        expected = json.loads(text)["sha256"][path.name]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ValueError(f"{CHECKSUMS} beside it is damaged") from None
    if checksum(path) != expected:
        raise ValueError("its bytes are not those that were written (the SHA-256 differs)")


def checksum(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(CHUNK):
            found.update(part)
    return found.hexdigest()
