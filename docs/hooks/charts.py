"""A hook of mkdocs: letters of charts can be read on light and on dark, like those of revgraph's own."""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig

from revgraph.drawing.charts import INK, legible


def on_post_build(config: MkDocsConfig) -> None:
    """Repaint what benchmarks and tutorials drew with matplotlib in the ink of revgraph's charts."""
    for path in Path(config.site_dir).rglob("*.svg"):
        svg = path.read_text(encoding="utf-8")
        if INK in svg and "prefers-color-scheme" not in svg:
            path.write_text(legible(svg), encoding="utf-8")
