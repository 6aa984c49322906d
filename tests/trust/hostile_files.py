"""Specification files that must be refused, as bytes; and things at a path that are no such file."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

from specs.hostile_corpus import CORPUS, HEAD

IMAGE = "inputs: {x: [3, 8, 8]}\nlayers:\n"
VAST = "  - a: {Upsample: {size: 20000}}\n"
CANARY = "touched"


def _text(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


# Well-formed specifications whose layers do not fit the example, or that ask for more than there is.
UNFIT = {
    "does not fit after a vast layer": IMAGE + VAST + "  - b: {Linear: [3, 3]}\n",
    "does not fit": HEAD + "  - a: {Linear: [5, 5]}\n",
    "vast size": IMAGE + "  - a: {Upsample: {size: 1000000000}}\n",
    "vast pooling": IMAGE + "  - a: {AdaptiveAvgPool2d: 1000000000}\n",
    "vast padding": IMAGE + "  - a: {ZeroPad2d: 100000000000000000}\n",
    "negative padding": IMAGE + "  - a: {ZeroPad2d: -1000}\n",
    "division by zero": IMAGE + "  - a: {LPPool2d: [0, 2]}\n",
    "modulo zero": IMAGE + "  - a: {GroupNorm: [0, 0]}\n",
    "no stride": IMAGE + "  - a: {Conv2d: {in_channels: 3, out_channels: 3, kernel_size: 1, stride: 0}}\n",
    "no kernel": IMAGE + "  - a: {MaxPool2d: 0}\n",
    "no groups": IMAGE + "  - a: {ChannelShuffle: 0}\n",
    "no factor": IMAGE + "  - a: {PixelUnshuffle: 0}\n",
    "too many streams": HEAD + "  - a: {Split: 200}\n",
    "wrong dimensions": HEAD + "  - a: {Flatten: [5, 9]}\n",
    "wrong dtype": HEAD + "  - a: {Embedding: [4, 4]}\n",
    "too few values": HEAD + "  - a: {Bilinear: [4, 4, 4]}\n",
    "too few heads": HEAD + "  - a: {MultiheadAttention: [4, 3]}\n",
    "input beyond memory": "inputs: {x: [1024, 1024, 64]}\nlayers: [a: ReLU]\n",
}
WRONG = {
    "fill beyond its dtype": "inputs: {x: {shape: [4], dtype: int8, fill: 1000}}\nlayers: [a: ReLU]\n",
    "endless fill": "inputs: {x: {shape: [4], dtype: int8, fill: .inf}}\nlayers: [a: ReLU]\n",
    "fill beyond half": "inputs: {x: {shape: [4], dtype: float16, fill: 1.0e+300}}\nlayers: [a: ReLU]\n",
    "nan": HEAD + "  - a: {Dropout: .nan}\n",
    "endless": HEAD + "  - a: {Dropout: .inf}\n",
    "half a surrogate pair": 'name: "\\ud800"\n' + HEAD + "  - a: ReLU\n",
    "terminal commands": 'name: "\\x1b[2J\\x1b[31mred"\n' + HEAD + "  - a: ReLU\n",
    "name of many lines": "name: |\n  one\n  two\n" + HEAD + "  - a: ReLU\n",
    "long name": f"name: {'n' * 30_000}\n" + HEAD + "  - a: ReLU\n",
    "long key": f"{'k' * 30_000}: 1\n" + HEAD + "  - a: ReLU\n",
    "long layer": HEAD + f"  - {'k' * 30_000}: ReLU\n",
    "long module": HEAD + f"  - a: {'M' * 30_000}\n",
    "long argument": HEAD + f"  - a: {{Linear: {{{'k' * 900}: 3}}}}\n",
    "merge key": "base: &base {x: [4]}\ninputs: {<<: *base}\nlayers: [a: ReLU]\n",
    "merge of merges": "a: &a {<<: *a}\n",
    "key twice": "inputs: {x: [4]}\ninputs: {x: [4]}\nlayers: [a: ReLU]\n",
    "layer twice": HEAD + "  - a: ReLU\n  - a: ReLU\n",
    "unknown key": "imports: [os]\n" + HEAD + "  - a: ReLU\n",
    "unknown alias": HEAD + "  - a: *nothing\n",
    "anchor to itself": "a: &a\n  b: *a\n",
    "include": "include: /etc/passwd\n" + HEAD + "  - a: ReLU\n",
    "use of a later layer": HEAD + "  - a: {use: b}\n  - b: ReLU\n",
    "layer named for a method": HEAD + "  - forward: ReLU\n",
    "no dimension": HEAD + "  - a: {Linear: [0.5, 4]}\n",
    "octal": HEAD + "  - a: {Linear: [010, 4]}\n",
    "sexagesimal": HEAD + "  - a: {Linear: ['4:00', 4]}\n",
    "tab": "inputs:\n\tx: [4]\n",
}
BYTES = {
    "no text": b"\xff\xfe\x00\x01" * 100,
    "latin": b"name: caf\xe9\n" + HEAD.encode() + b"  - a: ReLU\n",
    "wide text": (HEAD + "  - a: ReLU\n").encode("utf-16"),
    "zero bytes": bytes(10_000),
    "nothing": b"",
    "zip archive": b"PK\x03\x04" + bytes(range(256)),
    "pickle": b"cos\nsystem\n(S'touch touched'\ntR.",
    "python": b"import os\nos.system('touch touched')\n",
    "program": b"#!/bin/sh\ntouch touched\n",
}
FILES: dict[str, bytes] = {
    **{name: _text(text) for name, text in CORPUS.items() if isinstance(text, str)},
    **{name: _text(text) for name, text in {**UNFIT, **WRONG}.items()},
    **BYTES,
}


def _link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)


# What stands at the path instead of a file; made inside the folder that is current.
PLACES: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: None,
    "folder": lambda path: path.mkdir(),
    "pipe": lambda path: os.mkfifo(path),
    "endless device": lambda path: path.symlink_to("/dev/zero"),
    "random device": lambda path: path.symlink_to("/dev/urandom"),
    "terminal": lambda path: path.symlink_to("/dev/tty"),
    "link to itself": _link_to_itself,
    "link to nothing": lambda path: path.symlink_to("gone"),
    "socket": _socket,
    "sparse giant": lambda path: path.write_bytes(b"") or os.truncate(path, 2**40),
}
