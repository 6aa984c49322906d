"""Composing: what the live bytes of a training step consist of, moment by moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from revgraph.planning.plans import Plan
from revgraph.planning.schedule import schedule
from revgraph.planning.simulating import Machine, Moment

PARTS: tuple[str, ...] = ("stored", "rebuilt", "internals", "gradients", "passing")


@dataclass(frozen=True, slots=True)
class Composition:
    """A moment, and its live bytes by what holds them; a storage held twice counts under the first.

    `stored` values wait from the forward for the backward, `rebuilt` ones were made again in the backward;
    `internals` are what autograd holds of nodes that are kept or differentiated next, `gradients` what has
    arrived and is not used yet, and `passing` the values between nodes of the forward, with what the caller
    holds.
    """

    moment: Moment
    parts: Mapping[str, int]


def compose(plan: Plan) -> list[Composition]:
    """A training step under a plan, with what its live bytes consist of after each step.

    Raises:
        PlanError: a step reads what is not in memory.
    """
    machine = Machine(plan)
    return [Composition(machine.take(step), _parts(machine)) for step in schedule(plan)]


def _parts(machine: Machine) -> dict[str, int]:
    sizes = machine.memory.sizes
    held: dict[str, set[int]] = {
        "stored": set(machine.tape.values()),
        "rebuilt": set(machine.rebuilt.values()),
        "gradients": set(machine.gradients.values()),
        "passing": set(machine.env.values()),
    }
    parts: dict[str, int] = dict.fromkeys(PARTS, 0)
    counted: set[int] = set()
    for name, numbers in held.items():
        parts[name] = sum(sizes[number] for number in numbers - counted)
        counted |= numbers
    parts["internals"] = machine.memory.live - sum(parts.values())
    return parts
