"""Runs a percent script cell by cell, and writes down what each printed and drew. A program of its own.

    python run_cells.py SCRIPT PICTURES RESULT

SVG files that a cell leaves in the folder PICTURES are its pictures, and so are reports, HTML files. RESULT
is JSON: for every cell that ran its index, what it printed and the names of its pictures; `failed` is the
index of a cell that raised.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import traceback
import types
import warnings
from pathlib import Path

from cells import cells


def run(script: Path, pictures: Path) -> dict[str, object]:
    """What the cells of code did, up to the first that fails."""
    module = types.ModuleType("__main__")
    module.__file__ = str(script)
    sys.modules["__main__"] = module
    sys.path.insert(0, str(script.parent))
    done: list[dict[str, object]] = []
    seen: set[str] = set()
    for index, cell in enumerate(cells(script.read_text(encoding="utf-8"))):
        if cell.markdown:
            continue
        printed = io.StringIO()
        try:
            # Leading newlines make a traceback point at the line of the script.
            code = compile("\n" * (cell.line - 1) + cell.text, str(script), "exec", dont_inherit=True)
            with contextlib.redirect_stdout(printed):
                exec(code, module.__dict__)
        except BaseException as error:
            traceback.print_exc()
            return {"cells": done, "failed": index, "error": f"{type(error).__name__}: {error}"}
        new = sorted({path.name for form in ("*.svg", "*.html") for path in pictures.glob(form)} - seen)
        seen.update(new)
        done.append({"cell": index, "printed": printed.getvalue(), "pictures": new})
    return {"cells": done}


if __name__ == "__main__":
    source, folder, result = map(Path, sys.argv[1:])
    warnings.simplefilter("error")
    # What other libraries warn of while they are imported is not the script's.
    warnings.filterwarnings("default", category=DeprecationWarning)
    os.environ["REVGRAPH_PICTURES"] = str(folder)
    found = run(source, folder)
    result.write_text(json.dumps(found), encoding="utf-8")
    sys.exit("failed" in found)
