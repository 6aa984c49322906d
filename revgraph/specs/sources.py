"""Finding a specification: a shipped name, a YAML file, YAML text or a Python mapping."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeAlias

from revgraph.errors import SpecError
from revgraph.specs.hints import listed, meant, shortened
from revgraph.specs.limits import Limits
from revgraph.specs.mappings import read_mapping
from revgraph.specs.trees import Tree
from revgraph.specs.yaml_text import read_yaml

Source: TypeAlias = "str | os.PathLike[str] | Mapping[str, Any]"

MODELS = files("revgraph") / "models"
SUFFIXES = (".yaml", ".yml")
TEXT = "text"


def shipped() -> list[str]:
    """The names of the networks that come with revgraph: by name, and within a family the smaller first.

    Example:
        >>> from revgraph import specs
        >>> "revnet-38" in specs.shipped()
        True
    """
    names = [entry.name.removesuffix(".yaml") for entry in MODELS.iterdir() if entry.name.endswith(".yaml")]
    return sorted(
        names, key=lambda name: [part.zfill(8) if part.isdigit() else part for part in re.split("-", name)]
    )


def read(source: Source, limits: Limits) -> tuple[Tree, str]:
    """The tree that the source holds, and the name for a network that does not name itself.

    A text of several lines, or one that starts with "{", is YAML; any other is a shipped name or a path.

    Raises:
        SpecError: there is no such network or file, it cannot be read, or it is no YAML.
    """
    if isinstance(source, Mapping):
        return read_mapping(source, "spec", limits), "network"
    if isinstance(source, os.PathLike):
        return _file(Path(source), limits)
    if not isinstance(source, str):
        raise SpecError(
            f"a network is loaded from a shipped name, a YAML file's path, YAML text or a mapping, "
            f"not from {type(source).__name__}"
        )
    if "\n" in source or source.lstrip().startswith("{"):
        return read_yaml(source, TEXT, limits), "network"
    names = shipped()
    if source in names:
        name = f"{source}.yaml"
        return read_yaml((MODELS / name).read_text(encoding="utf-8"), name, limits), source
    if source.endswith(SUFFIXES) or os.sep in source:
        return _file(Path(source), limits)
    raise SpecError(
        f"no network is named {shortened(source)}.{meant(source, names)} "
        f"The names are {listed(names)}; a file's path ends in .yaml."
    )


def _file(path: Path, limits: Limits) -> tuple[Tree, str]:
    try:
        # Opening a pipe would wait for a writer, and a device may never end: look before opening.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise SpecError(f"{path} is not a file. Give the path of a YAML file.")
        with open(path, "rb") as file:
            content = file.read(limits.text_bytes + 1)
    except FileNotFoundError:
        raise SpecError(f"there is no file {shortened(str(path), 200)}{_neighbours(path)}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SpecError(f"the file {shortened(str(path), 200)} cannot be read: {reason}") from None
    if len(content) > limits.text_bytes:
        raise SpecError(
            f"{path}: the file is larger than the {limits.text_bytes} bytes a specification may have"
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise SpecError(
            f"{path}:{line}: the file is not UTF-8 text (byte 0x{content[error.start]:02x}). Save it as "
            "UTF-8."
        ) from None
    # A file's name need not be text: what is none of it becomes a question mark.
    return read_yaml(text, str(path), limits), path.stem.encode(errors="replace").decode()


def _neighbours(path: Path) -> str:
    """A hint at the YAML file beside the missing one that is named most like it."""
    try:
        names = [entry.name for entry in os.scandir(path.parent) if entry.name.endswith(SUFFIXES)]
    except (OSError, ValueError):
        return ""
    return "." + meant(path.name, names[:1000]) if names else ""
