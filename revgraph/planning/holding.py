"""Holding: storages on paper, that live as long as something holds them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

NOWHERE = 0


@dataclass
class Storages:
    """Storages by number and how many hold each; `NOWHERE` stands for memory that does not count."""

    live: int = 0
    most: int = 0
    sizes: dict[int, int] = field(default_factory=dict)
    holders: Counter[int] = field(default_factory=Counter)
    last: int = 0

    def born(self, size: int) -> int:
        self.last = number = self.last + 1
        self.sizes[number] = size
        self.holders[number] = 1
        self.use(size, size)
        return number

    def use(self, most: int, net: int) -> None:
        self.most = max(self.most, self.live + most)
        self.live += net

    def hold(self, number: int) -> int:
        if number != NOWHERE:
            self.holders[number] += 1
        return number

    def release(self, number: int) -> None:
        if number == NOWHERE:
            return
        self.holders[number] -= 1
        if self.holders[number] == 0:
            self.live -= self.sizes.pop(number)
            del self.holders[number]
