"""Every script of tutorials/ is run and becomes a page, with what it printed and drew.

Beside the page lies its notebook, to be downloaded. The pages are files among the others in docs/tutorials,
written before the site is built, so that any builder can take them: `python docs/hooks/tutorial_pages.py`. As
a hook of mkdocs this does the same before each of its builds.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from html import escape, unescape
from itertools import groupby
from pathlib import Path
from textwrap import indent

from cells import Cell, cells
from execution import ROOT, Output, TutorialError, run_all
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from notebooks import notebook

FOLDER = ROOT / "tutorials"
WIDEST = 480.0
"""Points of a picture that is made as narrow as a phone; one that is wider is scrolled there."""
WIDTH = re.compile(r'<svg [^>]*?width="([0-9.]+)pt"')
TITLE = re.compile(r"<title[^>]*>(.*?)</title>", re.DOTALL)


def scripts() -> list[Path]:
    """The tutorials in their order."""
    return sorted(FOLDER.glob("[0-9][0-9]_*.py"))


def on_pre_build(config: MkDocsConfig) -> None:
    """Write the pages before mkdocs looks which there are."""
    try:
        write(Path(config.docs_dir) / "tutorials")
    except (TutorialError, ValueError) as error:
        raise PluginError(str(error)) from error


def write(folder: Path) -> None:
    """Write pages, pictures and notebooks into a folder, from which those of other tutorials go.

    Files that would not change are left alone: who watches the folder is not told.

    Raises:
        TutorialError: a tutorial does not run.
        ValueError: a script is no sequence of cells.
    """
    texts: dict[Path, str] = {}
    for script, outputs in zip(scripts(), run_all(scripts()), strict=True):
        name = script.stem
        texts[folder / f"{name}.md"] = page(name, cells(script.read_text(encoding="utf-8")), outputs)
        told = json.dumps(notebook(script), indent=1, ensure_ascii=False)
        texts[folder / f"{name}.ipynb"] = f"{told}\n"
        pictures = (picture for output in outputs for picture in output.pictures)
        texts |= {folder / name / picture: text for picture, text in pictures}
    for old in sorted(folder.glob("[0-9][0-9]_*")):
        for path in [old] if old.is_file() else sorted(old.iterdir()):
            if path not in texts:
                path.unlink(missing_ok=True)
    for path, text in texts.items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_name(f".{path.name}.{os.getpid()}")
            unfinished.write_text(text, encoding="utf-8")
            unfinished.replace(path)


def page(name: str, content: Sequence[Cell], outputs: Sequence[Output]) -> str:
    """A tutorial as markdown: cells in order, each followed by what it printed and its pictures.

    A report is a page of its own: it stands in this one, and there is a link to it.
    """
    output_of = {output.cell: output for output in outputs}
    parts: list[str] = []
    for answer, group in groupby(enumerate(content), key=lambda each: each[1].answer):
        texts = [_cell(cell, output_of.get(index), name) for index, cell in group]
        text = "\n\n".join(filter(None, texts))
        parts.append(hidden("note", "Answer", text) if answer else text)
    heading, _, rest = "\n\n".join(parts).partition("\n")
    source = (
        f'[Download as notebook]({name}.ipynb){{ download="{name}.ipynb" }}. `tutorials/{name}.py` is this '
        "page as a script. What it prints and draws is from this build."
    )
    return f"{heading}\n\n{source}\n{{ .source }}\n{rest}\n"


def _cell(cell: Cell, output: Output | None, name: str) -> str:
    if cell.markdown:
        return cell.text
    parts = [fenced(cell.text, "python")] if cell.text else []
    if output is not None and output.printed:
        parts.append(fenced(output.printed.rstrip("\n"), "{ .text .printed }"))
    for picture, svg in output.pictures if output is not None else ():
        if picture.endswith(".html"):
            parts.append(
                f'<iframe class="stepper {Path(picture).stem}" src="{name}/{picture}" loading="lazy" '
                f'title="{escape(_title(svg))}"></iframe>\n\n[Open it as a page of its own]({name}/{picture})'
            )
        else:
            large = "{ .large }" if _points(svg) > WIDEST else ""
            parts.append(f"![{_title(svg)}]({name}/{picture}){large}")
    if cell.drawing:
        parts = [*parts[1:], hidden("quote", "How this is drawn", parts[0])]
    return "\n\n".join(parts)


def hidden(kind: str, title: str, text: str) -> str:
    """Text that shows when the reader clicks on its title."""
    return f'??? {kind} "{title}"\n\n' + indent(text, "    ")


def fenced(text: str, language: str) -> str:
    """A block of code that may itself hold fences."""
    longest = max((len(each) for each in re.findall(r"`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def _title(svg: str) -> str:
    """What an SVG says that it shows, as the text for those who do not see it."""
    found = TITLE.search(svg)
    return re.sub(r"[\[\]\s]+", " ", unescape(found[1])).strip() if found else "A picture"


def _points(svg: str) -> float:
    """The width of an SVG in points; 0 of one that does not say it."""
    found = WIDTH.search(svg)
    return float(found[1]) if found else 0.0


if __name__ == "__main__":
    write(ROOT / "docs" / "tutorials")
