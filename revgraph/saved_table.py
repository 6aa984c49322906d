"""The table of what is held from forward to backward, as data and as text. It knows nothing of torch.

A row is one storage, told by the first tensor of it that was saved. The text folds rows that differ in the
numbers of their modules' paths alone, so that the layers of a model are one line for each thing they save:

    9.0 KiB x 12  8  layers.0-11.norm  layer_norm(input)  3x12x64 f32
"""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from typing import Any, Literal

from revgraph.displays import ShownAsTable
from revgraph.planning import human_bytes

Kind = Literal["activation", "stored", "output", "parameter", "buffer", "input", "rebuilt", "packed"]
HELD: tuple[Kind, ...] = ("activation", "stored", "output")
WIDTH = 80
SMALL_ROWS = 3  # so many rows of less than half a percent are shown; more are summed up


@dataclass(frozen=True, slots=True)
class SavedRow:
    """A storage that is held, and the operator that saved it.

    `kind` is one of

    - activation: an operator saved it for its backward,
    - stored: hooks for saved tensors hold it to rebuild others from it, as a checkpoint does its inputs and a
      reversible net its stored values,
    - output: one of the tensors that were asked about, which no operator saved,
    - parameter, buffer, input: it would be there without autograd,
    - rebuilt: a saved tensor that the backward makes again, and that takes no bytes until then,
    - packed: a saved tensor that hooks took, and what they hold for it is not known.

    `path` is the module that ran the operator, or the name of a stored value. `field` is the operator's own
    name for the tensor: an argument (`input`, `self`) or a result (`result1`). `nbytes` are the storage's,
    and the tensor `is_part` of it where it is a view of another size; a size of -1 in its `shape` varies, as
    in nested tensors. `packed_by` is the module whose hooks took the tensor. `shares` are the operators that
    saved the storage too. `count` is 1, but in folded rows.
    """

    path: str
    operator: str
    field: str
    kind: Kind
    nbytes: int = 0
    shape: tuple[int, ...] = ()
    dtype: str = ""
    device: str = "cpu"
    is_part: bool = False
    packed_by: str = ""
    shares: tuple[str, ...] = ()
    count: int = 1

    @property
    def label(self) -> str:
        """The operator with what it saved: `addmm(mat1)`."""
        if self.kind == "stored":
            return f"stored by {self.packed_by}"
        return f"{self.operator}({self.field})" if self.field else self.operator

    @property
    def form(self) -> str:
        """Shape and type, shortly: `4x16 f32`; with an asterisk if it is a part of its storage."""
        shape = "x".join(str(size) if size >= 0 else "?" for size in self.shape) or "scalar"
        dtype = self.dtype
        for word, letter in {"uint": "u", "int": "i", "float": "f", "complex": "c"}.items():
            dtype = dtype.replace(word, letter)
        return f"{shape} {dtype}" + " *" * self.is_part


@dataclass(frozen=True)
class SavedTable(ShownAsTable):
    """What autograd holds from forward to backward, made by `rg.saved`.

    `rows` has one row a storage, in the order of the forward. `planned_bytes` is what a reversible net's plan
    foresaw. `freed` counts operators whose saved tensors a backward has freed; `unseen` those, by name, whose
    saved tensors Python cannot see, so that what they hold is missing. `paths` says how the modules were
    found: by their "calls", or by the "parameters" that operators read.
    """

    rows: tuple[SavedRow, ...]
    planned_bytes: int | None = None
    freed: int = 0
    unseen: Mapping[str, int] = field(default_factory=dict)
    paths: Literal["", "calls", "parameters"] = ""

    @property
    def held_bytes(self) -> int:
        """The bytes of activations, stored values and outputs."""
        return self.bytes_of(*HELD)

    @property
    def parameter_bytes(self) -> int:
        """The bytes of the parameters and buffers in the graph."""
        return self.bytes_of("parameter", "buffer")

    @property
    def input_bytes(self) -> int:
        """The bytes of the caller's inputs."""
        return self.bytes_of("input")

    def bytes_of(self, *kinds: Kind) -> int:
        """The bytes of all rows of these kinds."""
        return sum(row.nbytes * row.count for row in self.rows if row.kind in kinds)

    def count_of(self, *kinds: Kind) -> int:
        """How many rows are of these kinds."""
        return sum(row.count for row in self.rows if row.kind in kinds)

    @property
    def summary(self) -> str:
        """The totals, as a sentence."""
        text = f"{human_bytes(self.held_bytes)} held in {_some(self.count_of(*HELD))}"
        if self.planned_bytes is not None:
            text += f", planned {human_bytes(self.planned_bytes)}"
        on: Counter[str] = Counter()
        for row in self.rows:
            on[row.device] += row.nbytes * (row.kind in HELD)
        if len(+on) > 1:
            text += f" ({', '.join(f'{human_bytes(count)} on {device}' for device, count in (+on).items())})"
        apart = human_bytes(self.parameter_bytes), human_bytes(self.input_bytes)
        return f"{text}; parameters {apart[0]}, inputs {apart[1]}"

    @property
    def notes(self) -> tuple[str, ...]:
        """What the bytes do not say, a sentence each."""
        notes = []
        if any(row.is_part for row in self.rows if row.kind in HELD):
            notes.append("* a view: the whole storage is held, and counts")
        for kind, told in (
            ("rebuilt", "rebuilt in backward by"),
            ("packed", "packed, it is not known how, by"),
        ):
            packers = Counter(row.packed_by for row in self.rows if row.kind == kind)
            notes += [f"{told} {name}: {_some(count)}" for name, count in packers.items()]
        for name, count in self.unseen.items():
            notes.append(f"missing, as Python cannot see it: what {count} x {name} saved")
        if self.freed:
            notes.append(f"freed, as a backward has run: what {self.freed} of the operators saved")
        if self.paths == "parameters":
            notes.append("modules: by the parameters that operators read")
        return tuple(notes)

    def folded(self) -> tuple[SavedRow, ...]:
        """The rows that are held, those of repeated layers as one, and the most bytes first."""
        rows = fold(row for row in self.rows if row.kind in HELD)
        return tuple(sorted(rows, key=lambda row: -row.nbytes * row.count))

    def cells(self) -> list[tuple[str, ...]]:
        """The folded rows as text, under a head: bytes, share, module, operator with what it saved, form."""
        held = self.held_bytes or 1
        rows = [
            (
                f"{human_bytes(row.nbytes)} x {row.count}",
                f"{100 * row.nbytes * row.count / held:.0f}",
                row.path,
                row.label,
                row.form,
            )
            for row in self.folded()
        ]
        return [("bytes", "%", "module", "operator(saved)", "form"), *rows]

    def data(self) -> dict[str, Any]:
        """All of it in types that `json` writes."""
        totals = {name: getattr(self, name) for name in ("held_bytes", "parameter_bytes", "input_bytes")}
        told = {name: getattr(self, name) for name in ("planned_bytes", "freed", "paths")}
        rows = [{**asdict(row), "shape": list(row.shape), "shares": list(row.shares)} for row in self.rows]
        return {**totals, **told, "unseen": dict(self.unseen), "rows": rows}

    def __str__(self) -> str:
        lines = textwrap.wrap(self.summary, WIDTH)
        head, *rows = self.cells()
        small = [row for row in self.folded() if 200 * row.nbytes * row.count < self.held_bytes]
        if len(small) > SMALL_ROWS:
            del rows[-len(small) :]
        if rows:
            lines += ["", *_aligned([column for column in zip(head, *rows, strict=True) if any(column[1:])])]
        if len(small) > SMALL_ROWS:
            total = human_bytes(sum(row.nbytes * row.count for row in small))
            count = _some(sum(row.count for row in small))
            lines.append(f"and {len(small)} lines of less than half a percent: {total} in {count}")
        for note in self.notes:
            lines += textwrap.wrap(note, WIDTH, subsequent_indent="  ")
        return "\n".join(lines)


