"""Segments: a line cut into at most so many stretches of nodes, with ways to treat each stretch as a whole.

A programme over segments takes time with the cube of their number; the nodes within one are decided alike, by
what they would pay for a byte.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from revgraph.planning.solver.line import Line, Storages, Way

# What a byte costs within a segment, in the cost of its nodes over bytes of their internals.
PRICES = (0.0, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 1e9)
# Options of a segment's last node that keep results, of which a plain run may choose one.
RESULTS = 4


@dataclass(frozen=True, slots=True)
class Whole:
    """A way for each node of a segment, and what they come to.

    Peaks are of its forward run and of its backward, and count all that is alive on the line in the segment;
    those `beyond` leave out the state before it, which then is someone else's.
    """

    ways: tuple[Way, ...]
    own_bytes: int
    pins: Storages
    cost: int
    forward: int
    forward_beyond: int
    backward: int
    backward_beyond: int


@dataclass(frozen=True, slots=True)
class Kept:
    """An option of a segment's last node that keeps results: bytes it holds, cost its replay then saves."""

    option: int
    held_bytes: int
    saved_cost: int


@dataclass(frozen=True, slots=True)
class Segment:
    """Nodes from position `start` to `stop`.

    `cost` is that of running it, `run_peak` and `first_run_peak` what a plain run takes in the backward
    and in the forward pass, with the state before it; `gradient_bytes` are alive at the stage of its last
    node. Where it `reruns`, `captured` is a run that captures all internals for a backward without replays,
    and `at_once` (cost, peak beyond the state before) such a run with that backward right behind it.
    """

    start: int
    stop: int
    cost: int
    run_peak: int
    first_run_peak: int
    gradient_bytes: int
    reruns: bool
    storing: tuple[Whole, ...]
    undoing: tuple[Whole, ...]
    captured: Whole | None
    at_once: tuple[int, int] | None
    results: tuple[Kept, ...]


def cuts_of(line: Line, most: int) -> list[int]:
    """Positions between at most so many segments: neighbours are joined where little lies within them.

    A pair counts with its internals and states, less half the state at the cut, which is dear to cut at.
    """
    sizes = [line.size(storages) for storages in line.storages]
    sums = [0]
    for n in range(line.count):
        sums.append(sums[-1] + line.item(n).captured_bytes + sizes[n])
    after = {position: position + 1 for position in range(line.count)}
    before = {position + 1: position for position in range(line.count)}

    def weight(cut: int) -> int:
        return sums[after[cut]] - sums[before[cut]] - sizes[cut] // 2

    queue = [(weight(cut), cut) for cut in range(1, line.count)]
    heapq.heapify(queue)
    left = line.count
    while left > most and queue:
        noted, cut = heapq.heappop(queue)
        if cut not in after or cut not in before:
            continue
        if noted != weight(cut):  # it grew when a neighbour went
            heapq.heappush(queue, (weight(cut), cut))
            continue
        low, high = before.pop(cut), after.pop(cut)
        after[low], before[high] = high, low
        left -= 1
    return [0, *sorted(after[cut] for cut in after)]


def segments_of(line: Line, cuts: Sequence[int]) -> list[Segment]:
    return [_segment(line, start, stop) for start, stop in pairwise(cuts)]


def bare_segments(line: Line, cuts: Sequence[int]) -> list[Segment]:
    """Segments without figures, in which nodes are stored as costs least, or not at all where one cannot be.

    For schedules that are made by hand: what whole segments come to takes the square of their length to find.
    """
    found: list[Segment] = []
    for start, stop in pairwise(cuts):
        nodes = range(start, stop)
        storing: tuple[Whole, ...] = ()
        if all(line.storing[n] for n in nodes):
            ways = tuple(min(line.storing[n], key=lambda way: way.cost) for n in nodes)
            storing = (Whole(ways, 0, Storages(), 0, 0, 0, 0, 0),)
        reruns = all(line.replay[n] is not None for n in nodes)
        found.append(Segment(start, stop, 0, 0, 0, 0, reruns, storing, (), None, None, ()))
    return found


def _segment(line: Line, start: int, stop: int) -> Segment:
    nodes = range(start, stop)
    items = [line.item(n) for n in nodes]
    run_peak = first_run_peak = 0
    for n, item in zip(nodes, items, strict=True):
        replay = line.replay[n]
        first = item.options[replay if replay is not None else 0]
        before = line.size(line.storages[n])
        made = line.size(line.storages[n + 1] - line.storages[n])
        run_peak = max(run_peak, before + max(item.rerun_peak, made))
        first_run_peak = max(first_run_peak, before + max(first.forward_peak, made))
    reruns = all(line.replay[n] is not None for n in nodes)
    captured = at_once = None
    if reruns:
        captured = _captured(line, nodes)
        last = max((n for n in nodes if not line.silent[n]), default=start)
        replay = line.replay[last]
        assert replay is not None
        at_once = (
            sum(line.item(n).rerun_cost for n in range(start, last)) + line.item(last).options[replay].cost,
            max(captured.backward_beyond, captured.forward_beyond + items[-1].gradient_bytes),
        )
    return Segment(
        start=start,
        stop=stop,
        cost=sum(item.rerun_cost for item in items),
        run_peak=run_peak,
        first_run_peak=first_run_peak,
        gradient_bytes=items[-1].gradient_bytes,
        reruns=reruns,
        storing=tuple(
            _whole(line, nodes, ways, undoes=False) for ways in _choices(line, nodes, line.storing)
        ),
        undoing=tuple(_whole(line, nodes, ways, undoes=True) for ways in _choices(line, nodes, line.undoing)),
        captured=captured,
        at_once=at_once,
        results=_results(line, stop - 1) if reruns else (),
    )


