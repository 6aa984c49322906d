"""Bad input: status 2 and one message, never a traceback; missing extras are named."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

import revgraph as rg
from revgraph.cli.guarding import guarded

Run = Callable[..., Any]
ROOT = Path(rg.__file__).parents[1]


def start(*arguments: str, code: str = "") -> subprocess.CompletedProcess[str]:
    """`python -m revgraph` in a process of its own, after `code` has run there."""
    program = f"{code}\nfrom revgraph.cli import main\nmain()"
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.mark.parametrize("command", ["show", "plan", "check", "train"])
@pytest.mark.parametrize("options", [(), ("--json",)])
def test_unknown_network(revgraph: Run, command: str, options: tuple[str, ...]) -> None:
    answer = revgraph(command, "revnet-39", *options)
    assert answer.status == 2
    assert answer.out == ""
    assert answer.err.startswith("error: ") and "revnet-38" in answer.err
    assert "Traceback" not in answer.err


def test_broken_file_is_named_with_its_line(revgraph: Run, tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text("name: broken\nlayers: [\n")
    answer = revgraph("show", path)
    assert answer.status == 2 and "broken.yaml" in answer.err


def test_message_with_brackets_is_shown_as_it_is(revgraph: Run, tmp_path: Path) -> None:
    path = tmp_path / "[red]net.yaml"
    answer = revgraph("show", path)
    assert answer.status == 2 and "[red]net.yaml" in answer.err


@pytest.mark.parametrize("text", ["classes", "=3", "a b=3"])
def test_parameter_in_another_form(revgraph: Run, tiny: Path, text: str) -> None:
    answer = revgraph("show", tiny, "--set", text)
    assert answer.status == 2 and "give a parameter as NAME=VALUE" in answer.err


@pytest.mark.slow
def test_drawing_where_nothing_can_be_written(revgraph: Run, tiny: Path) -> None:
    answer = revgraph("plan", tiny, "--out", tiny / "plan.svg")
    assert answer.status == 2 and "tiny.yaml" in answer.err and "Traceback" not in answer.err


@pytest.mark.parametrize(
    "arguments", [("fly",), ("show",), ("show", "revnet-38", "--batch", "0"), ("list", "--colour")]
)
def test_wrong_usage(revgraph: Run, arguments: tuple[str, ...]) -> None:
    assert revgraph(*arguments).status == 2


@pytest.mark.parametrize("command", ["", "list", "show", "plan", "check", "train"])
def test_help_is_complete(revgraph: Run, command: str) -> None:
    answer = revgraph(*command.split(), "--help")
    assert answer.status == 0
    lines = answer.out.splitlines()
    options = [line for line in lines if line.startswith("  -")]
    assert options
    for index, line in enumerate(lines):
        if line.startswith("  -"):
            described = len(line.split("  ")) > 2 or lines[index + 1].startswith("      ")
            assert described, f"{line!r} has no help"
    assert not [line for line in lines if line.endswith("...") and line != lines[0]]
    if command:
        assert "--json" in answer.out


def test_version(revgraph: Run) -> None:
    answer = revgraph("--version")
    assert answer.status == 0 and answer.out.startswith("revgraph ")


def test_interrupt_is_status_130() -> None:
    def command() -> None:
        raise KeyboardInterrupt

    with pytest.raises(typer.Exit) as exit_:
        guarded(command)()
    assert exit_.value.exit_code == 130


@pytest.mark.slow
def test_python_m_revgraph() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "revgraph", "show", "nowhere"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: no network") and "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("missing", "arguments", "extra"),
    [
        ("typer", ("list",), "revgraph[cli]"),
        ("rich", ("list",), "revgraph[cli]"),
        ("accelerate", ("train", "revnet-38"), "revgraph[train]"),
        ("safetensors", ("train", "revnet-38"), "revgraph[train]"),
        ("sklearn", ("train", "revnet-38"), "revgraph[train]"),
        ("matplotlib", ("plan", "revnet-38", "--chart", "frontier.svg"), "revgraph[draw]"),
    ],
)
def test_missing_package_names_its_extra(missing: str, arguments: tuple[str, ...], extra: str) -> None:
    hide = (
        "import sys\n"
        "class Hidden:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] == {missing!r}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Hidden())\n"
    )
    done = start(*arguments, code=hide)
    assert done.returncode == 2 and done.stdout == ""
    assert f'pip install "{extra}"' in done.stderr
    assert "Traceback" not in done.stderr


def test_reader_that_goes_away_is_no_error() -> None:
    command = [sys.executable, "-W", "error", "-m", "revgraph", "list", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
