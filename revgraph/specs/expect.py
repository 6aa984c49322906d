"""Taking a tree for what is expected at its place, or saying what stands there instead."""

from __future__ import annotations

import keyword
from collections.abc import Sequence

from revgraph.errors import SpecError
from revgraph.specs.hints import listed, meant, shortened
from revgraph.specs.registry import WORD
from revgraph.specs.trees import Listing, Scalar, Table, Tree, described


def a_table(tree: Tree, what: str) -> Table:
    """The tree, if it is a mapping; `what` is the end of "there must be ..."."""
    if not isinstance(tree, Table):
        raise SpecError(f"{tree.where}: here stands {described(tree)}, but there must be {what}")
    return tree


def a_listing(tree: Tree, what: str) -> Listing:
    """The tree, if it is a list."""
    if not isinstance(tree, Listing):
        raise SpecError(f"{tree.where}: here stands {described(tree)}, but there must be {what}")
    return tree


def a_text(tree: Tree, what: str) -> str:
    """The tree's text."""
    if not isinstance(tree, Scalar) or not isinstance(tree.value, str):
        raise SpecError(f"{tree.where}: here stands {described(tree)}, but there must be {what}")
    return tree.value


def a_word(tree: Tree, what: str) -> str:
    """The tree's text, if it can name something."""
    return name(a_text(tree, what), tree.where)


def name(text: str, where: str) -> str:
    """The text, if it can name a value, layer or parameter."""
    if not WORD.fullmatch(text) or len(text) > 80:
        raise SpecError(
            f"{where}: {shortened(text)} cannot be a name: a name starts with a letter and goes on with "
            "letters, digits and underscores"
        )
    if keyword.iskeyword(text) or text == "self":
        raise SpecError(f"{where}: {text!r} cannot be a name: Python uses the word itself")
    return text


def words(tree: Tree, what: str) -> tuple[str, ...]:
    """One word, or a list of words that is not empty."""
    if isinstance(tree, Scalar):
        return (a_word(tree, what),)
    found = tuple(a_word(item, what) for item in a_listing(tree, what).items)
    if not found:
        raise SpecError(f"{tree.where}: here stands an empty list, but there must be {what}")
    return found


def an_integer(tree: Tree, what: str, least: int, most: int) -> int:
    """The tree's whole number, from `least` to `most`."""
    value = tree.value if isinstance(tree, Scalar) else None
    if not isinstance(value, int) or isinstance(value, bool):
        raise SpecError(f"{tree.where}: here stands {described(tree)}, but there must be {what}")
    if not least <= value <= most:
        raise SpecError(
            f"{tree.where}: {value} is out of range: there must be {what}, from {least} to {most}"
        )
    return value


def only(tree: Table, keys: Sequence[str], what: str) -> None:
    """Raises SpecError where the mapping has other keys than these."""
    for key, item in tree.items:
        if key not in keys:
            raise SpecError(
                f"{item.where}: {what} has no key {shortened(key)}.{meant(key, keys)} Its keys are "
                f"{listed(keys)}."
            )
