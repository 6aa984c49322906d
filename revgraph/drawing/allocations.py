"""Allocations: a predicted training step as storages that are allocated and freed, each at an address.

The simulator's memory logs every storage that begins or ends. What it has logged in a step is written down
here, so that live bytes summed over the events are the simulator's to the byte, and so is their maximum.
What it only knows as a sum, a node's own storages of one moment, is written as one block: the part that
stays, and a part that comes and goes at once.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from revgraph.planning.holding import Storages
from revgraph.planning.plans import Plan
from revgraph.planning.schedule import schedule
from revgraph.planning.simulating import Machine


@dataclass(slots=True)
class Block:
    """Bytes at an offset from the beginning of memory; `step` is the index of the step that allocated them.

    `what` says what lies there: a value, a gradient, internals.
    """

    offset: int
    size: int
    step: int
    what: str = ""


@dataclass(frozen=True, slots=True)
class Change:
    """A block is allocated, or freed, during the step of this index."""

    block: Block
    begins: bool
    step: int


def allocations(plan: Plan) -> list[Change]:
    """All allocations and frees of a training step under a plan, in order.

    Raises:
        PlanError: a step reads what is not in memory.
    """
    memory = _Recorded()
    machine = Machine(plan, Storages(log=memory.log))
    for index, step in enumerate(schedule(plan)):
        memory.step = index
        memory.fresh.clear()
        machine.take(step)
        memory.write_down()
        if step.node in machine.sites:
            node = machine.sites[step.node].node
            memory.name(machine.states.get(node.name, ()), f"state noted for replays of {node.name}")
            for name in dict.fromkeys((*node.outputs, *step.makes)):
                held = (machine.env, machine.tape, machine.rebuilt)
                memory.name([place[name] for place in held if name in place], f"value {name}")
            for name in dict.fromkeys((*node.inputs, *node.outputs)):
                name = machine.same.get(name, name)
                if name in machine.gradients:
                    memory.name([machine.gradients[name]], f"gradient of {name}")
        for number, block in memory.fresh.items():
            kind = "internals" if number in memory.blocks else "temporary storage"
            block.what = f"{kind} of {step.node or 'the step'}"
    return memory.changes


class Places:
    """Places in memory, each the first that is large enough."""

    def __init__(self) -> None:
        self._gaps: list[tuple[int, int]] = []
        self._end = 0

    def take(self, size: int) -> int:
        for index, (offset, room) in enumerate(self._gaps):
            if room >= size:
                rest = [(offset + size, room - size)] if room > size else []
                self._gaps[index : index + 1] = rest
                return offset
        offset, self._end = self._end, self._end + size
        return offset

    def give_back(self, offset: int, size: int) -> None:
        gaps = self._gaps
        place = bisect_left(gaps, (offset, 0))
        if place < len(gaps) and gaps[place][0] == offset + size:
            size += gaps.pop(place)[1]
        if place and sum(gaps[place - 1]) == offset:
            offset, before = gaps.pop(place - 1)
            size += before
        insort(gaps, (offset, size))


@dataclass
class _Recorded:
    """When each storage is allocated and freed, by the `log` of a memory."""

    log: list[tuple[Any, ...]] = field(default_factory=list)
    step: int = 0
    changes: list[Change] = field(default_factory=list)
    fresh: dict[int, Block] = field(default_factory=dict)
    """By number, the storages that began in this step."""
    blocks: dict[int, Block] = field(default_factory=dict)
    own: dict[str, list[Block]] = field(default_factory=dict)
    """By node, the blocks of its own storages, which have no numbers."""
    places: Places = field(default_factory=Places)

    def write_down(self) -> None:
        """Take over what has been logged."""
        for what, *told in self.log:
            if what == "born":
                number, size = told
                self.fresh[number] = self.blocks[number] = self._allocate(size)
            elif what == "free":
                self._free(self.blocks.pop(told[0]))
            else:
                self._use(*told)
        self.log.clear()

    def _use(self, most: int, net: int, owner: str) -> None:
        stays = max(net, 0)
        mine = self.own.setdefault(owner, [])
        if stays:
            mine.append(self._allocate(stays, f"internals of {owner}"))
        if most > stays:
            self._free(self._allocate(most - stays, f"temporary storage of {owner}"))
        self._shrink(mine, -net)

    def name(self, numbers: Iterable[int], what: str) -> None:
        """Say what lies in storages that began in this step; what was said first holds."""
        for number in numbers:
            if number in self.fresh:
                self.fresh.pop(number).what = what

    def _shrink(self, blocks: list[Block], size: int) -> None:
        """Free the latest of a node's own blocks; of the last, what is left over is allocated anew."""
        while size > 0:
            block = blocks.pop()
            self._free(block)
            if block.size > size:
                blocks.append(self._allocate(block.size - size, block.what))
            size -= block.size

    def _allocate(self, size: int, what: str = "") -> Block:
        block = Block(self.places.take(size), size, self.step, what)
        if size:
            self.changes.append(Change(block, True, self.step))
        return block

    def _free(self, block: Block) -> None:
        if block.size:
            self.places.give_back(block.offset, block.size)
            self.changes.append(Change(block, False, self.step))


def extent(changes: Sequence[Change]) -> int:
    """Bytes from the beginning of memory to the highest end of a block."""
    return max((each.block.offset + each.block.size for each in changes), default=0)


def left_over(changes: Sequence[Change]) -> list[Block]:
    """The blocks that are live when the step is over, by their place."""
    live: dict[int, Block] = {}
    for each in changes:
        if each.begins:
            live[id(each.block)] = each.block
        else:
            del live[id(each.block)]
    return sorted(live.values(), key=lambda block: block.offset)
