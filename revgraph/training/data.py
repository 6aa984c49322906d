"""Data sets by the name that the command line gives them."""

from __future__ import annotations

from pathlib import Path

from revgraph.errors import DataError
from revgraph.training.cifar import CIFAR10, CIFAR100, load_cifar
from revgraph.training.digits import load_digits
from revgraph.training.tasks import Task
from revgraph.training.text import load_text

FORMS = "digits, cifar10:FOLDER or cifar100:FOLDER for images, text or text:PATH for text"


def load_data(name: str) -> Task:
    """The data set called `name`: `digits`, `cifar10:FOLDER`, `cifar100:FOLDER`, `text` or `text:PATH`.

    Raises:
        DataError: there is no such data set, or its files are missing, short or not what they should be.

    Example:
        >>> data = load_data("digits")
        >>> len(data.train), len(data.test), data.classes
        (1437, 360, 10)
    """
    kind, _, folder = name.partition(":")
    if kind == "digits" and not folder:
        return load_digits()
    if kind == "text":
        return load_text(Path(folder).expanduser() if folder else None)
    layouts = {layout.name: layout for layout in (CIFAR10, CIFAR100)}
    if kind not in layouts:
        raise DataError(f"there is no data set {name!r}. Give {FORMS}.")
    if not folder:
        raise DataError(f"{kind} needs the folder of its binary files: {kind}:FOLDER.")
    return load_cifar(Path(folder).expanduser(), layouts[kind])
