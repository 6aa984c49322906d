"""Text is measured, shortened in the middle, and escaped."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from revgraph.drawing.lettering import Line, clean, html_label, shorten, width


@given(st.text(), st.floats(20, 200))
def test_shortened_text_fits_and_keeps_both_ends(text: str, room: float) -> None:
    short = shorten(text, room, 10)
    assert width(short, 10) <= room
    if short != clean(text):
        head, _, tail = short.partition("\u2026")
        assert clean(text).startswith(head)
        assert clean(text).endswith(tail)


@pytest.mark.parametrize(("text", "points"), [("", 0), ("iiii", 8.88), ("WWWW", 37.76), ("unit1.f", 27.24)])
def test_widths_are_those_of_helvetica(text: str, points: float) -> None:
    assert width(text, 10) == pytest.approx(points)
    assert width(text, 20, bold=True) == pytest.approx(2 * points * 1.07)


def test_other_scripts_are_estimated() -> None:
    assert width("\u65e5\u672c", 10) == 20
    assert width("e\u0301", 10) == width("e", 10)


def test_labels_escape_markup_and_graphviz_sequences() -> None:
    label = html_label(Line('<a href="x">&\\N'))
    assert "&lt;a href=&quot;x&quot;&gt;&amp;\\\\N" in label
    assert label.startswith("<<table ")
