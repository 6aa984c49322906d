"""For the reference pages: doctests in docstrings become code blocks, wherever they stand."""

from __future__ import annotations

import re
from typing import Any

import griffe

# Lines from a prompt up to the next empty line, at one indent.
DOCTEST = re.compile(r"^(?P<indent> *)>>> .*(?:\n(?P=indent)\S.*|\n(?P=indent) +\S.*)*", re.MULTILINE)


class Doctests(griffe.Extension):
    """Fences the doctests of every docstring that is read."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = DOCTEST.sub(fenced, obj.docstring.value)


def fenced(match: re.Match[str]) -> str:
    """A doctest as a fenced code block of the same indent."""
    return f"{match['indent']}```pycon\n{match[0]}\n{match['indent']}```"
