"""Solutions that every textbook has: ordinary autograd, and segments that are checkpointed.

Segments are those of Chen et al. 2016, "Training deep nets with sublinear memory cost", and of torch's
`checkpoint_sequential`: segments of as many nodes each, of which all but the last are run again, capturing,
when the backward pass comes to them.
"""

from __future__ import annotations

from collections.abc import Iterator

from revgraph.planning.solver.line import Line
from revgraph.planning.solver.problem import Problem, Solution
from revgraph.planning.solver.segment_programme import Step
from revgraph.planning.solver.segments import bare_segments
from revgraph.planning.solver.unrolling import Unrolling

# In lines of at most so many nodes every count of segments is tried, in longer ones every count up to another
# one, from which on counts grow by a share.
SHORT, FEW, GROWTH = 40, 12, 1.2


def keep_all(problem: Problem) -> Solution:
    """Ordinary autograd: every item under its option that is called keep, nothing stored besides."""
    options = tuple(
        next((c for c, option in enumerate(item.options) if option.name == "keep"), 0) if item.options else -1
        for item in problem.items
    )
    return Solution(options, frozenset())


def textbook_segments(line: Line) -> Iterator[Solution]:
    """A solution for each count of segments."""
    for count in _counts(line.count):
        cuts = sorted({round(place * line.count / count) for place in range(count + 1)})
        segments = bare_segments(line, cuts)
        if not all(segment.storing for segment in segments):
            continue
        ways: list[tuple[Step, Step]] = [
            (("run", number), ("at once", number))
            if segment.reruns and number < len(segments) - 1
            else (("store", number, 0), ("stored back", number, 0))
            for number, segment in enumerate(segments)
        ]
        schedule = [*(there for there, _ in ways), ("turn",), *(back for _, back in reversed(ways))]
        yield Unrolling(line, segments).solution(schedule)


def _counts(nodes: int) -> list[int]:
    counts = list(range(2, min(nodes, SHORT if nodes <= SHORT else FEW) + 1))
    while counts and counts[-1] < nodes:
        counts.append(min(nodes, max(counts[-1] + 1, int(counts[-1] * GROWTH))))
    return counts
