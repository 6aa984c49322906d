"""Where tutorials put their pictures, and how charts look: readable on light and dark.

Pictures go into the folder runs/tutorials, or the one that REVGRAPH_PICTURES names; in a notebook they are
shown besides. A tutorial's notebook carries this file as its first cell of code.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from revgraph.drawing.charts import INK, INKED, STYLE, legible

# Mid-tones that can be told from each other without colour vision, too.
BLUE, ORANGE, GREEN, PURPLE = "#3f86c9", "#c77d17", "#2f9a72", "#a06fc4"


def picture(name: str) -> Path:
    """The path of a picture, in a folder that is there."""
    folder = Path(os.environ.get("REVGRAPH_PICTURES", "runs/tutorials"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder / name


def show(path: Path) -> None:
    """Show a picture or a page below a notebook's cell; a script leaves it in its file."""
    python = sys.modules.get("IPython")
    if python is None or python.get_ipython() is None:
        return
    from IPython.display import SVG, IFrame, display

    display(
        IFrame(str(path), "100%", 640)
        if path.suffix == ".html"
        else SVG(filename=str(path))
    )


@contextmanager
def chart(
    name: str, title: str, width: float = 6.0, height: float = 3.2, count: int = 1
) -> Iterator[Any]:
    """Axes to draw on, or `count` of them side by side, that become the picture `name`."""
    with rc_context(STYLE | dict.fromkeys(INKED, INK)):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes: Any = figure.subplots(1, count)
        yield axes
        each: Axes
        for each in figure.axes:
            each.spines[["top", "right"]].set_visible(False)
            if each.get_legend_handles_labels()[0]:
                each.legend(frameon=False)
        path = picture(name)
        svg = io.StringIO()
        metadata = {"Date": None, "Title": title}
        figure.savefig(svg, format="svg", transparent=True, metadata=metadata)
        path.write_text(legible(svg.getvalue()), encoding="utf-8")
    show(path)
