"""Saving while the disk is full or the process is stopped: each thing that is saved, and each fault."""

from __future__ import annotations

import builtins
import errno
import io
import os
import resource
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import torch
from torch import nn

import revgraph as rg
from revgraph.cli import plan_files
from revgraph.errors import RevgraphError
from revgraph.training import checkpoints, checksums, durable
from revgraph.training import metrics as rows_module
from revgraph.training.checkpoints import load_state, load_weights, save
from revgraph.training.durable import sweep
from revgraph.training.metrics import Row, metrics, read_rows

WATCHED = {
    module.__file__ for module in (checkpoints, checksums, durable, rows_module, rg.drawing, plan_files)
}
SPEC = "inputs: {x: [4]}\nlayers: [a: {Linear: [4, 4]}]\n"


@dataclass(frozen=True, slots=True)
class Thing:
    """Something that is saved: `begin` saves an earlier one, `save` the next one in its place.

    `intact` asserts that the earlier one is whole still, or else the next one.
    """

    begin: Callable[[Path], None]
    save: Callable[[Path], None]
    intact: Callable[[Path], None]


def _net(value: float) -> nn.Module:
    net = nn.Linear(30, 30)
    with torch.no_grad():
        net.weight.fill_(value)
        net.bias.fill_(value)
    return net


def _save_step(folder: Path, step: int) -> None:
    save(folder, step, _net(step), {"numbers": list(range(200))})


def _begin_checkpoints(folder: Path) -> None:
    for step in (1, 2):
        _save_step(folder, step)


def _intact_checkpoints(folder: Path) -> None:
    found = checkpoints.checkpoints(folder)
    assert [each.step for each in found] in ([1, 2], [2, 3], [1, 2, 3])
    for each in found:
        net = _net(0.0)
        load_weights(each, net)
        assert (net.weight == each.step).all() and load_state(each)["numbers"] == list(range(200))


def _row(step: int) -> Row:
    return Row(step, step / 2, 0.1, 0.5, 0.1, 100.0, 1.5, None, None)


def _write_rows(folder: Path, after: int, last: int) -> None:
    with metrics(folder, after, tensorboard=False) as rows:
        for step in range(after + 1, last + 1):
            rows.write(_row(step))
        rows.sync()


def _intact_rows(folder: Path) -> None:
    # Rows up to the checkpoint of step 3 are there in any case; what comes after is made anew.
    found = read_rows(folder)
    assert [row.step for row in found] == list(range(1, len(found) + 1)) and 3 <= len(found) <= 8
    assert found == [_row(row.step) for row in found]


def _intact_drawing(folder: Path) -> None:
    assert (folder / "plan.dot").read_text() in _DRAWINGS


_GRAPHS = [rg.load(SPEC, batch=batch).graph for batch in (2, 3)]
_DRAWINGS: list[str] = []


def _begin_drawing(folder: Path) -> None:
    if not _DRAWINGS:
        _DRAWINGS.extend(rg.draw(graph, folder / "plan.dot").read_text() for graph in _GRAPHS)
    rg.draw(_GRAPHS[0], folder / "plan.dot")


def _save_drawing(folder: Path) -> None:
    rg.draw(_GRAPHS[1], folder / "plan.dot")


_PLANS = [rg.keep_all(graph) for graph in _GRAPHS]


def _intact_plan(folder: Path) -> None:
    assert rg.Plan.from_json((folder / "plan.json").read_text()) in _PLANS


THINGS = {
    "checkpoint": Thing(_begin_checkpoints, lambda folder: _save_step(folder, 3), _intact_checkpoints),
    "metrics": Thing(
        lambda folder: _write_rows(folder, 0, 5), lambda folder: _write_rows(folder, 3, 8), _intact_rows
    ),
    "drawing": Thing(_begin_drawing, _save_drawing, _intact_drawing),
    "plan": Thing(
        lambda folder: plan_files.save_plan(_PLANS[0], folder / "plan.json"),
        lambda folder: plan_files.save_plan(_PLANS[1], folder / "plan.json"),
        _intact_plan,
    ),
}


def saved_in_vain(thing: Thing, folder: Path, fault: Callable[[], Any]) -> bool:
    """Whether the fault struck; asserts that the earlier is whole then, and that nothing unfinished is left.

    `fault` makes a context that yields a list, which holds something once it has struck. An error must be
    revgraph's own or the system's OSError.
    """
    struck: list[str] = []
    try:
        with fault() as struck:
            thing.save(folder)
    except (RevgraphError, OSError) as error:
        assert str(error) and struck
    except KeyboardInterrupt:
        assert struck
    assert not list(folder.rglob(".unfinished*"))
    sweep(folder)
    assert not list(folder.rglob(".*"))
    thing.intact(folder)
    return bool(struck)


@contextmanager
def largest_file(size: int) -> Iterator[list[str]]:
    """Within the block, the system refuses to let any file grow beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield ["perhaps"]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


CALLS = [(os, "fsync"), (os, "rename"), (os, "replace"), (os, "mkdir"), (os, "open")]


@contextmanager
def full_at(number: int) -> Iterator[list[str]]:
    """Within the block, call `number` of those that can need room on the disk says that there is none."""
    struck: list[str] = []
    calls = 0

    def counted(real: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            mode = str(args[1] if len(args) > 1 else kwargs.get("mode", "r"))
            if real is not open or set("wax+") & set(mode):
                calls += 1
                if calls == number:
                    struck.append(name)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*args, **kwargs)

        return call

    patches = [mock.patch.object(place, name, counted(getattr(place, name), name)) for place, name in CALLS]
    patches += [mock.patch.object(place, "open", counted(open, "open")) for place in (builtins, io)]
    for patch in patches:
        patch.start()
    try:
        yield struck
    finally:
        for patch in patches:
            patch.stop()


@contextmanager
def at_line(number: int, strike: Callable[[], None]) -> Iterator[list[str]]:
    """Within the block, `strike` before line `number` of those that run in the modules that save."""
    struck: list[str] = []
    lines = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal lines
        if frame.f_code.co_filename not in WATCHED:
            return None
        if event == "line":
            lines += 1
            if lines == number:
                sys.settrace(None)
                struck.append(f"{frame.f_code.co_filename}:{frame.f_lineno}")
                strike()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield struck
    finally:
        sys.settrace(before)


def interrupt() -> None:
    raise KeyboardInterrupt


def killed_at_line(thing: Thing, folder: Path, number: int) -> bool:
    """Whether a child process that saves was killed at that line; asserts what `saved_in_vain` does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        child = os.fork()
    if child == 0:
        try:
            with at_line(number, lambda: os.kill(os.getpid(), signal.SIGKILL)):
                thing.save(folder)
        finally:
            os._exit(0)
    status = os.waitpid(child, 0)[1]
    sweep(folder)
    assert not any(path.name.startswith(".unfinished-step") for path in folder.rglob("*"))
    thing.intact(folder)
    return os.WIFSIGNALED(status)


def until_spared(strikes: Callable[[int], bool], each: int = 1) -> int:
    """How many of the places 1, 1 + `each`, and so on there are before the one at which nothing strikes."""
    number = 1
    while strikes(number):
        number += each
    return (number - 1) // each
