"""CIFAR's binary files: read as documented, and refused with a reason when they are something else."""

from __future__ import annotations

import gzip
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from revgraph.errors import DataError
from revgraph.training import cifar
from revgraph.training.data import load_data
from revgraph.training.images import normalised

RECORDS = 6


def small(layout: cifar.Layout) -> cifar.Layout:
    """The same layout with few records a file."""
    return replace(
        layout,
        train=tuple(replace(file, records=RECORDS) for file in layout.train),
        test=replace(layout.test, records=RECORDS),
    )


def write(folder: Path, layout: cifar.Layout) -> dict[str, np.ndarray]:
    """Files in the documented format: the label bytes, then 1,024 red, 1,024 green and 1,024 blue bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    written = {}
    for file in (*layout.train, layout.test):
        labels = np.stack([random.integers(0, count, file.records) for count in layout.labels], axis=1)
        pixels = random.integers(0, 256, (file.records, 3072))
        records = np.concatenate([labels, pixels], axis=1).astype(np.uint8)
        records.tofile(folder / file.name)
        written[file.name] = records
    return written


CIFAR10, CIFAR100 = small(cifar.CIFAR10), small(cifar.CIFAR100)


def test_documented_sizes() -> None:
    assert cifar.CIFAR10.record_bytes == 3073 and cifar.CIFAR100.record_bytes == 3074
    assert [file.name for file in cifar.CIFAR10.train] == [f"data_batch_{i}.bin" for i in range(1, 6)]
    assert sum(file.records for file in cifar.CIFAR10.train) == 50_000
    assert sum(file.records for file in cifar.CIFAR100.train) == 50_000
    assert cifar.CIFAR10.test.records == cifar.CIFAR100.test.records == 10_000


def test_cifar10_is_read_as_documented(tmp_path: Path) -> None:
    written = write(tmp_path, CIFAR10)
    data = cifar.load_cifar(tmp_path, CIFAR10)
    assert (data.name, data.classes, data.flip) == ("cifar10", 10, True)
    assert len(data.train) == 5 * RECORDS and len(data.test) == RECORDS
    third = written["data_batch_3.bin"]
    assert data.train.labels[2 * RECORDS : 3 * RECORDS].tolist() == third[:, 0].tolist()
    image = data.train.pixels[2 * RECORDS + 1]
    assert image.dtype == torch.uint8 and image.shape == (3, 32, 32)
    red, green, blue = third[1, 1:].reshape(3, 1024)
    assert image[0, 0].tolist() == red[:32].tolist()  # the first 32 bytes are the first row's red
    assert image[1].flatten().tolist() == green.tolist()
    assert image[2].flatten().tolist() == blue.tolist()


def test_cifar100_learns_the_fine_label(tmp_path: Path) -> None:
    written = write(tmp_path, CIFAR100)
    data = cifar.load_cifar(tmp_path, CIFAR100)
    assert data.classes == 100
    assert data.train.labels.tolist() == written["train.bin"][:, 1].tolist()
    assert data.test.pixels[0].flatten().tolist() == written["test.bin"][0, 2:].tolist()


def test_mean_image_of_the_training_split_is_subtracted(tmp_path: Path) -> None:
    write(tmp_path, CIFAR10)
    data = cifar.load_cifar(tmp_path, CIFAR10)
    expected = data.train.pixels.double().mean(0) / 255
    assert torch.allclose(data.mean.double(), expected, atol=1e-7)
    images = normalised(data.train.pixels, data.mean)
    assert images.dtype == torch.float32
    assert images.mean(0).abs().max() < 1e-6


def test_folder_of_the_unpacked_archive_is_found_inside(tmp_path: Path) -> None:
    write(tmp_path / "cifar-10-batches-bin", CIFAR10)
    assert len(cifar.load_cifar(tmp_path, CIFAR10).train) == 5 * RECORDS


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no folder '.*gone'\. Unpack cifar-10-binary\.tar\.gz"):
        load_data(f"cifar10:{tmp_path / 'gone'}")


def test_missing_file_is_named(tmp_path: Path) -> None:
    write(tmp_path, CIFAR10)
    (tmp_path / "data_batch_4.bin").unlink()
    with pytest.raises(DataError, match=r"lacks data_batch_4\.bin\. Unpack"):
        cifar.load_cifar(tmp_path, CIFAR10)


def test_python_version_is_never_unpickled(tmp_path: Path) -> None:
    for index in range(1, 6):
        (tmp_path / f"data_batch_{index}").write_bytes(pickle.dumps({b"data": 0}))
    with pytest.raises(
        DataError, match=r"holds the Python version: Python pickles, which revgraph never reads"
    ):
        load_data(f"cifar10:{tmp_path}")


def test_packed_archive_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "cifar-100-binary.tar.gz").write_bytes(gzip.compress(b"x"))
    with pytest.raises(DataError, match=r"holds cifar-100-binary\.tar\.gz still packed"):
        load_data(f"cifar100:{tmp_path}")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickle_under_a_binary_name_is_recognised(tmp_path: Path, protocol: int) -> None:
    write(tmp_path, CIFAR10)
    (tmp_path / "test_batch.bin").write_bytes(pickle.dumps({"a": 1}, protocol=protocol))
    with pytest.raises(
        DataError, match=r"test_batch\.bin' is in the form of Python pickles, which revgraph never reads"
    ):
        cifar.load_cifar(tmp_path, CIFAR10)


def test_gzip_under_a_binary_name_is_recognised(tmp_path: Path) -> None:
    write(tmp_path, CIFAR10)
    (tmp_path / "data_batch_1.bin").write_bytes(gzip.compress(b"x" * 100))
    with pytest.raises(DataError, match=r"data_batch_1\.bin' is a gzip archive: unpack it first"):
        cifar.load_cifar(tmp_path, CIFAR10)


def test_truncated_file_says_how_much_is_there(tmp_path: Path) -> None:
    written = write(tmp_path, CIFAR10)
    (tmp_path / "data_batch_2.bin").write_bytes(written["data_batch_2.bin"].tobytes()[:-1000])
    match = (
        r"data_batch_2\.bin' is short: 17,438 bytes \(5 records and 2,073 bytes of another\) "
        r"instead of 18,438 \(6 records of 3,073\)\. Download and unpack"
    )
    with pytest.raises(DataError, match=match):
        cifar.load_cifar(tmp_path, CIFAR10)


def test_short_file_of_whole_records(tmp_path: Path) -> None:
    written = write(tmp_path, CIFAR100)
    written["test.bin"][:4].tofile(tmp_path / "test.bin")
    with pytest.raises(DataError, match=r"test\.bin' is short: .* \(4 records\) instead of"):
        cifar.load_cifar(tmp_path, CIFAR100)


def test_empty_file_is_short(tmp_path: Path) -> None:
    write(tmp_path, CIFAR10)
    (tmp_path / "test_batch.bin").write_bytes(b"")
    with pytest.raises(DataError, match="is short: 0 bytes"):
        cifar.load_cifar(tmp_path, CIFAR10)


def test_cifar100_file_given_as_cifar10_is_long_or_foreign(tmp_path: Path) -> None:
    written = write(tmp_path, CIFAR10)
    content = np.concatenate([written["test_batch.bin"].ravel(), [0] * 6]).astype(np.uint8)
    content.tofile(tmp_path / "test_batch.bin")
    with pytest.raises(DataError, match="is long"):
        cifar.load_cifar(tmp_path, CIFAR10)


def test_label_out_of_range_names_its_record(tmp_path: Path) -> None:
    written = write(tmp_path, CIFAR100)
    written["train.bin"][3, 1] = 100
    written["train.bin"].tofile(tmp_path / "train.bin")
    with pytest.raises(DataError, match=r"record 3 has the label 100, and labels there go from 0 to 99"):
        cifar.load_cifar(tmp_path, CIFAR100)


@pytest.mark.parametrize("name", ["imagenet", "digits:here", ""])
def test_unknown_data_set_lists_the_known(name: str) -> None:
    with pytest.raises(DataError, match=r"Give digits, cifar10:FOLDER or cifar100:FOLDER"):
        load_data(name)


def test_cifar_needs_a_folder() -> None:
    with pytest.raises(DataError, match=r"cifar10 needs the folder of its binary files: cifar10:FOLDER"):
        load_data("cifar10")
