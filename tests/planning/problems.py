"""Small random planning problems, as plain numbers."""

from __future__ import annotations

from random import Random

from revgraph.planning.solver.problem import Item, Option, Problem


def revnet_like(rng: Random, nodes: int) -> Problem:
    """A chain of stages, each of equal couplings, with boundaries between them and perhaps at the end."""
    boundaries = {0}
    if rng.random() < 0.5:
        boundaries.add(nodes - 1)
    if rng.random() < 0.5:
        boundaries.add(rng.randrange(1, nodes))
    sizes, items = [0], []
    coupling = boundary = _Numbers(rng)
    for n in range(nodes):
        if n in boundaries:
            coupling, boundary = _Numbers(rng), _Numbers(rng)
            items.append(boundary.boundary(f"boundary {n}", (n,), n + 1, sizes, rng.randint(1, 4)))
        else:
            items.append(coupling.coupling(f"coupling {n}", n, (), n + 1, sizes))
    return _problem(items, sizes, given=(0,), results=(nodes,), loss=rng.randint(0, 3))


def branching(rng: Random, nodes: int) -> Problem:
    """Two streams that read each other and what was made before, with boundaries and couplings mixed."""
    sizes, items = [0, 0], []
    streams, made = [0, 1], [0, 1]
    for n in range(nodes):
        numbers, stream = _Numbers(rng), rng.randrange(2)
        x, y = streams[stream], len(sizes)
        rest = [value for value in made if value != x]
        others = tuple(rng.sample(rest, rng.randint(1, min(2, len(rest)))))
        if n > 1 and sizes[x] and rng.random() < 0.6:
            items.append(numbers.coupling(f"coupling {n}", x, others, y, sizes))
        else:
            inputs = (x, *others[:1]) if rng.random() < 0.4 else (x,)
            items.append(numbers.boundary(f"boundary {n}", inputs, y, sizes, rng.randint(1, 3)))
        streams[stream] = y
        made.append(y)
    read = {value for item in items for value in item.inputs}
    results = tuple(value for value in made[2:] if value not in read)
    return _problem(items, sizes, given=(0, 1), results=results, loss=rng.randint(0, 2))


class _Numbers:
    """What one node takes: internals, cost, and transients of its forward, backward and rerun."""

    def __init__(self, rng: Random) -> None:
        self.internals = rng.randint(0, 6)
        self.cost = rng.randint(1, 5)
        self.forward, self.backward, self.rerun = rng.randint(0, 2), rng.randint(0, 2), rng.randint(0, 1)
        self.gradient = rng.randint(0, 3)

    def coupling(self, name: str, x: int, others: tuple[int, ...], y: int, sizes: list[int]) -> Item:
        sizes.append(sizes[x])
        held, out = self.internals, sizes[x]
        invert = Option(
            "invert", (), 0, (), (*others, y), (x,), self.cost, held, out + self.forward,
            held + out + self.backward,
        )  # fmt: skip
        more = (self._recompute(others, out),) if others else ()
        return self._item(name, (x, *others), y, (self._keep(others or (x,), out), invert, *more), out)

    def boundary(self, name: str, inputs: tuple[int, ...], y: int, sizes: list[int], out: int) -> Item:
        sizes.append(out)
        return self._item(name, inputs, y, (self._keep(inputs, out), self._recompute(inputs, out)), out)

    def _keep(self, pinned: tuple[int, ...], out: int) -> Option:
        held = self.internals
        return Option("keep", (), held, pinned, (), (), 0, 0, out + held + self.forward, self.backward)

    def _recompute(self, needs: tuple[int, ...], out: int) -> Option:
        held = self.internals
        return Option(
            "recompute", (), 0, (), needs, (), self.cost, held, out + self.forward,
            held + max(self.forward, self.backward),
        )  # fmt: skip

    def _item(
        self, name: str, inputs: tuple[int, ...], y: int, options: tuple[Option, ...], out: int
    ) -> Item:
        rerun = out + self.forward + self.rerun
        return Item(name, inputs, (y,), options, self.cost, rerun, self.internals, self.gradient)


def _problem(
    items: list[Item], sizes: list[int], given: tuple[int, ...], results: tuple[int, ...], loss: int
) -> Problem:
    plain = 3 * sum(item.rerun_cost for item in items)
    return Problem(tuple(items), tuple(range(len(sizes))), tuple(sizes), given, results, loss, plain)
