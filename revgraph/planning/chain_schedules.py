"""Chain schedules: the actions of a chain's best training step, from the programme's curves."""

from __future__ import annotations

from typing import Literal, NamedTuple

from revgraph.planning.chains import OTHERS, ChainProgramme, Key, Way


class Action(NamedTuple):
    """One thing done to a node of a chain (counted from 1).

    "forward" runs it from its input, plainly or in a `way` that holds something; "turn" is the loss;
    "backward" takes the gradient through it in a `way`, which gives its input where the way needs its output.
    """

    do: Literal["forward", "turn", "backward"]
    node: int
    way: Way | None = None


def chain_schedule(programme: ChainProgramme, size: int) -> list[Action]:
    """The actions of a training step at least cost within `size` bytes, which must be possible."""
    last = programme.last
    done: list[Action] = []
    pending: list[tuple[Key, int] | Action] = [(Key(1, last + 1, OTHERS), size)]
    while pending:
        task = pending.pop()
        if isinstance(task, Action):
            done.append(task)
            continue
        key, within = task
        choice = programme.best(key, within)
        rest: list[tuple[Key, int] | Action] = [(part, within - shift) for part, shift in choice.parts]
        if choice.how == "turn" and key.j > last:
            done.append(Action("turn", last + 1))
        elif choice.how == "way":
            done.append(Action("forward", key.i, choice.way))
            rest.append(Action("backward", key.i, choice.way))
        elif choice.how == "back":
            done.append(Action("backward", key.j, choice.way))
        elif choice.how == "jump":
            done += [Action("forward", k) for k in range(key.i, choice.to)]
        pending += reversed(rest)
    return done
