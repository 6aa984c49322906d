"""A page of its own around a drawing: one HTML file that asks nothing of any other place."""

from __future__ import annotations

from html import escape

from revgraph.drawing.palette import PAINTS

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="generator" content="revgraph">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
body {{ margin: 0; background: {ground.light}; color: {ink.light}; }}
main {{ padding: 1rem; overflow-x: auto; }}
svg {{ display: block; margin: 0 auto; max-width: 100%; height: auto; }}
@media screen and (prefers-color-scheme: dark) {{ body {{ background: {ground.dark}; color: {ink.dark}; }} }}
</style>
</head>
<body>
<main>
{svg}
</main>
</body>
</html>
"""


def page(svg: str, title: str) -> str:
    """The page that shows a finished SVG, in light and dark as the reader prefers."""
    return _PAGE.format(title=escape(title), svg=svg, ground=PAINTS["ground"], ink=PAINTS["ink"])
