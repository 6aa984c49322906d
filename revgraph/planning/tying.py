"""Tying: repeated blocks of a problem that are decided alike, so that long problems stay small."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from revgraph.planning.problem import Problem

# Blocks of more items than this are not looked for.
LONGEST_BLOCK = 8


def runs(problem: Problem) -> list[tuple[int, int, int]]:
    """Where blocks of items repeat: (first item, items a block, blocks), in order and without overlap."""
    looks = [item.look if item.options else ~len(item.inputs) for item in problem.items]
    found: list[tuple[int, int, int]] = []
    start = 0
    while start < len(looks):
        best = (0, 0)
        for period in range(1, LONGEST_BLOCK + 1):
            count = _repeats(looks, start, period)
            if count > 1 and (count * period, -period) > (best[0] * best[1], -best[1]):
                best = count, period
        count, period = best
        if count > 1:
            found.append((start, period, count))
        start += max(1, count * period)
    return found


def _repeats(looks: Sequence[int], start: int, period: int) -> int:
    block, count = looks[start : start + period], 1
    while looks[start + count * period : start + (count + 1) * period] == block:
        count += 1
    return count


def ties(problem: Problem, groups: int, free: frozenset[int] = frozenset()) -> Mapping[int, int]:
    """For each item that is decided like an earlier one that one, so that about `groups` decisions are left.

    The first and the last block of a run stay by themselves: they meet something else. So do `free` items.
    """
    decided = [k for k, item in enumerate(problem.items) if item.options]
    if len(decided) <= groups:
        return {}
    repeated = runs(problem)
    inner = sum(period * max(0, count - 2) for _, period, count in repeated)
    share = max(1, groups - (len(decided) - inner)) / max(1, inner)
    tied: dict[int, int] = {}
    for start, period, count in repeated:
        parts = max(1, round((count - 2) * share))
        for block in range(1, count - 1):
            part = (block - 1) * parts // (count - 2)
            lead = 1 + -(-part * (count - 2) // parts)
            for place in range(period):
                k, like = start + block * period + place, start + lead * period + place
                if lead != block and problem.items[k].options and not {k, like} & free:
                    tied[k] = like
    return tied
