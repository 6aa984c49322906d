"""The hints at the end of an error: what the user may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def meant(word: str, options: Iterable[str]) -> str:
    """ " Did you mean 'x'?" for the option nearest to the word, or nothing where none is near."""
    by_lower = {option.lower(): option for option in options}
    near = difflib.get_close_matches(word.lower()[:80], by_lower, n=1, cutoff=0.7)
    return f" Did you mean {by_lower[near[0]]!r}?" if near else ""


def listed(options: Iterable[str]) -> str:
    """The options in a sentence: a, b, c."""
    return ", ".join(options)


def shortened(text: str, length: int = 60) -> str:
    """The text in quotes, cut where it is long."""
    return repr(text if len(text) <= length else text[: length - 3] + "...")
