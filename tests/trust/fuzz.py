"""`make fuzz`: every kind of hostile input and fault; prints a table, or stops at what went wrong.

`fuzz.py specs files faults` does all three parts, which is what it does without a word, or those named.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from trust.disk_checks import (
    THINGS,
    at_line,
    full_at,
    interrupt,
    killed_at_line,
    largest_file,
    saved_in_vain,
    until_spared,
)
from trust.file_checks import DAMAGES, FILES, Checkpoints, Cifar, breakages, broken, graph_read, graph_text
from trust.fuzzing import fuzzed
from trust.hostile_files import FILES as SPEC_FILES
from trust.random_specs import MAPPINGS, misspelt, spoilt, valid
from trust.spec_checks import gradients_agree, refused_or_built, wrong_types_everywhere
from trust.weighing import Outcome, Tally

HEAD = ("tried", "cases", "refused", "well-formed", "slowest, s", "most memory, MiB")


def main() -> None:
    torch.set_num_threads(1)
    began = time.perf_counter()
    print("| " + " | ".join(HEAD) + " |\n|" + "---|" * len(HEAD), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        parts = {
            "specs": specifications(),
            "files": files(Path(folder)),
            "faults": faults(Path(folder)),
        }
        for what, tally in chain.from_iterable(parts[name] for name in sys.argv[1:] or parts):
            refused = tally.cases - tally.kinds["done"] - tally.kinds["struck"]
            cells = (what, f"{tally.cases:,}", f"{refused:,}", f"{tally.kinds['done']:,}")
            costs = (
                f"{tally.seconds:.2f}" if tally.seconds else "",
                f"{tally.kilobytes / 1024:.0f}" if tally.kilobytes else "",
            )
            if tally.kinds["struck"]:
                cells, costs = (what, f"{tally.cases:,}", "", ""), ("", "")
            print("| " + " | ".join((*cells, *costs)) + " |", flush=True)
    print(f"\n{time.perf_counter() - began:.0f} seconds in all, and nothing went wrong.")


def specifications() -> Iterator[tuple[str, Tally]]:
    """10,000 specifications and some."""
    yield "hostile spec files, each with load, show and plan", corpus()
    yield "a spec with each wrong type at each place", wrong_types_everywhere()
    yield "random mappings as specs", fuzzed(refused_or_built, MAPPINGS, 2_400)
    yield "a spec with pieces cut out, put in or doubled", fuzzed(refused_or_built, misspelt(), 3_000)
    yield "valid specs with a place spoilt", fuzzed(refused_or_built, spoilt(), 3_000)
    yield "valid specs, gradients against plain autograd", fuzzed(agreed, valid(), 100)


def corpus() -> Tally:
    """The hostile files, in a process with limits."""
    tally = Tally()
    worker = str(Path(__file__).with_name("spec_worker.py"))
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, worker, folder], stdout=subprocess.PIPE, text=True, check=True, env=os.environ
        )
    *found, left = map(json.loads, done.stdout.splitlines())
    assert left["files"] == []
    for each in found:
        if "kind" in each:
            assert each["kind"] == "SpecError", each
            tally.add(Outcome(each["kind"], each["text"], each["seconds"], each["kilobytes"]))
        else:
            assert each["raised"] is None and "Traceback" not in each["err"], each
    assert tally.cases >= len(SPEC_FILES)
    return tally


def agreed(spec: Any) -> Outcome:
    gradients_agree(spec, 0)
    return Outcome("done", "", 0.0, 0)


def files(folder: Path) -> Iterator[tuple[str, Tally]]:
    """Damaged and forged files."""
    saved = Checkpoints(folder / "checkpoints")
    for name, content in saved.whole.items():

        def damaged(damage: Any, name: str = name, content: bytes = content) -> Outcome:
            return saved.damaged(name, damage.of(content))

        yield f"{name} of a checkpoint, damaged", fuzzed(damaged, DAMAGES, 500)
    for name in FILES:

        def forged(damage: Any, name: str = name) -> Outcome:
            return saved.forged(name, damage.of(saved.whole[name]))

        yield f"{name}, damaged and given right checksums", fuzzed(forged, DAMAGES, 500)
    (folder / "cifar").mkdir()
    yield "a CIFAR-10 file, damaged", fuzzed(Cifar(folder / "cifar").damaged, DAMAGES, 1_000)
    text = graph_text()
    yield (
        "a graph's JSON, changed or damaged",
        fuzzed(lambda breakage: graph_read(broken(text, breakage)), breakages(text), 1_000),
    )


def faults(folder: Path) -> Iterator[tuple[str, Tally]]:
    """A full disk, Ctrl-C and kills while something is saved."""
    made = 0

    def begun(name: str) -> Path:
        nonlocal made
        made += 1
        place = folder / f"{name}-{made}"
        place.mkdir()
        THINGS[name].begin(place)
        return place

    for name, thing in THINGS.items():
        strikes: dict[str, Callable[[int], bool]] = {
            "disk full at each call": lambda at, name=name, thing=thing: saved_in_vain(
                thing, begun(name), lambda: full_at(at)
            ),
            "disk full after each 25 bytes": lambda at, name=name, thing=thing: (
                saved_in_vain(thing, begun(name), lambda: largest_file(25 * at - 25)) and at < 200
            ),
            "Ctrl-C at each line": lambda at, name=name, thing=thing: saved_in_vain(
                thing, begun(name), lambda: at_line(at, interrupt)
            ),
            "kill -9 at each line": lambda at, name=name, thing=thing: killed_at_line(thing, begun(name), at),
        }
        for what, strike in strikes.items():
            tally = Tally()
            tally.kinds["struck"] = until_spared(strike)
            yield f"{name}: {what} of saving", tally


if __name__ == "__main__":
    main()
