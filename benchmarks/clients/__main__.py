"""`python -m benchmarks.clients`: models of other libraries, traced, planned and trained, in a table.

Every client has a process of its own, on one thread, with a bound on its time and memory. Prints the table,
and writes clients.json and docs/clients.md. The exit status is 1 if a client fails that is expected to work.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from benchmarks.clients import CLIENTS
from benchmarks.clients.page import failures, page, planned_table, run_table
from benchmarks.shared import ROOT, machine, told_by, version, write_json, write_text

RESULTS = ROOT / "benchmarks" / "results" / "clients.json"
PAGE = ROOT / "docs" / "clients.md"
SECONDS_EACH = 900
MOST_BYTES = 12 * 2**30


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.clients", description=__doc__.partition("\n")[0]
    )
    names = [client.name for client in CLIENTS]
    parser.add_argument("--only", action="append", choices=names, help="a client; the files are not written")
    parser.add_argument(
        "--again", action="append", choices=names, help="run this one again, and those that are new"
    )
    parser.add_argument("--seconds", type=int, default=SECONDS_EACH, help=f"limit a client ({SECONDS_EACH})")
    parser.add_argument("--one", choices=names, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.one:
        return _alone(chosen.one)
    known: dict[str, Any] = {}
    if chosen.again:
        known = {row["client"]: row for row in json.loads(RESULTS.read_text())["clients"]}
    rows: list[dict[str, Any]] = []
    for client in CLIENTS:
        if chosen.only and client.name not in chosen.only:
            continue
        if client.name in known and client.name not in chosen.again:
            rows.append(known[client.name])
            continue
        row: dict[str, Any] = {
            "client": client.name,
            "library": client.library,
            "version": version(client.library),
            "obstacle": client.obstacle,
        }
        found, problem = told_by(["-m", "benchmarks.clients", "--one", client.name], chosen.seconds)
        for each in found:
            row.update(each)
        row["problem"] = problem
        print(json.dumps(row), file=sys.stderr, flush=True)
        rows.append(row)
        if not chosen.only:  # for what follows may be stopped
            _write(rows, known)
    print(run_table(rows), planned_table(rows), sep="\n\n")
    for line in (failed := failures(rows)):
        print(line, file=sys.stderr)
    return 1 if failed else 0


def _write(rows: list[dict[str, Any]], known: dict[str, Any]) -> None:
    """The rows, and those that are known of clients that come later, as JSON and as a page."""
    done = {row["client"]: row for row in rows}
    every = {**known, **done}
    ordered = [every[client.name] for client in CLIENTS if client.name in every]
    results = {"machine": machine(*sorted({each.library for each in CLIENTS})), "clients": ordered}
    write_json(RESULTS, results)
    write_text(PAGE, page(results))


def _alone(name: str) -> int:
    """One client, in this process: a line of JSON after each stage."""
    import torch

    from benchmarks.clients.trial import trial

    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # libraries' own; what matters of ours is in the findings
    (client,) = (each for each in CLIENTS if each.name == name)
    trial(client, lambda found: print(json.dumps(found), flush=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
