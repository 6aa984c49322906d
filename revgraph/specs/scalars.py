"""What a plain YAML scalar means: YAML 1.2's core schema, and an error where YAML 1.1 differs."""

from __future__ import annotations

import math
import re

from revgraph.errors import SpecError
from revgraph.specs.hints import shortened
from revgraph.specs.trees import Plain

CONSTANTS: dict[str, Plain] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf"), math.inf),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), -math.inf),
}
AMBIGUOUS = {"yes": "true", "on": "true", "no": "false", "off": "false"}
INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
ODD_NUMBER = re.compile(r"[-+]?(0[0-9_]+|0[xob][0-9a-fA-F_]+|[0-9][0-9_]*_[0-9_]*(\.[0-9_]*)?)")
DIGITS = 18
# What a terminal or a file would take for a command, or cannot hold at all.
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def resolve(text: str, where: str) -> Plain:
    """The value of a scalar written without quotes.

    Raises:
        SpecError: YAML 1.1 and 1.2 disagree about it, or it is a number out of range.
    """
    if text in CONSTANTS:
        return CONSTANTS[text]
    if text.lower() in AMBIGUOUS and text in (text.lower(), text.upper(), text.capitalize()):
        raise SpecError(
            f"{where}: {text!r} is a truth value to some YAML readers and a text to others. "
            f'Write {AMBIGUOUS[text.lower()]} for the truth value, or "{text}" in quotes for the text.'
        )
    if INTEGER.fullmatch(text):
        if len(text) > DIGITS:
            raise SpecError(f"{where}: the number {shortened(text, 30)} has more than {DIGITS} digits")
        return int(text)
    if ODD_NUMBER.fullmatch(text):
        raise SpecError(
            f"{where}: {shortened(text, 30)} is read as different numbers by different YAML readers. "
            "Write a plain decimal number, or quotes around it for a text."
        )
    if FLOAT.fullmatch(text):
        value = float(text)
        if not math.isfinite(value):
            raise SpecError(f"{where}: the number {shortened(text, 30)} is too large")
        return value
    return text


def readable(text: str, where: str) -> str:
    """The text itself, where a reader can see all of it.

    Raises:
        SpecError: it holds a control character or half of a surrogate pair.
    """
    odd = UNPRINTABLE.search(text)
    if odd is not None:
        raise SpecError(f"{where}: this text holds the character {odd[0]!r}, which cannot be shown")
    return text
