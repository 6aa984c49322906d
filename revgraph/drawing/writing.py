"""Writing a drawing to disk, so that a file is either complete or not there."""

from __future__ import annotations

import os
import threading
from pathlib import Path


def write(target: Path, content: bytes) -> None:
    """Write a file under another name beside it first; missing folders are made."""
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".unfinished-{os.getpid()}-{threading.get_ident()}-{target.name}")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(target)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
