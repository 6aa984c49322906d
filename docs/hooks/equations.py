"""A hook of mkdocs: equations between dollars become MathML, which browsers set without a script.

It works on what Markdown made of a page, whatever the theme: there code cannot be taken for an equation, and
docstrings and included tables have theirs set too. Of mkdocs it needs this one event. Another builder would
call `equations_set` on each page that it has made.
"""

from __future__ import annotations

import re
from html import unescape

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.structure.pages import Page

# A letter alone is set upright as text: the converter would make it italic.
UPRIGHT = re.compile(r"\\mathrm\{(\w)\}")
# As pymdownx.arithmatex writes them in its generic form.
EQUATION = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


# Equations beside each other, which a narrow window sets one below the other.
APART = re.compile(r"(?:\\qquad\s*)+(?:\\quad\s*)?(?![^{]*\})")


def on_page_content(html: str, page: Page, **_: object) -> str:
    """The page with its equations set.

    Raises:
        PluginError: an equation cannot be set; the text names the page.
    """
    try:
        return equations_set(html, page.file.src_uri)
    except ValueError as error:
        raise PluginError(str(error)) from error


def equations_set(html: str, where: str) -> str:
    """HTML in which equations are MathML.

    Raises:
        ValueError: an equation cannot be set; the text says `where`.
    """
    return EQUATION.sub(lambda match: _set(match, where), html)


def _set(match: re.Match[str], where: str) -> str:
    latex = UPRIGHT.sub(r"\\text{\1}", unescape(match[2]).strip())
    if match[1] == "span":
        return _mathml(latex, "inline", where)
    parts = [_mathml(part, "block", where) for part in APART.split(latex) if part.strip()]
    return parts[0] if len(parts) == 1 else f'<div class="equations">{"".join(parts)}</div>'


def _mathml(latex: str, display: str, where: str) -> str:
    try:
        found = convert(latex, display=display)
    except Exception as error:
        raise ValueError(f"{where}: the equation {latex!r} cannot be set: {error!r}") from error
    if "\\" in found:
        raise ValueError(f"{where}: the equation {latex!r} has a command that is not known")
    return found
