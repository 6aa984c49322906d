"""Holding: storages on paper, that live as long as something holds them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

NOWHERE = 0
# Of `NOWHERE`, so that it is never free: whoever holds or releases need not ask whether memory counts.
ALWAYS_HELD = 2**29


@dataclass
class Storages:
    """Storages by number and how many hold each; `NOWHERE` stands for memory that does not count.

    `sizes` are 0 of those that are free again. A `log`, where there is one, is told all that happens:
    ("born", number, size), ("free", number), and ("use", most, net, owner) of a node's own storages.
    """

    live: int = 0
    most: int = 0
    sizes: list[int] = field(default_factory=lambda: [0])
    holders: list[int] = field(default_factory=lambda: [ALWAYS_HELD])
    log: list[tuple[Any, ...]] | None = None

    def born(self, size: int) -> int:
        number = len(self.sizes)
        self.sizes.append(size)
        self.holders.append(1)
        self.live += size
        if self.live > self.most:
            self.most = self.live
        if self.log is not None:
            self.log.append(("born", number, size))
        return number

    def use(self, most: int, net: int) -> None:
        """Memory comes and goes."""
        if self.live + most > self.most:
            self.most = self.live + most
        self.live += net

    def hold(self, number: int) -> int:
        self.holders[number] += 1
        return number

    def release(self, number: int) -> None:
        self.holders[number] -= 1
        if not self.holders[number]:
            self.live -= self.sizes[number]
            self.sizes[number] = 0
            if self.log is not None:
                self.log.append(("free", number))
