"""Rendering: from DOT text to SVG and PNG, by whichever graphviz there is."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Literal

from revgraph.errors import GraphError

DOTS_AN_INCH = 144
LARGEST = 16_000
"""Pixels of a PNG's longer side, beyond which its resolution is lowered."""


def find_graphviz() -> Path | None:
    """The system's `dot`, else the `graphviz-pure` of this environment or of the path, else None."""
    system = shutil.which("dot")
    if system is not None:
        return Path(system)
    name = "graphviz-pure"
    for folder in (sysconfig.get_path("scripts"), str(Path(sys.executable).parent), None):
        found = shutil.which(name, path=folder)
        if found is not None:
            return Path(found)
    return None


def render(source: str, form: Literal["svg", "png"], size: tuple[float, float]) -> bytes:
    """The drawing in `source`, whose positions are kept, as an SVG or PNG file; `size` is its own, in points.

    Raises:
        GraphError: there is no graphviz, or it fails.
    """
    program = find_graphviz()
    if program is None:
        raise GraphError(
            f"drawing a .{form} needs graphviz, and neither `dot` nor `graphviz-pure` is here. Install one: "
            'pip install "revgraph[draw]", or your system\'s graphviz package. '
            "A .dot file can be drawn without either."
        )
    command = [str(program), "-Kneato", "-n2", f"-T{form}"]
    if form == "png":
        command.append(f"-Gdpi={min(DOTS_AN_INCH, int(LARGEST * 72 / max(*size, 1.0)))}")
    try:
        done = subprocess.run(command, input=source.encode(), capture_output=True, check=False)
    except OSError as error:
        raise GraphError(f"graphviz at {program} does not start: {error.strerror or error}") from error
    if done.returncode != 0 or not done.stdout:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise GraphError(
            f"graphviz at {program} could not draw the .{form} (exit status {done.returncode}): "
            f"{said[-1] if said else 'it says nothing'}. A .dot file can be drawn without it."
        )
    return done.stdout
