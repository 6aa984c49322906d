"""CIFAR-10 and CIFAR-100 from their binary files.

The format is the one documented by Krizhevsky (2009) at https://www.cs.toronto.edu/~kriz/cifar.html.
The same page offers a Python version made of pickles. Those are never read: unpickling runs code.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from revgraph.errors import DataError
from revgraph.training.images import PIXELS, Data, Images, mean_image

IMAGE_BYTES = 3 * 32 * 32


@dataclass(frozen=True, slots=True)
class BinaryFile:
    """One file: its name and how many records it holds."""

    name: str
    records: int


@dataclass(frozen=True, slots=True)
class Layout:
    """How a data set is laid out: a record is one byte for each label, then the red, green and blue planes.

    `labels` are the numbers of classes of each label byte, in order; the last one is the label that is
    learned. `folder` is the name that the unpacked archive has.
    """

    name: str
    folder: str
    archive: str
    labels: tuple[int, ...]
    train: tuple[BinaryFile, ...]
    test: BinaryFile

    @property
    def record_bytes(self) -> int:
        return len(self.labels) + IMAGE_BYTES


CIFAR10 = Layout(
    name="cifar10",
    folder="cifar-10-batches-bin",
    archive="cifar-10-binary.tar.gz",
    labels=(10,),
    train=tuple(BinaryFile(f"data_batch_{index}.bin", 10_000) for index in range(1, 6)),
    test=BinaryFile("test_batch.bin", 10_000),
)
CIFAR100 = Layout(
    name="cifar100",
    folder="cifar-100-binary",
    archive="cifar-100-binary.tar.gz",
    labels=(20, 100),
    train=(BinaryFile("train.bin", 50_000),),
    test=BinaryFile("test.bin", 10_000),
)

PICKLES = "Python pickles, which revgraph never reads because unpickling runs code"
FOREIGN = {
    b"\x1f\x8b": "a gzip archive: unpack it first",
    b"PK": "a zip archive: unpack it first",
    **{bytes((0x80, protocol)): f"in the form of {PICKLES}" for protocol in (2, 3, 4, 5)},
}


def load_cifar(folder: Path, layout: Layout) -> Data:
    """The data set in `folder`, or in the archive's own folder inside it; pixels stay uint8.

    Raises:
        DataError: a file is missing, short, truncated or not a CIFAR binary file.
    """
    folder = _locate(folder, layout)
    parts = [_read(folder / file.name, file.records, layout) for file in layout.train]
    train = Images(torch.cat([part.pixels for part in parts]), torch.cat([part.labels for part in parts]))
    return Data(
        name=layout.name,
        classes=layout.labels[-1],
        train=train,
        test=_read(folder / layout.test.name, layout.test.records, layout),
        mean=mean_image(train.pixels),
        flip=True,
    )


def _locate(folder: Path, layout: Layout) -> Path:
    if not folder.is_dir():
        raise DataError(
            f"{layout.name}: there is no folder {str(folder)!r}. "
            f"Unpack {layout.archive} ({layout.name}'s binary version) and give its folder."
        )
    names = [file.name for file in (*layout.train, layout.test)]
    inner = folder / layout.folder
    if inner.is_dir() and not any((folder / name).exists() for name in names):
        folder = inner
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise DataError(
            f"{layout.name}: {str(folder)!r} lacks {', '.join(missing)}{_hint(folder, layout)}. "
            f"Unpack {layout.archive} ({layout.name}'s binary version) there."
        )
    return folder


def _hint(folder: Path, layout: Layout) -> str:
    pickles = [folder / Path(file.name).stem for file in (*layout.train, layout.test)]
    if any(path.is_file() for path in pickles):
        return f", and holds the Python version: {PICKLES}"
    return f", and holds {layout.archive} still packed" if (folder / layout.archive).is_file() else ""


def _read(path: Path, records: int, layout: Layout) -> Images:
    expected = records * layout.record_bytes
    try:
        size = path.stat().st_size
        content = np.fromfile(path, dtype=np.uint8, count=min(size, expected))
    except OSError as error:
        raise DataError(f"{layout.name}: cannot read {str(path)!r}: {error.strerror or error}") from error
    foreign = FOREIGN.get(content[:2].tobytes())
    if foreign is not None:
        raise DataError(
            f"{layout.name}: {str(path)!r} is {foreign}. "
            f"Use the file of the same name from {layout.archive} ({layout.name}'s binary version)."
        )
    if not len(content) == size == expected:
        whole, rest = divmod(size, layout.record_bytes)
        found = f"{whole:,} records" + (f" and {rest:,} bytes of another" if rest else "")
        raise DataError(
            f"{layout.name}: {str(path)!r} is {'short' if size < expected else 'long'}: "
            f"{size:,} bytes ({found}) instead of {expected:,} "
            f"({records:,} records of {layout.record_bytes:,}). Download and unpack {layout.archive} again."
        )
    table = torch.from_numpy(content.reshape(records, layout.record_bytes))
    count = len(layout.labels)
    _verify_labels(table[:, :count], path, layout)
    return Images(
        pixels=table[:, count:].reshape(records, *PIXELS).contiguous(),
        labels=table[:, count - 1].long(),
    )


def _verify_labels(labels: Tensor, path: Path, layout: Layout) -> None:
    wrong = (labels >= torch.tensor(layout.labels)).nonzero()
    if len(wrong):
        record, column = wrong[0].tolist()
        raise DataError(
            f"{layout.name}: {str(path)!r} is not a {layout.name} file, or is damaged: record {record:,} has "
            f"the label {labels[record, column]}, and labels there go from 0 to {layout.labels[column] - 1}. "
            f"Download and unpack {layout.archive} again."
        )
