"""The colours of the drawings: one paint for each part a colour plays, in light and in dark.

Colour is never the only sign. In black and white a fill still means memory that is held: dark for a stored
value, tinted for a node that keeps its internals, (almost) none for one that gives them up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Paint:
    """A colour on a light ground and its counterpart on a dark one."""

    light: str
    dark: str


PAINTS: Mapping[str, Paint] = {
    "ground": Paint("#ffffff", "#11161c"),
    "ink": Paint("#1c2128", "#e6edf3"),
    "muted": Paint("#57606a", "#9aa7b4"),
    "stage": Paint("#f5f7f9", "#181f27"),
    "stage-line": Paint("#d8dee4", "#2f3944"),
    "block": Paint("#ebeff3", "#1f2832"),
    "block-line": Paint("#afb8c1", "#4a5664"),
    "stream": Paint("#3b444d", "#c3ced9"),
    "other": Paint("#6e7781", "#8695a5"),
    "plain": Paint("#fefefe", "#161c23"),
    "plain-line": Paint("#828b95", "#6f7d8b"),
    "coupling": Paint("#e9f2fb", "#12283c"),
    "coupling-line": Paint("#0a5aa0", "#74baff"),
    "boundary": Paint("#e4e8ec", "#2a333d"),
    "boundary-line": Paint("#4b545d", "#a9b6c3"),
    "keep": Paint("#f7dca8", "#54400f"),
    "keep-line": Paint("#6f4a00", "#f0c772"),
    "invert": Paint("#eaf3fc", "#12293d"),
    "invert-line": Paint("#0b5ba1", "#75bbff"),
    "recompute": Paint("#fbf4fc", "#2b1d30"),
    "recompute-line": Paint("#7d2f84", "#e3a6e8"),
    "stored": Paint("#6a4600", "#f2c668"),
    "stored-ink": Paint("#fffdf8", "#1d1400"),
    "peak": Paint("#b3121f", "#ff9188"),
    "area-stored": Paint("#7d5200", "#e3ab42"),
    "area-rebuilt": Paint("#3d8ecf", "#3f8fd0"),
    "area-internals": Paint("#d3a4dc", "#7f4a8c"),
    "area-gradients": Paint("#5b6672", "#b4bfca"),
    "area-passing": Paint("#dbe1e6", "#333d47"),
    "grid": Paint("#e2e6ea", "#2a333c"),
}
"""By role. No two roles share a light colour: the SVG finds an element's role by it."""


def light(role: str) -> str:
    """The colour of `role` on a light ground, as written into every drawing."""
    return PAINTS[role].light


def stylesheet(scope: str) -> str:
    """CSS for an SVG whose root has the class `scope`: its letters, and its colours where dark is preferred.

    Elements carry their light colours as attributes, which a viewer without CSS shows.
    """
    fills = "".join(
        f".{scope} .fill-{role}{{fill:{paint.dark}}}.{scope} .line-{role}{{stroke:{paint.dark}}}"
        for role, paint in PAINTS.items()
    )
    return (
        f".{scope} text{{font-family:Helvetica,Arial,'Liberation Sans',Arimo,sans-serif}}"
        f"@media screen and (prefers-color-scheme:dark){{{fills}}}"
    )
