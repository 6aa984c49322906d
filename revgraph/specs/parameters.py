"""A specification's parameters: their defaults, the values given instead, and `$name` where they are used."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from revgraph.errors import SpecError
from revgraph.specs.hints import listed, meant
from revgraph.specs.limits import Limits
from revgraph.specs.mappings import read_mapping
from revgraph.specs.trees import Listing, Scalar, Table, Tree, described, listing, table

REFERENCE = re.compile(r"\$([A-Za-z_][A-Za-z0-9_]*)")
TAKEN = ("source", "batch", "limits")


def parameters(declared: Tree | None, given: Mapping[str, Any], limits: Limits) -> dict[str, Tree]:
    """The value of each parameter: the one given, or else the declared default.

    Raises:
        SpecError: a given name is not declared, or its value is of another kind than the default.
    """
    defaults = {} if declared is None else _defaults(declared)
    values = dict(defaults)
    for name, value in given.items():
        if name not in defaults:
            known = f"The parameters are {listed(defaults)}." if defaults else "This network has none."
            raise SpecError(f"there is no parameter {name!r}.{meant(name, defaults)} {known}")
        tree = read_mapping(value, f"parameter {name!r}", limits)
        if not _same_kind(defaults[name], tree):
            raise SpecError(
                f"parameter {name!r} cannot be {described(tree)}: its default is {described(defaults[name])} "
                f"({defaults[name].where})"
            )
        values[name] = tree
    return values


def substitute(tree: Tree, values: Mapping[str, Tree], limits: Limits) -> Tree:
    """The tree with every text `$name` replaced by that parameter's value.

    Raises:
        SpecError: there is no such parameter.
    """
    if isinstance(tree, Listing):
        return listing([substitute(item, values, limits) for item in tree.items], tree.where, limits)
    if isinstance(tree, Table):
        items = [(key, substitute(item, values, limits)) for key, item in tree.items]
        return table(items, tree.where, limits)
    match = REFERENCE.fullmatch(tree.value) if isinstance(tree.value, str) else None
    if match is None:
        return tree
    name = match[1]
    if name not in values:
        known = f" The parameters are {listed(values)}." if values else " Declare it under `parameters`."
        raise SpecError(f"{tree.where}: there is no parameter {name!r}.{meant(name, values)}{known}")
    return _moved(values[name], tree.where)


def _defaults(declared: Tree) -> dict[str, Tree]:
    if not isinstance(declared, Table):
        raise SpecError(
            f"{declared.where}: `parameters` is {described(declared)}; it must give each parameter its "
            "default, as in {classes: 10}"
        )
    for name, tree in declared.items:
        if not REFERENCE.fullmatch(f"${name}") or name in TAKEN:
            raise SpecError(
                f"{tree.where}: {name!r} cannot name a parameter"
                + (
                    ": it is an argument of its own"
                    if name in TAKEN
                    else ": use letters, digits and underscores"
                )
            )
        items = tree.items if isinstance(tree, Listing) else (tree,)
        if not all(isinstance(item, Scalar) and item.value is not None for item in items):
            raise SpecError(
                f"{tree.where}: parameter {name!r} cannot be {described(tree)}: give a number, text, truth "
                "value, or a list of such"
            )
    return dict(declared.items)


def _same_kind(default: Tree, tree: Tree) -> bool:
    if isinstance(default, Scalar) and isinstance(tree, Scalar):
        if isinstance(default.value, float):
            return isinstance(tree.value, (int, float)) and not isinstance(tree.value, bool)
        return type(tree.value) is type(default.value)
    return isinstance(default, Listing) and isinstance(tree, Listing)


def _moved(tree: Tree, where: str) -> Tree:
    """The tree as it were written at another place, so that errors name the place of use."""
    return Scalar(tree.value, where) if isinstance(tree, Scalar) else tree
