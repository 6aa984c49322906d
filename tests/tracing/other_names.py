"""Names that other code reads from here."""

from __future__ import annotations

scale = 2.0


class Kind:
    scale = 3.0


class Unused:
    scale = 3.0
