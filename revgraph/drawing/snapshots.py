"""Snapshots: the predicted memory of a training step in the form that PyTorch's memory viewer reads.

The form is that of `torch.cuda.memory._snapshot`: events by device, and segments with the blocks that are
left at the end. The viewer has a reader of pickles of its own, which knows protocols up to 4 and plain data
only; nothing here reads one. The form is written without torch, for a plan needs none.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from typing import Any

from revgraph.drawing.allocations import Block, Change, allocations, extent, left_over
from revgraph.drawing.axis import turn_of
from revgraph.drawing.lettering import clean
from revgraph.drawing.telling import what
from revgraph.planning.plans import Plan
from revgraph.planning.schedule import schedule

PROTOCOL = 4
BEGINNING = 0x7F00_0000_0000
"""The address of the one segment: such as a GPU has, and exact in JavaScript's numbers."""

Frame = dict[str, Any]


def snapshot(plan: Plan) -> bytes:
    """A pickle of a training step's predicted allocations, for pytorch.org/memory_viz.

    Every storage of activations is a block in one segment of device 0. The frames of a block say what it is
    and in which step it was allocated; the line number of the first two is that of the step, counted from 1.

    Raises:
        PlanError: the plan cannot be carried out.
    """
    changes = allocations(plan)
    frames = _Frames(plan)
    return pickle.dumps(
        {"segments": _segments(changes, frames), "device_traces": [_trace(changes, frames)]}, PROTOCOL
    )


class _Frames:
    """What a block is and where it comes from, in the place of a stack trace: the innermost first."""

    def __init__(self, plan: Plan) -> None:
        steps = schedule(plan)
        turn = turn_of(steps)
        self._network = clean(plan.graph.name) or "a network"
        self._of_step = [
            [
                self._frame(what(step), index),
                {"filename": self._network, "line": 0, "name": "forward" if index < turn else "backward"},
                *_where(plan, step.node),
            ]
            for index, step in enumerate(steps)
        ]

    def of(self, block: Block) -> list[Frame]:
        return [self._frame(block.what, block.step), *self._of_step[block.step]]

    def _frame(self, name: str, index: int) -> Frame:
        return {"filename": self._network, "line": index + 1, "name": clean(name)}


def _where(plan: Plan, name: str) -> Iterator[Frame]:
    """The line of code or of a specification that made a node, if that is known."""
    node = plan.graph.node.get(name)
    filename, _, line = (node.where if node is not None else "").rpartition(":")
    if node is not None and filename and line.isdigit():
        yield {"filename": clean(filename), "line": int(line), "name": clean(name)}


def _trace(changes: Sequence[Change], frames: _Frames) -> list[dict[str, Any]]:
    if not changes:
        return []
    events = [_event("segment_alloc", 0, extent(changes), [])]
    for each in changes:
        for action in ("alloc",) if each.begins else ("free_requested", "free_completed"):
            events.append(_event(action, each.block.offset, each.block.size, frames.of(each.block)))
    return events


def _event(action: str, offset: int, size: int, frames: list[Frame]) -> dict[str, Any]:
    return {"action": action, "addr": BEGINNING + offset, "size": size, "stream": 0, "frames": frames}


def _segments(changes: Sequence[Change], frames: _Frames) -> list[dict[str, Any]]:
    """The one segment, in which blocks and the gaps between them lie end to end."""
    if not changes:
        return []
    end, blocks, at = extent(changes), [], 0
    for block in left_over(changes):
        if block.offset > at:
            blocks.append(_block(at, block.offset - at, "inactive", 0, []))
        blocks.append(_block(block.offset, block.size, "active_allocated", block.size, frames.of(block)))
        at = block.offset + block.size
    if end > at:
        blocks.append(_block(at, end - at, "inactive", 0, []))
    active = sum(block["requested_size"] for block in blocks)
    return [
        {
            "device": 0,
            "address": BEGINNING,
            "total_size": end,
            "allocated_size": active,
            "active_size": active,
            "requested_size": active,
            "stream": 0,
            "segment_type": "large",
            "segment_pool_id": (0, 0),
            "is_expandable": False,
            "frames": [],
            "blocks": blocks,
        }
    ]


def _block(offset: int, size: int, state: str, requested: int, frames: list[Frame]) -> dict[str, Any]:
    return {
        "address": BEGINNING + offset,
        "size": size,
        "requested_size": requested,
        "state": state,
        "frames": frames,
    }
