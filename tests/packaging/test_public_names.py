"""The package's names are imported when they are asked for, and nobody can tell the difference."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import revgraph

SOURCE = Path(revgraph.__file__)
# Stands before code that has to do without torch: any import of it fails.
WITHOUT_TORCH = "import sys\nsys.modules['torch'] = None\n"


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=600
    )


def imported_for_checkers() -> dict[str, str]:
    """Each name that the package imports for type checkers, and its module."""
    block = next(node for node in ast.parse(SOURCE.read_text("utf-8")).body if isinstance(node, ast.If))
    found: dict[str, str] = {}
    for statement in block.body:
        assert isinstance(statement, ast.ImportFrom), ast.unparse(statement)
        assert statement.module is not None
        found |= {alias.name: statement.module for alias in statement.names}
    return found


def test_python_and_type_checkers_find_the_same_names() -> None:
    checked = imported_for_checkers()
    assert sorted(checked) == sorted(revgraph.__all__)
    for name, module in checked.items():
        if module == "revgraph":
            assert getattr(revgraph, name) is import_module(f"revgraph.{name}")
        else:
            assert f"revgraph.{revgraph._MODULE_OF[name]}" == module
            assert getattr(revgraph, name) is getattr(import_module(module), name)
    assert set(revgraph._MODULE_OF) <= set(checked)


def test_no_public_name_hides_a_module() -> None:
    """Importing a module puts it into the package under its name, in place of what has that name there."""
    modules = {path.stem for path in SOURCE.parent.iterdir()}
    assert set(revgraph._MODULE_OF) & modules == set()


@pytest.mark.slow
def test_everything_is_there_before_anything_was_asked_for() -> None:
    code = (
        "import inspect, pickle, revgraph\n"
        "assert not set(revgraph.__all__) & set(vars(revgraph))\n"
        "assert set(revgraph.__all__) <= set(dir(revgraph))\n"
        "assert pickle.loads(pickle.dumps(revgraph.Graph)) is revgraph.Graph\n"
        "found = dict(inspect.getmembers(revgraph))\n"
        "star = {}\n"
        "exec('from revgraph import *', star)\n"
        "assert set(star) - {'__builtins__'} == set(revgraph.__all__)\n"
        "assert all(star[name] is found[name] for name in revgraph.__all__)\n"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_modules_are_attributes_of_the_package() -> None:
    done = python("import revgraph\nprint(revgraph.planning.solver.__name__, revgraph.costs.__name__)")
    assert done.stdout.split() == ["revgraph.planning.solver", "revgraph.costs"], done.stderr


def test_a_name_that_is_not_there_is_said_and_the_nearest_suggested() -> None:
    with pytest.raises(AttributeError, match=r"^module 'revgraph' has no attribute 'tarce'$"):
        revgraph.tarce  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]
    assert not hasattr(revgraph, "_nothing")
    done = python("import revgraph\nrevgraph.tarce")
    assert "Did you mean: 'trace'?" in done.stderr
    done = python("from revgraph import tarce")
    assert "ImportError: cannot import name 'tarce' from 'revgraph'" in done.stderr


@pytest.mark.slow
def test_any_name_may_be_asked_for_first() -> None:
    """No module needs another one to have been imported before it."""
    modules = sorted({f"revgraph.{module}" for module in revgraph._MODULE_OF.values()})
    code = (
        "import importlib, os, sys, torch\n"
        "for module in sys.argv[1:]:\n"
        "    child = os.fork()\n"  # with torch, and nothing of revgraph
        "    if not child:\n"
        "        importlib.import_module(module)\n"
        "        os._exit(0)\n"
        "    if os.waitpid(child, 0)[1]:\n"
        "        sys.exit(f'{module} cannot be imported first')\n"
    )
    done = python(code, *modules)
    assert done.returncode == 0, done.stderr


def test_the_package_and_its_errors_need_no_torch() -> None:
    errors = [name for name, module in imported_for_checkers().items() if module == "revgraph.errors"]
    done = python(WITHOUT_TORCH + f"from revgraph import {', '.join(errors)}, Graph, plan, simulate, draw")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ("--help", 0, "Commands"),
        ("--version", 0, "revgraph "),
        *((f"{command} --help", 0, "--json") for command in ("list", "show", "plan", "check", "train")),
        ("nothing", 2, "No such command 'nothing'"),
        ("show", 2, "Missing argument 'NET'"),
        ("plan NET --batch 0", 2, "Invalid value for '--batch'"),
        ("plan NET --budget 1 --plan plan.json", 2, "give --plan or --budget, not both"),
        ("plan NET --out plan.gif", 2, "--out plan.gif: the name ends in"),
        ("plan NET --budget much", 2, "much"),
        ("plan NET --effort much", 2, "much"),
        ("plan NET --cost much", 2, "much"),
        ("train NET --steps 1 --epochs 1", 2, "give --steps or --epochs, not both"),
        ("train NET --precision much", 2, "--precision is no, bf16, fp16, not 'much'"),
        ("train NET --set much", 2, "give a parameter as NAME=VALUE"),
    ],
)
def test_the_command_line_needs_no_torch_for(arguments: str, status: int, said: str) -> None:
    """Help, the version and wrong usage do not wait a second for an import that they have no use for."""
    run = "from revgraph.cli import main\nsys.argv[0] = 'revgraph'\nmain()"
    done = python(WITHOUT_TORCH + run, *arguments.split())
    assert done.returncode == status, done.stderr
    assert said in done.stdout + done.stderr


def test_completion_needs_no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_REVGRAPH_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "revgraph pl")
    monkeypatch.setenv("COMP_CWORD", "1")
    done = python(WITHOUT_TORCH + "from revgraph.cli import main\nsys.argv[0] = 'revgraph'\nmain()")
    assert "ModuleNotFoundError" not in done.stderr, done.stderr
