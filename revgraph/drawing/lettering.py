"""Text for drawings: how wide it is, how it is shortened, and how it goes safely into a label."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from html import escape

from revgraph.drawing.palette import light

TIMES = "\u00d7"
DASH = "\u2013"

_CLASSES = {
    191: "'",
    222: "ijl",
    260: "|",
    278: " !,./:;I[\\]ft·",
    333: "()-`r{}",
    355: '"',
    389: "*",
    469: "^",
    500: "Jcksvxyz",
    556: f"#$0123456789?L_abdeghnopqu{DASH}",
    584: f"+<=>~{TIMES}",
    611: "FTZ",
    667: "&ABEKPSVXY",
    722: "CDHNRUw",
    778: "GOQ",
    833: "Mm",
    889: "%",
    944: "W",
    1015: "@",
}
_WIDTHS = {letter: width for width, letters in _CLASSES.items() for letter in letters}
_BOLD = 1.07
_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""The characters that XML 1.0 cannot hold in any form."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a label: text in a paint of the palette, at a size in whole points."""

    text: str
    role: str = "ink"
    size: float = 12.0
    bold: bool = False

    @property
    def width(self) -> float:
        """Points from its left to its right end."""
        return width(self.text, self.size, bold=self.bold)

    @property
    def height(self) -> int:
        """Points from this line's middle to the next one's, if that is of the same size."""
        return line_height(self.size)


def line_height(size: float) -> int:
    """Points that a line takes from top to bottom, in letters of a size."""
    return round(size * 1.3)


def clean(text: str) -> str:
    """The text on one line, without characters that no XML file may hold.

    >>> clean("two\\nlines" + chr(7))
    'two lines\ufffd'
    """
    return " ".join(legal(text).split())


def legal(text: str) -> str:
    """The text with a replacement sign for each character that no XML file may hold."""
    return _FORBIDDEN.sub("\ufffd", text)


def width(text: str, size: float, *, bold: bool = False) -> float:
    """Points that the text takes in Helvetica or a face of the same widths; other scripts are estimated."""
    units = sum(_WIDTHS.get(letter) or _estimate(letter) for letter in text)
    return units * size / 1000 * (_BOLD if bold else 1.0)


def shorten(text: str, room: float, size: float, *, bold: bool = False) -> str:
    """The text itself where it fits into `room` points, else its beginning and end around an ellipsis.

    >>> shorten("stage1.unit1.f", 200, 12)
    'stage1.unit1.f'
    >>> shorten("a_name_that_goes_on_and_on_for_ever.f", 100, 12)
    'a_name_…_ever.f'
    """
    text = clean(text)
    if width(text, size, bold=bold) <= room:
        return text
    left = room - width("…", size, bold=bold)
    head = tail = 0
    while head + tail < len(text):
        taken = head + tail + 1
        more = (head + 1, tail) if taken % 2 else (head, tail + 1)
        if width(text[: more[0]] + text[len(text) - more[1] :], size, bold=bold) > left:
            break
        head, tail = more
    return text[:head].rstrip() + "…" + text[len(text) - tail :].lstrip()


def html_label(*lines: Line) -> str:
    """The lines as graphviz's HTML-like label, each in the middle of a row as high as itself."""
    rows: list[str] = []
    for line in lines:
        text = escape(clean(line.text) or " ").replace("\\", "\\\\")
        text = f"<b>{text}</b>" if line.bold else text
        font = f'<font point-size="{line.size:g}" color="{light(line.role)}">{text}</font>'
        # Graphviz sets bold text a little higher than other text.
        form = f'height="{line.height + 1}" valign="bottom"' if line.bold else f'height="{line.height}"'
        rows.append(f"<tr><td {form}>{font}</td></tr>")
    return f'<<table border="0" cellspacing="0" cellpadding="0">{"".join(rows)}</table>>'


def _estimate(letter: str) -> int:
    if unicodedata.combining(letter):
        return 0
    return 1000 if unicodedata.east_asian_width(letter) in "WFA" else 600
