"""Where a specification comes from: shipped names, files, text."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from revgraph import specs
from revgraph.errors import SpecError

TEXT = "inputs: {x: [4]}\nlayers:\n  - a: {Linear: [4, 2]}\n"


def message(source: object) -> str:
    with pytest.raises(SpecError) as caught:
        specs.build(source)  # pyright: ignore[reportArgumentType]
    return str(caught.value)


def test_a_file_is_named_by_path_or_text_and_names_the_network(tmp_path: Path) -> None:
    path = tmp_path / "tiny-net.yml"
    path.write_bytes(b"\xef\xbb\xbf" + TEXT.replace("\n", "\r\n").encode())
    for source in (path, str(path)):
        assert specs.build(source).name == "tiny-net"
    assert specs.build(TEXT).name == "network"


def test_an_unknown_name_lists_the_shipped_ones() -> None:
    assert message("revnet38").startswith(
        "no network is named 'revnet38'. Did you mean 'revnet-38'? The names are glow, haar-revnet, "
    )
    assert message("alexnet").endswith("; a file's path ends in .yaml.")


def test_a_missing_file_hints_at_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "my-net.yaml").write_text(TEXT)
    missing = str(tmp_path / "mynet.yaml")
    assert message(missing) == f"there is no file {missing!r}. Did you mean 'my-net.yaml'?"
    assert message("nowhere/at/all.yaml") == "there is no file 'nowhere/at/all.yaml'"


def test_a_directory_pipe_or_device_is_not_opened(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.yaml"
    os.mkfifo(pipe)
    for path in (tmp_path, pipe, Path("/dev/zero")):
        assert message(path) == f"{path} is not a file. Give the path of a YAML file."


def test_unreadable_paths_are_spec_errors() -> None:
    assert "cannot be read" in message("a/" * 5000)
    assert "cannot be read" in message("a/\0.yaml")


def test_a_file_that_is_not_utf8_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"name: a\ndescription: caf\xe9\n")
    assert message(path) == f"{path}:2: the file is not UTF-8 text (byte 0xe9). Save it as UTF-8."
    path.write_bytes(TEXT.encode("utf-16"))
    assert "the file is not UTF-8 text" in message(path)


def test_a_huge_file_is_not_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "huge.yaml"
    with path.open("wb") as file:
        file.truncate(10**12)
    assert message(path) == f"{path}: the file is larger than the 32768 bytes a specification may have"


@pytest.mark.parametrize("source", [None, 3, b"inputs: {}", ["inputs"]])
def test_other_types_are_refused(source: object) -> None:
    assert message(source) == (
        "a network is loaded from a shipped name, a YAML file's path, YAML text or a mapping, not from "
        f"{type(source).__name__}"
    )
