"""Solutions that every textbook has: ordinary autograd, and segments that are checkpointed.

Segments are those of Chen et al. 2016, "Training deep nets with sublinear memory cost", and of torch's
`checkpoint_sequential`: segments of as many nodes each, of which all but the last are run again, capturing,
when the backward pass comes to them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from revgraph.planning.solver.line import Line
from revgraph.planning.solver.pool import thinned
from revgraph.planning.solver.problem import Problem, Solution
from revgraph.planning.solver.segment_programme import Step
from revgraph.planning.solver.segments import bare_segments
from revgraph.planning.solver.unrolling import Unrolling

# In lines of at most so many nodes every count of segments is tried, in longer ones every count up to another
# one, from which on counts grow by a share.
SHORT, FEW, GROWTH = 40, 12, 1.2
# Into how many segments what lies before a place is cut, and how many such cuts are tried at most.
FIRST, PLACES = (1, 2, 3), 80


def keep_all(problem: Problem) -> Solution:
    """Ordinary autograd: every item under its option that is called keep, nothing stored besides."""
    options = tuple(
        next((c for c, option in enumerate(item.options) if option.name == "keep"), 0) if item.options else -1
        for item in problem.items
    )
    return Solution(options, frozenset())


def textbook_segments(line: Line) -> Iterator[Solution]:
    """A solution for each count of segments; of short lines also those that recompute more, or less.

    On a chain the programmes have found all of these. Elsewhere the last segment may be run again like the
    others: what it holds (a joined copy of stored parts) may be more than its peak. Or the segments lie
    before some place, and all that comes behind it is kept: what is kept goes before they are run again; the
    state at the place is stored or not. And states are stored both with joined copies and with the parts of
    these.
    """
    branches = False
    if line.count <= SHORT:
        other = Line(line.original, by_parts=not line.parts)
        knows_parts = other.parts != line.parts
        branches = knows_parts or not line.is_chain
        if knows_parts:
            yield from _by_counts(other, last_again=True)
        if branches:
            yield from _by_places(line)
    yield from _by_counts(line, last_again=branches)


def _by_counts(line: Line, *, last_again: bool) -> Iterator[Solution]:
    for count in _counts(line.count):
        cuts = _cuts(line.count, count)
        yield from _segmented(line, cuts, len(cuts) - 2)
        if last_again:
            yield from _segmented(line, cuts, len(cuts) - 1)


def _by_places(line: Line) -> Iterator[Solution]:
    nodes = line.count
    yield from _segmented(line, [0, nodes], 1)
    places = [(place, count, stores) for stores in (0, 1) for count in FIRST for place in range(count, nodes)]
    for place, count, stores in thinned(places, PLACES):
        more = line.states[place] if stores else ()
        yield from _segmented(line, [*_cuts(place, count), nodes], count, more)


def _cuts(nodes: int, count: int) -> list[int]:
    return sorted({round(place * nodes / count) for place in range(count + 1)})


def _segmented(line: Line, cuts: list[int], again: int, more: Iterable[int] = ()) -> Iterator[Solution]:
    """The solution that runs the first segments, `again` of them, once more, and keeps the others.

    What is read of the values `more` is stored besides.
    """
    segments = bare_segments(line, cuts)
    if not all(segment.storing for segment in segments):
        return
    ways: list[tuple[Step, Step]] = [
        (("run", number), ("at once", number))
        if segment.reruns and number < again
        else (("store", number, 0), ("stored back", number, 0))
        for number, segment in enumerate(segments)
    ]
    schedule = [*(there for there, _ in ways), ("turn",), *(back for _, back in reversed(ways))]
    solution = Unrolling(line, segments).solution(schedule)
    names = line.merged.names
    yield replace(solution, stored=solution.stored.union(names[value][0] for value in more))


def _counts(nodes: int) -> list[int]:
    counts = list(range(2, min(nodes, SHORT if nodes <= SHORT else FEW) + 1))
    while counts and counts[-1] < nodes:
        counts.append(min(nodes, max(counts[-1] + 1, int(counts[-1] * GROWTH))))
    return counts
