"""Holding: storages on paper, that live as long as something holds them."""

from __future__ import annotations

from dataclasses import dataclass, field

NOWHERE = 0


@dataclass
class Storages:
    """Storages by number and how many hold each; `NOWHERE` stands for memory that does not count."""

    live: int = 0
    most: int = 0
    sizes: dict[int, int] = field(default_factory=dict)
    holders: dict[int, int] = field(default_factory=dict)
    last: int = 0

    def born(self, size: int) -> int:
        self.last = number = self.last + 1
        self.sizes[number] = size
        self.holders[number] = 1
        self.use(size, size)
        return number

    def use(self, most: int, net: int, owner: str = "") -> None:
        """Memory comes and goes: of a node's own storages, where an `owner` is named."""
        if self.live + most > self.most:
            self.most = self.live + most
        self.live += net

    def hold(self, number: int) -> int:
        if number != NOWHERE:
            self.holders[number] += 1
        return number

    def release(self, number: int) -> None:
        if number == NOWHERE:
            return
        left = self.holders[number] - 1
        if left:
            self.holders[number] = left
        else:
            del self.holders[number]
            self.live -= self.sizes.pop(number)
