"""Runs a notebook cell by cell, and writes down what each printed and drew. A program of its own.

    python run_cells.py NOTEBOOK PICTURES RESULT

The cells share one namespace, to which nothing is given, and can import nothing from beside the notebook.
SVG files that a cell leaves in the folder PICTURES are its pictures, and so are pages, HTML files. RESULT is
JSON: for every cell of code that ran, its id, what it printed and the names of its pictures; `failed` is the
id of a cell that raised.
"""

from __future__ import annotations

import contextlib
import io
import json
import linecache
import os
import sys
import traceback
import types
import warnings
from pathlib import Path


def run(notebook: Path, pictures: Path) -> dict[str, object]:
    """What the cells of code did, up to the first that fails."""
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    done: list[dict[str, object]] = []
    seen: set[str] = set()
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] != "code":
            continue
        printed, text, name = io.StringIO(), "".join(cell["source"]), f"<{cell['id']}>"
        # A traceback shows the cell's lines.
        linecache.cache[name] = len(text), None, text.splitlines(keepends=True), name
        try:
            code = compile(text, name, "exec", dont_inherit=True)
            with contextlib.redirect_stdout(printed):
                exec(code, module.__dict__)
        except BaseException as error:
            traceback.print_exc()
            return {"cells": done, "failed": cell["id"], "error": f"{type(error).__name__}: {error}"}
        new = sorted({path.name for form in ("*.svg", "*.html") for path in pictures.glob(form)} - seen)
        seen.update(new)
        done.append({"cell": cell["id"], "printed": printed.getvalue(), "pictures": new})
    return {"cells": done}


if __name__ == "__main__":
    source, folder, result = map(Path, sys.argv[1:])
    # This program's own folder, the first place where Python looks for modules, is none of the notebook's.
    del sys.path[0]
    warnings.simplefilter("error")
    # What other libraries warn of while they are imported is not the notebook's.
    warnings.filterwarnings("default", category=DeprecationWarning)
    os.environ["REVGRAPH_PICTURES"] = str(folder)
    found = run(source, folder)
    result.write_text(json.dumps(found), encoding="utf-8")
    sys.exit("failed" in found)
