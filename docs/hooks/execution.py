"""Runs tutorials, as the notebooks that readers download: in a process each, and once for one content."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from cells import cells
from filelock import FileLock
from notebooks import notebook

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CACHE = ROOT / ".cache" / "tutorials"
LIBRARIES = ("torch", "matplotlib", "scikit-learn")
LONGEST = 900.0


class TutorialError(Exception):
    """A tutorial does not run; the text names the script, the cell and the line."""


@dataclass(frozen=True, slots=True)
class Output:
    """What a cell, by its index, printed; and its pictures: a file name and a text, SVG or HTML, of each."""

    cell: int
    printed: str
    pictures: tuple[tuple[str, str], ...]


def run_all(scripts: Sequence[Path], cache: Path = CACHE) -> list[list[Output]]:
    """What the scripts' cells did, as many scripts at a time as there are processors."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return list(pool.map(lambda script: run(script, cache), scripts))


def run(script: Path, cache: Path = CACHE) -> list[Output]:
    """What the script's cells of code did; from the cache where script, package and libraries are the same.

    Raises:
        TutorialError: a cell fails, warns, or takes too long.
    """
    cache.mkdir(parents=True, exist_ok=True)
    entry = cache / f"{script.stem}-{_key(script)}.json"
    with FileLock(cache / f"{script.stem}.lock"):
        if not entry.exists():
            outputs = _execute(script)
            unfinished = entry.with_suffix(".unfinished")
            unfinished.write_text(json.dumps([asdict(output) for output in outputs]), encoding="utf-8")
            for old in cache.glob(f"{script.stem}-*.json"):
                old.unlink()
            unfinished.replace(entry)
        found = json.loads(entry.read_text(encoding="utf-8"))
    return [Output(each["cell"], each["printed"], tuple(map(tuple, each["pictures"]))) for each in found]


def _key(script: Path) -> str:
    """A digest of all that a script's output depends on."""
    package = ROOT / "revgraph"
    sources = [
        script,
        *sorted(each for each in script.parent.glob("*.py") if not each.name[0].isdigit()),
        *sorted(HERE.glob("*.py")),
        *sorted(each for each in package.rglob("*") if each.suffix in (".py", ".yaml", ".js", ".css")),
    ]
    digest = hashlib.sha256(" ".join((sys.version, *map(version, LIBRARIES))).encode())
    for source in sources:
        digest.update(f"{source.name} {hashlib.sha256(source.read_bytes()).hexdigest()}".encode())
    return digest.hexdigest()[:16]


def _execute(script: Path) -> list[Output]:
    script = script.resolve()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pictures, empty, result = folder / "pictures", folder / "empty", folder / "result.json"
        pictures.mkdir()
        empty.mkdir()
        source = folder / f"{script.stem}.ipynb"
        source.write_text(json.dumps(notebook(script)), encoding="utf-8")
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "PYTHONIOENCODING": "utf-8",
            "OMP_NUM_THREADS": "1",
            "MPLBACKEND": "agg",
        }
        command = [sys.executable, str(HERE / "run_cells.py"), str(source), str(pictures), str(result)]
        try:
            done = subprocess.run(
                command, cwd=empty, env=environment, capture_output=True, text=True, timeout=LONGEST
            )
        except subprocess.TimeoutExpired as error:
            raise TutorialError(f"{script.name}: did not end within {LONGEST:.0f} seconds") from error
        if not result.exists():
            raise TutorialError(f"{script.name}: did not run:\n{done.stderr}")
        found = json.loads(result.read_text(encoding="utf-8"))
        if "failed" in found:
            raise TutorialError(f"{script.name}: {_where(script, found)}\n{done.stderr}")
        return [
            Output(
                _index(each["cell"]),
                each["printed"],
                tuple((name, (pictures / name).read_text(encoding="utf-8")) for name in each["pictures"]),
            )
            for each in found["cells"]
            if each["cell"].startswith("cell-")
        ]


def _index(name: str) -> int:
    """A notebook's cell in its script."""
    return int(name.removeprefix("cell-"))


def _where(script: Path, found: dict[str, str]) -> str:
    if not found["failed"].startswith("cell-"):
        return f"the notebook's cell {found['failed']!r} fails: {found['error']}"
    number = _index(found["failed"])
    line = cells(script.read_text(encoding="utf-8"))[number].line
    return f"cell {number + 1}, from line {line}, fails: {found['error']}"
