"""Every hostile file, loaded and given to the command line, in a process with limits: a line of JSON each.

`spec_worker.py FOLDER` works inside that folder.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from trust.hostile_files import FILES, PLACES
from trust.weighing import weighed
from typer.testing import CliRunner

import revgraph as rg
from revgraph.cli.app import app

ADDRESSES = 4 * 2**30


def limited() -> None:
    """From here on the process may take `ADDRESSES` more bytes of addresses, and two minutes to compute."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ADDRESSES,) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (120, 120))


def tell(name: str, path: str) -> None:
    print(json.dumps({"name": name, **asdict(weighed(lambda: rg.load(path)))}))
    for command in ("show", "plan"):
        result = CliRunner().invoke(app, [command, path], prog_name="revgraph")
        print(
            json.dumps(
                {
                    "name": f"{command} {name}",
                    "status": result.exit_code,
                    "out": result.stdout,
                    "err": result.stderr,
                    "raised": None
                    if isinstance(result.exception, (SystemExit, type(None)))
                    else repr(result.exception),
                }
            )
        )


def work(folder: str) -> None:
    os.chdir(folder)
    torch.set_num_threads(1)
    # What is imported and built at the first use is no fault of the first case.
    rg.load("inputs: {x: [3, 64, 64]}\nlayers: [a: {Conv2d: [3, 3, 1]}]\n", batch=100)
    limited()
    for name, content in FILES.items():
        path = Path("net.yaml")
        path.write_bytes(content)
        tell(name, str(path))
        path.unlink()
    for name, make in PLACES.items():
        path = Path("place.yaml")
        make(path)
        tell(name, str(path))
        if path.is_dir():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)
    tell("path with a zero byte", "a\0b.yaml")
    tell("path too long", "a" * 5000 + ".yaml")
    tell("path of a file inside a file", "/dev/null/a.yaml")
    print(json.dumps({"name": "left behind", "files": os.listdir()}))


if __name__ == "__main__":
    work(sys.argv[1])
