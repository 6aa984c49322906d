"""Settings: attributes that are None until the first forward settles them for good.

`if self.config.problem_type is None: self.config.problem_type = "regression"` runs once. A graph is that of
later calls, and the net settles the attribute when it is first called, as the model would. That is right if
the first call computes the same besides (`calls_of`), and for inputs such as the example, by which the model
may have chosen what to settle on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensor

from revgraph.expressions import leaves, map_leaves
from revgraph.tracing.proxies import holds_tensors, is_proxy, is_tensor

if TYPE_CHECKING:
    from revgraph.tracing.guards.fixed_values import Read

SETTLED = (bool, int, float, str, torch.dtype, torch.device)


@dataclass(frozen=True, slots=True)
class Setting:
    """An attribute that was None, and what the first forward made of it."""

    owner: Any
    name: str
    value: Any

    def is_open(self) -> bool:
        return getattr(self.owner, self.name, self) is None

    def settle(self) -> None:
        setattr(self.owner, self.name, self.value)

    def reopen(self) -> None:
        setattr(self.owner, self.name, None)


@dataclass(frozen=True)
class Settings:
    """The settings of a forward. They follow from what it read besides, and from inputs of such forms."""

    settings: tuple[Setting, ...] = ()
    reads: tuple[Read, ...] = ()
    inputs: dict[str, Any] = field(default_factory=dict)

    def open_ones(self) -> list[Setting]:
        return [each for each in self.settings if each.is_open()] if self.settings else []

    def would_hold(self, hold: Callable[[], bool]) -> bool:
        """Whether some are open, and guards hold once these are settled."""
        open_ones = self.open_ones()
        if not open_ones or not all(read.holds() for read in self.reads):
            return False
        for each in open_ones:
            each.settle()
        try:
            return hold()
        finally:
            for each in open_ones:
                each.reopen()

    def settle(self, given: Mapping[str, Any]) -> bool:
        """Settle those that are open; whether they may be settled so, for these inputs."""
        open_ones = self.open_ones()
        if open_ones and forms_of(given) != self.inputs:
            return False
        for each in open_ones:
            each.settle()
        return True


def setting_of(owner: Any, name: str, before: Any, now: Any) -> Setting | None:
    """The setting in a change of an attribute; None where it is another kind of change."""
    if is_proxy(now):  # it follows from the inputs' forms, for which alone it is settled
        now = now.fake
    return Setting(owner, name, now) if before is None and issubclass(type(now), SETTLED) else None


def forms_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """Shapes and dtypes of tensors, and numbers as they are."""
    return {
        name: (tuple(each.shape), each.dtype) if isinstance(each, Tensor) else each
        for name, each in given.items()
    }


def calls_of(graph: fx.Graph, fakes: Mapping[fx.Node, Any], results: Any) -> list[Any]:
    """What a graph computes, in a form that is equal for graphs that compute the same: without guards, and
    what only they ask for."""
    computing: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        makes = is_tensor(fakes.get(node)) or holds_tensors(fakes.get(node))
        if makes or node.op in ("call_module", "output") or not computing.isdisjoint(node.users):
            computing.add(node)
    places: dict[fx.Node, int] = {}
    found: list[Any] = [[_compared(leaf, {}) for leaf in leaves(results)]]
    for node in graph.nodes:
        if node in computing:
            given = map_leaves(lambda leaf: _compared(leaf, places), (node.args, dict(node.kwargs)))
            found.append((node.op, node.target, given))
            places[node] = len(places)
    return found


def _compared(leaf: Any, places: Mapping[fx.Node, int]) -> Any:
    if isinstance(leaf, fx.Node):
        return "node", places[leaf]
    if isinstance(leaf, FakeTensor):
        return object()  # its numbers are not known
    return ("tensor", leaf.dtype, leaf.tolist()) if isinstance(leaf, Tensor) else leaf
