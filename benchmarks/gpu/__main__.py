"""`python -m benchmarks.gpu` (`make gpu`): promises, steps and limits on an NVIDIA GPU.

Writes docs/gpu.md, results/gpu.json and results/gpu.md. The exit status is 0, 1 if a test or a row failed,
and 2 where something is missing (a GPU, a package); then nothing is written.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.needed import missing, refusal

HERE = "benchmarks.gpu"
ROOT = Path(__file__).parents[2]
PARTS = ("tests", "steps", "limits")
LIMIT = 16 * 2**30


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts, and write after each row; the exit status is 0, 1 or 2."""
    parser = argparse.ArgumentParser(prog=f"python -m {HERE}", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", action="append", choices=PARTS, help="a part (all); may be given again")
    parser.add_argument("--network", action="append", help="of steps and limits (all); may be given again")
    parser.add_argument("--eager", action="store_true", help="no compiled steps, which need a compiler")
    parser.add_argument("--rounds", type=int, default=20, help="timed steps of each way (20)")
    parser.add_argument("--limit", type=int, default=LIMIT, help="bytes to fit in (16 GiB)")
    parser.add_argument("--seconds", type=int, default=3600, help="before a row is given up (3,600)")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="folder of gpu.md (docs)")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the tables"
    )
    parser.add_argument(
        "--not-run", action="store_true", help="write the page of what was never run, and no more"
    )
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help=argparse.SUPPRESS)
    parser.add_argument("--row", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    lacking = missing("cpu" if chosen.not_run else chosen.device)
    if lacking:
        print(refusal(lacking), file=sys.stderr)
        return 2
    if chosen.row:
        return row(chosen.row, chosen.device, chosen.rounds, chosen.limit)
    if chosen.not_run:
        write(None, chosen)
        return 0
    return run(chosen)


def run(chosen: Any) -> int:
    """All parts that are chosen, added to what was measured on the same machine before."""
    from benchmarks.gpu.networks import NAMES
    from benchmarks.gpu.rows import OF, WAYS

    parts, networks = chosen.only or PARTS, chosen.network or NAMES
    results = start(chosen.out / "gpu.json", conditions(chosen.device))
    if "tests" in parts:
        told, problem = asked(chosen, "tests")
        results["tests"] = {**_joined(told), **({"problem": problem} if problem else {})}
        write(results, chosen)
    for name in networks if "steps" in parts else ():
        told, problem = asked(chosen, "steps", name, *(["--eager"] if chosen.eager else []))
        of_all = _joined([each for each in told if "way" not in each]) or {"title": name}
        found = {**of_all, "rows": [each for each in told if "way" in each], "problem": problem}
        results.setdefault("steps", {})[name] = found
        write(results, chosen)
    for key in (
        [(name, of, way) for name in networks for of in OF for way in WAYS] if "limits" in parts else ()
    ):
        told, problem = asked(chosen, "limits", *key)
        found = {**dict(zip(("network", "of", "way"), key, strict=True)), **_joined(told)}
        results.setdefault("limits", {})[", ".join(key)] = {
            **({"problem": problem} if problem else {}),
            **found,
        }
        write(results, chosen)
    return 1 if problems(results) else 0


def row(what: Sequence[str], device: str, rounds: int, limit: int) -> int:
    """What a process of its own does; it tells in lines of JSON."""
    part, *names = what
    if part == "tests":
        sys.path.insert(0, str(ROOT / "tests"))
        # Before anything runs there: without it, products of matrices need not repeat themselves.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        from benchmarks.gpu.tests import outcomes

        tell(outcomes(device, *names))
        return 0
    from benchmarks.gpu import rows

    if part == "steps":
        rows.steps(names[0], device, rounds, "--eager" not in names, tell)
    else:
        rows.limits(names[0], names[1], names[2], limit, tell)
    return 0


def tell(found: dict[str, Any]) -> None:
    print(json.dumps(found), flush=True)


def asked(chosen: Any, *what: str) -> tuple[list[dict[str, Any]], str | None]:
    """What a process for a row told, and why it ended early, or None."""
    from benchmarks.shared import told_by

    print(", ".join(what), file=sys.stderr, flush=True)
    options = ["--device", chosen.device, "--rounds", str(chosen.rounds), "--limit", str(chosen.limit)]
    return told_by(["-m", HERE, *options, "--row", *what], chosen.seconds)


def start(path: Path, here: dict[str, Any]) -> dict[str, Any]:
    """What was measured before, if it was in the same conditions."""
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    return (
        before if before is not None and before.get("machine") == here else {"state": "run", "machine": here}
    )


def conditions(device: str) -> dict[str, Any]:
    """The machine, its versions, and its GPU."""
    from benchmarks.shared import machine

    return {**machine("triton", "pytest"), "gpu": gpu() if device == "cuda" else no_gpu()}


def gpu() -> dict[str, Any]:
    """The GPU's name and bytes, its driver, and the versions that torch has been built for."""
    import torch

    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
        driver = told.splitlines()[0].strip()
    except (OSError, subprocess.SubprocessError, IndexError):
        driver = "unknown"
    found = torch.cuda.get_device_properties(0)
    return {
        "name": found.name,
        "bytes": found.total_memory,
        "driver": driver,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def no_gpu() -> dict[str, Any]:
    return {"name": "no GPU", "bytes": 0, "driver": "none", "cuda": "none", "cudnn": "none"}


def problems(results: dict[str, Any]) -> list[str]:
    """What failed: tests, ways, processes."""
    tests = results.get("tests", {})
    found = [*tests.get("failed", []), *([tests["problem"]] if "problem" in tests else [])]
    for each in results.get("steps", {}).values():
        found += [row["problem"] for row in each["rows"] if "problem" in row]
        found += [each["problem"]] if each.get("problem") else []
    return found + [each["problem"] for each in results.get("limits", {}).values() if each.get("problem")]


def write(results: dict[str, Any] | None, chosen: Any) -> None:
    """The page, the tables and the figures, each whole or not at all."""
    from benchmarks.gpu.page import page, tables
    from benchmarks.shared import write_json, write_text

    write_json(chosen.out / "gpu.json", {"state": "not run"} if results is None else results)
    write_text(chosen.out / "gpu.md", tables(results))
    write_text(chosen.docs / "gpu.md", page(results, chosen.limit))


def _joined(told: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {key: value for each in told for key, value in each.items()}


if __name__ == "__main__":
    sys.exit(main())
