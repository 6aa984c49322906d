"""Folding: where a graph repeats the same block, so that the block can be drawn or listed once."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

from revgraph.graph import Graph, Node

LONGEST_BLOCK = 64
"""Nodes of the longest block that is looked for."""

_NUMBER = re.compile(r"(\d+)")


@dataclass(frozen=True, slots=True)
class Fold:
    """`count` equal blocks of `period` nodes each, one after another from the node at index `start`."""

    start: int
    period: int
    count: int

    @property
    def end(self) -> int:
        """The index after its last node."""
        return self.start + self.period * self.count


def find_folds(graph: Graph, marks: Mapping[str, Hashable], stored: frozenset[str]) -> tuple[Fold, ...]:
    """The repetitions in a graph, in order and apart.

    Blocks are equal where their nodes are of one kind, cost, shape and mark (by node name), are named alike
    but for numbers, and are wired alike, each block reading only from itself, from the block before it, and
    from values that all of them read. The `stored` values lie alike in all of them.
    """
    signs = _signs(graph, marks)
    folds: list[Fold] = []
    start = 0
    while start < len(signs):
        fold = _longest(graph, signs, stored, start)
        if fold is None:
            start += 1
        else:
            folds.append(fold)
            start = fold.end
    return tuple(folds)


def numbers(name: str) -> list[str]:
    """A name in pieces, text and numbers in turn.

    >>> numbers("stage1.unit12.f")
    ['stage', '1', '.unit', '12', '.f']
    """
    return _NUMBER.split(name)


def up_to_change(first: str, last: str) -> tuple[str, str]:
    """Two names that differ in a number, each up to and with that number.

    >>> up_to_change("stage1.unit2.f", "stage1.unit12.f")
    ('stage1.unit2', 'stage1.unit12')
    """
    one, two = numbers(first), numbers(last)
    for place, (left, right) in enumerate(zip(one, two, strict=False)):
        if left != right:
            return "".join(one[: place + 1]), "".join(two[: place + 1])
    return first, last


def span(first: str, last: str) -> str:
    """The names from `first` to `last`, which differ in a number, as one.

    >>> span("stage1.unit2.f", "stage1.unit12.f")
    'stage1.unit2-12.f'
    """
    begin, end = up_to_change(first, last)
    return begin + "-" + end[len(end.rstrip("0123456789")) :] + first[len(begin) :]


def _signs(graph: Graph, marks: Mapping[str, Hashable]) -> list[int]:
    known: dict[Hashable, int] = {}
    signs: list[int] = []
    for node in graph.nodes:
        target = node.inputs.index(node.target) if node.target is not None else -1
        shapes = tuple((graph.value[name].shape, graph.value[name].dtype) for name in node.outputs)
        cost = (node.cost.saved_bytes, node.cost.flops)
        pattern = tuple(numbers(node.name)[::2])
        sign = (node.kind, pattern, cost, shapes, len(node.inputs), target, marks.get(node.name))
        signs.append(known.setdefault(sign, len(known)))
    return signs


def _longest(graph: Graph, signs: Sequence[int], stored: frozenset[str], start: int) -> Fold | None:
    best: Fold | None = None
    for period in range(1, min(LONGEST_BLOCK, (len(signs) - start) // 2) + 1):
        fold = Fold(start, period, 1)
        block = signs[start : fold.end]
        while signs[fold.end : fold.end + period] == block and _extends(graph, stored, fold):
            fold = replace(fold, count=fold.count + 1)
        hidden = fold.end - start - period
        if hidden >= 2 and (best is None or hidden > best.end - start - best.period):
            best = fold
    return best


def _extends(graph: Graph, stored: frozenset[str], fold: Fold) -> bool:
    """Whether the block after the fold's last one is named and wired as its others are."""
    first = graph.nodes[fold.start : fold.start + fold.period]
    second = graph.nodes[fold.start + fold.period : fold.start + 2 * fold.period]
    before = graph.nodes[fold.end - fold.period : fold.end]
    here = graph.nodes[fold.end : fold.end + fold.period]
    return (
        _numbered_alike(here, before)
        and _closed(graph, before, here)
        and _flags(here, stored) == _flags(first, stored)
        and all(
            _wired_alike(name, here, before, (first, node.inputs[place]), (second, again.inputs[place]))
            for node, again, later in zip(first, second, here, strict=True)
            for place, name in enumerate(later.inputs)
        )
    )


def _wired_alike(
    name: str,
    here: Sequence[Node],
    before: Sequence[Node],
    first: tuple[Sequence[Node], str],
    second: tuple[Sequence[Node], str],
) -> bool:
    """Whether a block reads `name` as the first and second block read the input at the same place."""
    inside = _find(here, name)
    if inside is not None:
        return _find(*first) == inside
    if _find(*first) is not None:
        return False
    carried = _find(before, name)
    if carried is not None:
        return _find(first[0], second[1]) == carried
    return name == first[1]


def _closed(graph: Graph, block: Sequence[Node], after: Sequence[Node]) -> bool:
    """Whether a block's values are read only in it and in the block after it."""
    names = {node.name for node in (*block, *after)}
    return all(
        reader.name in names for node in block for name in node.outputs for reader in graph.readers[name]
    )


def _flags(block: Sequence[Node], stored: frozenset[str]) -> list[bool]:
    return [name in stored for node in block for name in node.outputs]


def _numbered_alike(here: Sequence[Node], before: Sequence[Node]) -> bool:
    """Whether a block's dotted names differ from the last block's in one and the same number."""
    steps: set[tuple[str, str]] = set()
    for node, previous in zip(here, before, strict=True):
        pairs = zip(numbers(previous.name)[1::2], numbers(node.name)[1::2], strict=True)
        changed = [pair for pair in pairs if pair[0] != pair[1]]
        if "." in node.name and len(changed) != 1:
            return False
        steps.update(changed if "." in node.name else ())
    return len(steps) <= 1


def _find(block: Sequence[Node], name: str) -> tuple[int, int] | None:
    for offset, node in enumerate(block):
        if name in node.outputs:
            return offset, node.outputs.index(name)
    return None
