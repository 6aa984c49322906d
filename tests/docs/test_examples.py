"""Every example in the README and the documentation does what it says."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

import revgraph

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no page asks another host for anything

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NEEDS_GPU = "# Needs a GPU"  # how a block begins that is left out where there is none
# What other libraries warn of on a machine like this, by page.
WARN = {
    "hugging_face": ("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:.*pin_memory.*"),
    "lightning": (
        "ignore::DeprecationWarning",
        "ignore::FutureWarning",
        "ignore:.*treespec.*",
        "ignore:.*does not have many workers.*",
        "ignore:The number of training batches",
    ),
}
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A code block of a page, with the line it starts on."""

    language: str
    text: str
    line: int


def blocks(page: Path, *languages: str) -> list[Block]:
    """The code blocks of a page in these languages."""
    text = page.read_text(encoding="utf-8")
    found = [
        Block(match[1], match[2], text.count("\n", 0, match.start(2)) + 1) for match in FENCE.finditer(text)
    ]
    return [block for block in found if block.language in languages]


def commands(program: str) -> list[str]:
    """The lines of the shell blocks that call `program`, without their comments."""
    lines = (line for page in PAGES for block in blocks(page, "sh") for line in block.text.splitlines())
    return sorted({line.partition("  #")[0].strip() for line in lines if line.split()[:1] == [program]})


def test_readme_opens_with_an_example_of_about_ten_lines() -> None:
    example = blocks(ROOT / "README.md", "python")[0]
    assert len([line for line in example.text.splitlines() if line.strip()]) <= 12


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_first_figures_are_those_that_were_printed(page: str) -> None:
    """`make pictures` prints them."""
    printed = (ROOT / "benchmarks/results/reading-hill.md").read_text(encoding="utf-8")
    assert " ".join(printed.split()) in " ".join((ROOT / page).read_text(encoding="utf-8").split())


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder; what torchrun sets for a single process; and no Accelerator that another test made."""
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.chdir(tmp_path)
    for name, setting in {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "0",
    }.items():
        monkeypatch.setenv(name, setting)
    torch.manual_seed(0)


def run(page: Path) -> None:
    """Run a page from top to bottom, without what needs a GPU if there is none."""
    namespace: dict[str, object] = {"__name__": "__main__"}
    printed = io.StringIO()
    for block in blocks(page, "yaml", "python", "text"):
        if block.language == "yaml":
            # A specification is the file that its first line names.
            Path(block.text.split("\n")[0].removeprefix("# ")).write_text(block.text)
        elif block.language == "python":
            # Leading newlines make a traceback point at the line of the page.
            code = compile("\n" * (block.line - 1) + block.text, str(page), "exec", dont_inherit=True)
            if block.text.startswith(NEEDS_GPU) and not torch.cuda.is_available():
                continue
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(code, namespace)
        else:
            # What the example before it prints.
            assert printed.getvalue() == block.text


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.filterwarnings(each) for each in WARN.get(page.stem, ())])
        for page in PAGES
        if blocks(page, "python")
    ],
    ids=lambda page: page.relative_to(ROOT).as_posix(),
)
def test_python_examples_run_from_top_to_bottom(page: Path) -> None:
    run(page)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if any(each.text.startswith(NEEDS_GPU) for each in blocks(page, "python"))],
    ids=lambda page: page.relative_to(ROOT).as_posix(),
)
def test_examples_for_gpus_run_too(page: Path) -> None:
    run(page)


@pytest.mark.slow
@pytest.mark.parametrize("command", commands("revgraph"))
def test_commands_of_the_pages_succeed(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "revgraph", *shlex.split(command)[1:]],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("command", commands("make"))
def test_make_targets_of_the_pages_exist(command: str) -> None:
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    (targets,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert command.split()[1] in targets.split()


@pytest.mark.parametrize("command", commands("pip"))
def test_extras_of_the_pages_exist(command: str) -> None:
    project = (ROOT / "pyproject.toml").read_text()
    for names in re.findall(r"\[(.*?)\]", command):
        for name in names.split(","):
            assert re.search(rf"^{name} = \[", project, re.MULTILINE), name


def test_reference_has_every_public_name() -> None:
    page = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^::: revgraph\.(?:\w+\.)*(\w+)$", page, re.MULTILINE))
    errors = {name for name, item in vars(revgraph.errors).items() if isinstance(item, type)}
    assert set(revgraph.__all__) - named - errors == set()
