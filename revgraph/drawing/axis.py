"""The axis of time that pictures of a training step share: its steps from left to right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from revgraph.drawing.lettering import shorten, width
from revgraph.planning.schedule import Instruction

NARROWEST, WIDEST = 3.0, 24.0
WIDTH = 660.0
LONGEST_NAME = 150.0
SIZE = 9.0


@dataclass(frozen=True, slots=True)
class Axis:
    """Steps of one width, from `left` on; `turn` is the index of the loss, or of the first backward."""

    left: float
    step: float
    count: int
    turn: int

    def x(self, index: float) -> float:
        """Where a step begins."""
        return self.left + index * self.step

    @property
    def right(self) -> float:
        """Where the last step ends."""
        return self.x(self.count)


def turn_of(steps: Sequence[Instruction]) -> int:
    """The index of the loss, or of the first backward; the number of steps where there is neither."""
    return next(
        (index for index, step in enumerate(steps) if step.action in ("loss", "backward")), len(steps)
    )


def axis(steps: Sequence[Instruction]) -> Axis:
    """The axis for these steps, with room for the nodes' names on its left."""
    names = {step.node for step in steps}
    room = max((width(shorten(name, LONGEST_NAME, SIZE), SIZE) for name in names), default=0.0)
    count = max(len(steps), 1)
    turn = turn_of(steps)
    each = min(WIDEST, max(NARROWEST, WIDTH / count))
    return Axis(max(64.0, room + 14.0), each, count, turn)