def _choices(line: Line, nodes: range, ways: list[list[Way]]) -> list[tuple[Way, ...]]:
    """A way for each node, at several prices of a byte that are the same for all of them."""
    if any(not ways[n] for n in nodes):
        return []
    if len(nodes) == 1:
        return [(way,) for way in ways[nodes[0]]]
    cost = sum(line.item(n).rerun_cost for n in nodes) or 1
    unit = cost / (sum(line.item(n).captured_bytes for n in nodes) or 1)
    costs = [
        [(way.cost, way.own_bytes + line.charged(way.pins, n + 1), way) for way in ways[n]] for n in nodes
    ]
    found = [
        tuple(min(each, key=lambda cost: cost[0] + price * unit * cost[1])[2] for each in costs)
        for price in PRICES
    ]
    return list(dict.fromkeys(found))


def _whole(line: Line, nodes: range, ways: tuple[Way, ...], *, undoes: bool) -> Whole:
    size, before = line.size, line.storages[nodes[0]]
    own_bytes, pins = 0, Storages()
    forward = forward_beyond = backward = backward_beyond = 0
    for n, way in zip(nodes, ways, strict=True):
        here, after = line.storages[n] | pins, line.storages[n + 1]
        made = size(after - here)
        most = own_bytes + max(way.forward_peak, way.own_bytes + made)
        forward = max(forward, size(here) + most)
        forward_beyond = max(forward_beyond, size(here - before) + most)
        own_bytes += way.own_bytes
        pins |= way.pins
        alive = pins | after if undoes else pins
        most = own_bytes + line.item(n).gradient_bytes + way.backward_peak
        backward = max(backward, size(alive) + most)
        backward_beyond = max(backward_beyond, size(alive - before) + most)
    cost = sum(way.cost for way in ways)
    return Whole(ways, own_bytes, pins, cost, forward, forward_beyond, backward, backward_beyond)


def _captured(line: Line, nodes: range) -> Whole:
    """A rerun that captures the internals of every node, and the backward without replays after it."""
    size, before = line.size, line.storages[nodes[0]]
    own_bytes, pins = 0, Storages()
    forward = forward_beyond = backward = backward_beyond = 0
    for n in nodes:
        item, replay = line.item(n), line.replay[n]
        assert replay is not None
        here, after = line.storages[n] | pins, line.storages[n + 1]
        most = own_bytes + max(item.rerun_peak, size(after - here) + item.captured_bytes)
        forward = max(forward, size(here) + most)
        forward_beyond = max(forward_beyond, size(here - before) + most)
        own_bytes += item.captured_bytes
        kept = [option for option in item.options if option.name == "keep"]
        pinned = frozenset(line.problem.storage_of[value] for value in kept[0].pinned) if kept else None
        pins |= line.storages[n] if pinned is None else pinned - line.free
        differentiated = max(0, item.options[replay].backward_peak - item.captured_bytes)
        most = own_bytes + item.gradient_bytes + differentiated
        backward = max(backward, size(pins) + most)
        backward_beyond = max(backward_beyond, size(pins - before) + most)
    return Whole((), own_bytes, pins, 0, forward, forward_beyond, backward, backward_beyond)


def _results(line: Line, n: int) -> tuple[Kept, ...]:
    options, replay = line.item(n).options, line.replay[n]
    assert replay is not None
    plain = options[replay]
    found = [
        Kept(number, option.held_bytes, plain.cost - option.cost)
        for number, option in enumerate(options)
        if option.name == plain.name == "recompute"
        and option.held_bytes
        and not option.pinned
        and option.cost < plain.cost
    ]
    return tuple(sorted(found, key=lambda kept: (-kept.saved_cost, kept.held_bytes))[:RESULTS])


def kept_results(
    segments: Sequence[Segment], nothing: int
) -> list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """By rank, for each segment: bytes that its kept results hold (or `nothing`), cost they save."""
    ranks = range(max(len(segment.results) for segment in segments))
    return [
        (
            np.array([each.results[n].held_bytes if n < len(each.results) else nothing for each in segments]),
            np.array(
                [each.results[n].saved_cost if n < len(each.results) else 0 for each in segments], np.float32
            ),
        )
        for n in ranks
    ]
