"""Long work tells on a terminal what it is at, and leaves no trace of it in pipes."""

from __future__ import annotations

import io
import logging
import re
import time

import pytest
from compiling.nets import chain, compiled, inputs
from torch import nn

import revgraph as rg
from revgraph import progress
from revgraph.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "FIRST", 0.0)
    monkeypatch.setattr(progress, "EVERY", 0.001)
    monkeypatch.setenv("TERM", "xterm")


def shown(stream: io.StringIO, work: str = "") -> list[str]:
    """The lines that told of this work."""
    lines = re.findall("\r([^\r]+)\x1b\\[K", stream.getvalue())
    return [each for each in lines if each.startswith(work)]


def test_a_terminal_shows_phases_and_seconds_and_is_clean_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    compiled(chain(lambda: nn.Hardtanh(-0.83)), inputs())(inputs()).sum().backward()
    lines = shown(terminal, "compiling")
    assert all(re.fullmatch(r"compiling the step: .+, [0-9]+ s", each) for each in lines)
    phases = list(dict.fromkeys(each.split(": ")[1].rpartition(",")[0] for each in lines))
    assert phases == ["reading the functions", "tracing forward and backward", "lowering the plan"]
    assert terminal.getvalue().endswith("\r\x1b[K")


def test_planning_tells_how_many_plans_it_has_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    rg.plan(rg.trace(chain(lambda: nn.Hardtanh(-0.79), depth=9), inputs()).graph)
    lines = shown(terminal, "planning")
    assert lines
    assert shown(terminal, "tracing Chain: ")
    assert all(
        re.fullmatch(r"planning Chain, 18 nodes: [0-9,]+ plans tried, [0-9]+ s", each) for each in lines
    )
    assert terminal.getvalue().endswith("\r\x1b[K")


def test_of_blocks_in_each_other_the_innermost_is_told() -> None:
    terminal = Terminal()
    with Progress("outer", stream=terminal):
        time.sleep(0.02)
        with Progress("inner", lambda: "deep down", stream=terminal):
            time.sleep(0.02)
        time.sleep(0.02)
    told = [each.rpartition(",")[0] for each in shown(terminal)]
    assert list(dict.fromkeys(told)) == ["outer", "inner: deep down"]
    assert told[-1] == "outer"


def test_a_pipe_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = io.StringIO()
    monkeypatch.setattr("sys.stderr", pipe)
    compiled(chain(lambda: nn.Hardtanh(-0.81)), inputs())(inputs())
    assert pipe.getvalue() == ""


def test_where_the_logger_tells_there_is_no_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="revgraph.compiling")
    terminal = Terminal()
    with Progress("at work", logger=logging.getLogger("revgraph.compiling"), stream=terminal):
        time.sleep(0.02)
    assert terminal.getvalue() == ""


def test_what_is_short_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "FIRST", 60.0)
    terminal = Terminal()
    with Progress("at work", stream=terminal):
        pass
    assert terminal.getvalue() == ""
