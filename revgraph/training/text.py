"""Text as bytes: the documentation that comes inside Python, a file, or a folder of them."""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from revgraph.errors import DataError
from revgraph.specs import InputShape
from revgraph.training.errors import TrainingError

LENGTH = 128
TEST_SHARE = 0.1
LARGEST = 2**30


@dataclass(frozen=True, slots=True, eq=False)
class Passage:
    """A stretch of text, cut into windows of `length` bytes; `bytes` is [N], uint8."""

    bytes: Tensor
    length: int

    def __len__(self) -> int:
        """How many windows there are one after the other, each with a byte after it."""
        return (len(self.bytes) - 1) // self.length

    def windows(self, starts: Tensor) -> tuple[Tensor, Tensor]:
        """The windows that begin at `starts`, [N], and the byte after each of theirs: both [N, length]."""
        found = self.bytes[starts[:, None] + torch.arange(self.length + 1)].long()
        return found[:, :-1], found[:, 1:]


@dataclass(frozen=True, slots=True, eq=False)
class Text:
    """A text whose every byte is to be told from those before it: the front to train, the end to test.

    `digest` is the SHA-256 of the whole.
    """

    name: str
    train: Passage
    test: Passage
    digest: str

    @property
    def classes(self) -> int:
        return 256

    @property
    def samples(self) -> str:
        return "windows"

    @property
    def judged(self) -> str:
        return "bytes"

    def drawn(
        self, chosen: Tensor, generator: torch.Generator, *, start: int, of: int
    ) -> tuple[Tensor, Tensor]:
        """Windows at random places: each chosen one moved on by up to its own length, round the end."""
        train = self.train
        moved = torch.randint(train.length, (of,), generator=generator)[start : start + len(chosen)]
        return train.windows((chosen * train.length + moved) % (len(train.bytes) - train.length))

    def tested(self, part: slice) -> tuple[Tensor, Tensor]:
        return self.test.windows(torch.arange(len(self.test))[part] * self.test.length)

    def bits_per_byte(self, loss: float) -> float:
        return loss / math.log(2)

    def fitted(self, shape: InputShape) -> Text:
        if shape.dtype.is_floating_point or shape.dtype.is_complex or len(shape.shape) != 2:
            kind = str(shape.dtype).removeprefix("torch.")
            raise DataError(
                f"the network takes {shape.name}, {list(shape.shape)} of {kind}, and {self.name} gives "
                "bytes, [N, length] of int64: choose a language model, such as reversible-lm"
            )
        return _of_length(self, shape.shape[1])

    def identity(self) -> dict[str, Any]:
        return {
            "data": self.name,
            "training bytes": len(self.train.bytes),
            "test bytes": len(self.test.bytes),
            "window": self.train.length,
            "sha256": self.digest,
        }


def load_text(path: Path | None = None, length: int = LENGTH) -> Text:
    """The text at `path`, or else the English documentation inside Python (`pydoc_data.topics`).

    A folder's text is that of its UTF-8 files one after the other, by name, those of folders in it too. The
    last tenth is the test. Of Python's documentation each paragraph stands once, though topics share many, so
    that the test has none of the training's. What it says differs with Python's version.

    Raises:
        DataError: the file or folder is missing, cannot be read, holds too little text, or too much.
        TrainingError: this Python comes without its documentation.

    Example:
        >>> text = load_text()
        >>> len(text.train.bytes) > 200_000, len(text.train) == (len(text.train.bytes) - 1) // 128
        (True, True)
    """
    content = _documentation() if path is None else _read(path)
    cut = len(content) - int(TEST_SHARE * len(content))
    bytes_ = torch.frombuffer(bytearray(content or b"\0"), dtype=torch.uint8)
    digest = hashlib.sha256(content).hexdigest()
    return _of_length(Text("text", Passage(bytes_[:cut], 1), Passage(bytes_[cut:], 1), digest), length)


def _of_length(text: Text, length: int) -> Text:
    shorter = min(len(text.train.bytes), len(text.test.bytes))
    if shorter <= length:
        raise DataError(
            f"the text is too short: of {len(text.train.bytes):,} bytes to train and {len(text.test.bytes):,}"
            f" to test each must be more than a window of {length:,}. Give more text, or a network of "
            "shorter windows."
        )
    return replace(text, train=Passage(text.train.bytes, length), test=Passage(text.test.bytes, length))


def _documentation() -> bytes:
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise TrainingError(
            "this Python comes without pydoc_data, its documentation: give a text of your own, text:FILE"
        ) from error
    paragraphs = "\n\n".join(topics[name] for name in sorted(topics)).split("\n\n")
    return "\n\n".join(dict.fromkeys(paragraphs)).encode()


def _read(path: Path) -> bytes:
    if path.is_file():
        return _file(path, LARGEST)
    if not path.is_dir():
        raise DataError(f"text: there is no file or folder {str(path)!r}")
    parts: list[bytes] = []
    left = LARGEST
    for folder, inner, names in os.walk(path):
        inner.sort()
        for file in (Path(folder, name) for name in sorted(names)):
            if file.is_file() and _is_text(content := _file(file, left)):
                parts.append(content)
                left -= len(content)
    if not parts:
        raise DataError(f"text: no file in {str(path)!r} is UTF-8 text")
    return b"\n".join(parts)


def _file(path: Path, most: int) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise DataError(f"text: cannot read {str(path)!r}: {error.strerror or error}") from error
    if len(content) > most:
        raise DataError(f"text: with {str(path)!r} there are more than {LARGEST:,} bytes: give less text")
    return content


def _is_text(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return b"\0" not in content
