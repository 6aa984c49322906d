"""What the package imports is what it declares."""

from __future__ import annotations

import ast
import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
OPTIONAL = {"tensorboard"}  # used where it happens to be installed


def imported(path: Path) -> set[str]:
    """The top-level names that a module imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.partition(".")[0])
    return names - sys.stdlib_module_names - {"revgraph"}


def test_every_imported_package_is_a_declared_dependency() -> None:
    declared = {canonicalize_name(Requirement(line).name) for line in metadata.requires("revgraph") or ()}
    distributions = metadata.packages_distributions()
    for path in sorted((ROOT / "revgraph").rglob("*.py")):
        for name in imported(path):
            known = {canonicalize_name(each) for each in distributions.get(name, [name])}
            assert known & (declared | OPTIONAL), f"{path.relative_to(ROOT)} imports {name}"
