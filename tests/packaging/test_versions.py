"""What the project's files say about versions agrees, and every dependency is pinned."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import revgraph

ROOT = Path(__file__).parents[2]
# Of a CUDA build of torch, which pins them itself.
CUDA = ("nvidia-", "cuda-", "triton")


def pins() -> dict[str, list[Requirement]]:
    """The lines of constraints.txt by package."""
    found: dict[str, list[Requirement]] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            found.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return found


def test_changelog_and_readme_name_the_version_of_the_package() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert re.findall(r"^## \[(\d.+?)\]", changelog, re.MULTILINE)[0] == revgraph.__version__
    assert f"version {revgraph.__version__}" in (ROOT / "README.md").read_text()


def test_readme_states_the_supported_versions() -> None:
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert "Python 3.10 to 3.13" in readme
    assert "torch 2.6 or later" in readme
    project = (ROOT / "pyproject.toml").read_text()
    assert 'requires-python = ">=3.10"' in project
    assert '"torch>=2.6"' in project


def test_every_pin_is_exact_and_of_one_version_a_python() -> None:
    for name, requirements in pins().items():
        for requirement in requirements:
            assert re.fullmatch(r"==[^,*]+", str(requirement.specifier)), requirement
        for python in ("3.10.0", "3.11.9", "3.12.0", "3.13.0"):
            environment = {"python_version": python.rpartition(".")[0], "python_full_version": python}
            valid = [each for each in requirements if not each.marker or each.marker.evaluate(environment)]
            assert len(valid) <= 1, (name, python)


def needed(extras: tuple[str, ...]) -> set[str]:
    """The packages that revgraph with these extras brings on this machine, at any depth.

    What else is there, of its user or out of a folder that a package adds to the path, is none of them.
    """
    found: set[str] = set()
    waiting = [("revgraph", extra) for extra in ("", *extras)]
    seen = set(waiting)
    while waiting:
        name, extra = waiting.pop()
        found.add(name)
        for text in metadata.requires(name) or ():
            requirement = Requirement(text)
            if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
                continue
            inner = canonicalize_name(requirement.name)
            for each in ((inner, extra) for extra in ("", *requirement.extras)):
                if each not in seen and not inner.startswith(CUDA):
                    seen.add(each)
                    waiting.append(each)
    return found - {"revgraph", "pip"}


def test_every_package_that_is_needed_is_pinned_to_its_version() -> None:
    pinned = pins()
    names = needed(("train", "draw", "docs", "dev", "bench"))
    assert {"torch", "networkx", "hypothesis", "sympy", "markupsafe"} <= names
    for name in sorted(names):
        assert name in pinned, f"{name} has no line in constraints.txt"
        (valid,) = (each for each in pinned[name] if not each.marker or each.marker.evaluate())
        version = metadata.version(name)
        assert valid.specifier.contains(version, prereleases=True), (name, version)
