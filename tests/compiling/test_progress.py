"""Compiling tells on a terminal what it is at, and leaves no trace of it in pipes."""

from __future__ import annotations

import io
import logging
import re
import time

import pytest
from compiling.nets import chain, compiled, inputs
from torch import nn

from revgraph.compiling import progress
from revgraph.compiling.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "FIRST", 0.0)
    monkeypatch.setattr(progress, "EVERY", 0.001)
    monkeypatch.setenv("TERM", "xterm")


def shown(stream: io.StringIO) -> list[str]:
    return re.findall("\r([^\r]+)\x1b\\[K", stream.getvalue())


def test_a_terminal_shows_phases_and_seconds_and_is_clean_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    compiled(chain(lambda: nn.Hardtanh(-0.83)), inputs())(inputs()).sum().backward()
    lines = shown(terminal)
    assert all(re.fullmatch(r"compiling the step: .+, [0-9]+ s", each) for each in lines)
    phases = list(dict.fromkeys(each.split(": ")[1].rpartition(",")[0] for each in lines))
    assert phases == ["reading the functions", "tracing forward and backward", "lowering the plan"]
    assert terminal.getvalue().endswith("\r\x1b[K")


def test_a_pipe_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = io.StringIO()
    monkeypatch.setattr("sys.stderr", pipe)
    compiled(chain(lambda: nn.Hardtanh(-0.81)), inputs())(inputs())
    assert pipe.getvalue() == ""


def test_where_the_logger_tells_there_is_no_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="revgraph.compiling")
    terminal = Terminal()
    with Progress("at work", terminal):
        time.sleep(0.02)
    assert terminal.getvalue() == ""


def test_what_is_short_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "FIRST", 60.0)
    terminal = Terminal()
    with Progress("at work", terminal):
        pass
    assert terminal.getvalue() == ""
