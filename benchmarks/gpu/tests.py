"""The trust tests' variants on a device, counted by promise; the folder `tests` is on the path."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from trust.page import Results
from trust.promises import PROMISES, names

TESTS = Path(__file__).parents[2] / "tests"
# How a file says that its tests run on any device.
FIXTURE = ('usefixtures("device")', "device: torch.device")


def files() -> list[str]:
    """The files behind promises whose tests run on any device."""
    paths = list(dict.fromkeys(name.partition("::")[0] for name in names()))
    texts = {path: (TESTS / path).read_text(encoding="utf-8") for path in paths}
    return [path for path, text in texts.items() if any(each in text for each in FIXTURE)]


def left_out(paths: Sequence[str]) -> list[str]:
    """Those of the files that import hypothesis, where it is not installed."""
    if find_spec("hypothesis") is not None:
        return []
    return [path for path in paths if "hypothesis" in (TESTS / path).read_text(encoding="utf-8")]


def outcomes(device: str, *options: str) -> dict[str, Any]:
    """How the tests ended: in `total`, by `promises` (those of which a test ran), and which `failed`.

    `left_out` are files that need a package which is not here, and `status` is pytest's.
    """
    results = Results()
    paths = files()
    without = left_out(paths)
    chosen = [f"tests/{path}" for path in paths if path not in without]
    marked = "cuda" if device == "cuda" else "not cuda"
    # Warnings of drivers and libraries on a machine that nobody has seen are not the tests' business.
    quiet = ("-q", "-W", "default", "-p", "no:cacheprovider", "-p", "no:xdist")
    status = pytest.main([*quiet, "-m", marked, *options, *chosen], plugins=[results])
    promises = {each.text: dict(results.of(each.tests)) for each in PROMISES}
    together: Counter[str] = sum(results.outcomes.values(), Counter())
    return {
        "total": dict(together),
        "promises": {text: counts for text, counts in promises.items() if counts},
        "failed": [name for name, counts in results.outcomes.items() if counts["failed"]],
        "left_out": without,
        "status": int(status),
    }
