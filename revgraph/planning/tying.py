"""Tying: repeated blocks of a problem that are decided alike, so that long problems stay small."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from revgraph.planning.problem import Problem

# Blocks of more items than this are not looked for.
LONGEST_BLOCK = 8
# Pieces that a part is cut into where it matters.
PIECES = 12


class Part(NamedTuple):
    """`times` equal blocks of `period` items from item `start` on, decided alike."""

    start: int
    period: int
    times: int


@dataclass(frozen=True, slots=True)
class Ties:
    """For items that are decided like an earlier one, that one; and how far apart they are.

    `inner` are the items whose surroundings are tied as well: they lie neither in the first nor in the last
    block of their part. `silent` ones need no memory rows, for others of their part need as much.
    """

    like: Mapping[int, int] = field(default_factory=dict)
    inner: frozenset[int] = frozenset()
    silent: frozenset[int] = frozenset()


def runs(problem: Problem) -> list[Part]:
    """Where blocks of items repeat, in order and without overlap."""
    looks = [item.look if item.options else ~len(item.inputs) for item in problem.items]
    found: list[Part] = []
    start = 0
    while start < len(looks):
        best = Part(start, 1, 1)
        for period in range(1, LONGEST_BLOCK + 1):
            part = Part(start, period, _repeats(looks, start, period))
            if part.times > 1 and part.times * period > best.times * best.period:
                best = part
        if best.times > 1:
            found.append(best)
        start += best.times * best.period
    return found


def _repeats(looks: Sequence[int], start: int, period: int) -> int:
    block, count = looks[start : start + period], 1
    if len(block) < period:
        return 0
    while looks[start + count * period : start + (count + 1) * period] == block:
        count += 1
    return count


def parts_of(problem: Problem, groups: int) -> list[Part]:
    """Runs cut into parts so that about `groups` decisions are left; none where there are no more than that.

    The first and the last block of a run stay by themselves: they meet something else.
    """
    decided = sum(bool(item.options) for item in problem.items)
    if decided <= groups:
        return []
    repeated = [run for run in runs(problem) if run.times > 3]
    inner = sum(run.period * (run.times - 2) for run in repeated)
    share = max(1, groups - (decided - inner)) / max(1, inner)
    parts: list[Part] = []
    for start, period, count in repeated:
        pieces = max(1, round((count - 2) * share))
        bounds = [1 + n * (count - 2) // pieces for n in range(pieces + 1)]
        parts += [
            Part(start + first * period, period, after - first)
            for first, after in itertools.pairwise(bounds)
            if after - first > 1
        ]
    return parts


def tied(problem: Problem, parts: Sequence[Part]) -> Ties:
    """All blocks of each part tied to its first."""
    like: dict[int, int] = {}
    inner, silent = set[int](), set[int]()
    for start, period, count in parts:
        for block in range(1, count):
            for place in range(period):
                k = start + block * period + place
                if problem.items[k].options:
                    like[k] = start + place
                if block < count - 1:
                    inner.add(k)
                if 1 < block < count - 2:
                    silent.add(k)
    return Ties(like, frozenset(inner), frozenset(silent))


def cut_where_it_changes(
    parts: Sequence[Part], decided: Mapping[tuple[str, int, int], float]
) -> Iterator[Part]:
    """The parts, those cut into pieces that are decided otherwise than the block before or after them."""
    by_item: defaultdict[int, set[tuple[str, int]]] = defaultdict(set)
    for (what, k, which), value in decided.items():
        if value > 0.5:
            by_item[k].add((what, which if what == "option" else which - k))
    for start, period, times in parts:
        end = start + period * times
        here = [by_item[k] for k in range(start, start + period)]
        before = [by_item[k] for k in range(start - period, start)]
        if here == before == [by_item[k] for k in range(end, end + period)]:
            yield Part(start, period, times)
            continue
        pieces = min(times, PIECES)
        bounds = [n * times // pieces for n in range(pieces + 1)]
        for first, after in itertools.pairwise(bounds):
            if after - first > 1:
                yield Part(start + first * period, period, after - first)