def fold(rows: Iterable[SavedRow]) -> list[SavedRow]:
    """The rows with those as one that differ in the numbers of their paths alone, in order.

    >>> rows = [SavedRow(f"layers.{number}.act", "relu", "result", "activation", 64) for number in range(3)]
    >>> [(row.path, row.count) for row in fold(rows)]
    [('layers.0-2.act', 3)]
    """
    alike: dict[SavedRow, Counter[tuple[str, ...]]] = {}
    for row in rows:
        parts = tuple(re.split(r"(\d+)", row.path))
        key = replace(row, path="*".join(parts[::2]), shares=(), count=1)
        alike.setdefault(key, Counter())[parts] += row.count
    return [
        replace(key, path="".join(parts), count=count)
        for key, paths in alike.items()
        for parts, count in _merged(paths).items()
    ]


def _merged(paths: Mapping[tuple[str, ...], int]) -> dict[tuple[str, ...], int]:
    """Paths, in parts of which every second is a number, with runs of numbers as one: `layers.`, `0-11`.

    Runs are found at one place after another, the last first; only paths of equal counts are merged, so that
    a count is the same multiple for each.
    """
    found = dict(paths)
    for place in range(len(next(iter(found))) - 2, 0, -2):
        rests: dict[tuple[tuple[str, ...], tuple[str, ...], int], list[str]] = {}
        for parts, count in found.items():
            rests.setdefault((parts[:place], parts[place + 1 :], count), []).append(parts[place])
        found = {}
        for (before, after, count), numbers in rests.items():
            # A range of an earlier merge is as it is: what is folded here is at another place.
            numbers.sort(key=int)
            for _, run in groupby(enumerate(numbers), lambda pair: int(pair[1]) - pair[0]):
                ends = [number for _, number in run]
                name = ends[0] if len(ends) == 1 else f"{ends[0]}-{ends[-1]}"
                found[(*before, name, *after)] = count * len(ends)
    return found


def _aligned(columns: Sequence[Sequence[str]]) -> list[str]:
    """Columns as lines of at most `WIDTH`: numbers to the right, the rest cut where it must be."""
    widths = [max(map(len, column)) for column in columns]
    spare = WIDTH - sum(widths) - 2 * (len(widths) - 1)
    while spare < 0:  # the widest of what can be cut gives way
        place = max(range(2, len(widths)), key=widths.__getitem__)
        widths[place] -= 1
        spare += 1
    lines = []
    for cells in zip(*columns, strict=True):
        shown = [cell.rjust(width) for cell, width in zip(cells[:2], widths[:2], strict=True)]
        shown += [_cut(cell, width).ljust(width) for cell, width in zip(cells[2:], widths[2:], strict=True)]
        lines.append("  ".join(shown).rstrip())
    return lines


def _some(count: int) -> str:
    return f"{count} tensor" + "s" * (count != 1)


def _cut(text: str, width: int) -> str:
    """The end of a text that is too long, which tells more in a path, and in `operator(saved)` too."""
    return text if len(text) <= width else ".." + text[len(text) - width + 2 :].lstrip(".")
