"""A hook of mkdocs: equations between dollars become MathML, which browsers set without a script."""

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


def on_page_content(html: str, page: Page, **_: object) -> str:
    """The page with its equations set.

    Raises:
        PluginError: an equation cannot be set; the text names the page.
    """
    return EQUATION.sub(lambda match: _set(match, page.file.src_uri), html)


def _set(match: re.Match[str], where: str) -> str:
    latex = UPRIGHT.sub(r"\\text{\1}", unescape(match[2]).strip())
    try:
        found = convert(latex, display="block" if match[1] == "div" else "inline")
    except Exception as error:
        raise PluginError(f"{where}: the equation {latex!r} cannot be set: {error!r}") from error
    if "\\" in found:
        raise PluginError(f"{where}: the equation {latex!r} has a command that is not known")
    return found
