"""What each value of a traced graph rests on, who reads it, and which sums gain something by being couplings.

To take a sum for a coupling costs something: the modules around it stay open and the functions it lies in end
there. It gains something only if the value that it gives back is needed and not at hand otherwise. So its
target has to lie on a *stream*: a sequence of values, each the last one plus something, that begins with an
input, a part of a tensor that was split, or a value that another function reads. `on_streams` says where
streams begin, how they go on, and which of several sums with one target count.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn

from revgraph.tracing.find_couplings.readings import Reading
from revgraph.tracing.proxies import holds_tensors
from revgraph.tracing.wiring.recognize import is_wiring

COPIES = {"clone", torch.clone}


@dataclass
class Flow:
    """What is known of a traced graph's values: what they rest on, and who reads them.

    A value's *base* is what it is a view or a copy of: over wiring from one tensor to one tensor.
    """

    graph: fx.Graph
    root: nn.Module
    fakes: Mapping[fx.Node, Any]
    streams: set[fx.Node]
    kept_outside: set[fx.Node] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.order = {node: index for index, node in enumerate(self.graph.nodes)}
        self.base: dict[fx.Node, fx.Node] = {}
        self.readers: defaultdict[fx.Node, list[fx.Node]] = defaultdict(list)
        self.returned: set[fx.Node] = set()
        self.joined: set[fx.Node] = set()
        for node in self.graph.nodes:
            self._enter(node)

    def _enter(self, node: fx.Node) -> None:
        sources = [each for each in node.all_input_nodes if self.is_tensor(each)]
        wires = (
            bool(sources)
            and node not in self.streams
            and (node.target in COPIES or is_wiring(node, self.root))
        )
        self.base[node] = node
        if node.op == "output":
            self.returned.update(self.base[each] for each in sources)
        elif wires and len(sources) == 1 and self.is_tensor(node):
            self.base[node] = self.base[sources[0]]
        elif wires and len(sources) > 1:
            self.joined.update(self.base[each] for each in sources)
        if node.op == "output" or (self.makes_tensors(node) and self.base[node] is node):
            for each in sources:
                self.readers[self.base[each]].append(node)

    @cached_property
    def guard_calls(self) -> set[fx.Node]:
        """Calls that make no tensor and lead to none: guards, and what they ask for."""
        found: set[fx.Node] = set()
        for node in reversed(self.graph.nodes):
            if (
                node.op in ("call_function", "call_method", "get_attr")
                and not self.makes_tensors(node)
                and all(user in found for user in node.users)
            ):
                found.add(node)
        return found

    def is_tensor(self, node: fx.Node) -> bool:
        return isinstance(self.fakes.get(node), Tensor)

    def makes_tensors(self, node: fx.Node) -> bool:
        return self.is_tensor(node) or holds_tensors(self.fakes.get(node))

    def is_part(self, node: fx.Node) -> bool:
        """Whether a value is a part of another: of a split, or a slice."""
        return node.target is operator.getitem and self.is_tensor(node)

    def is_part_of_split(self, node: fx.Node) -> bool:
        """Whether a value is a part of another one, and not what a call returns beside other things."""
        source: Any = node.args[0] if self.is_part(node) else None
        return source is not None and (self.is_tensor(source) or is_wiring(source, self.root))

    def sums_of(self, possible: Mapping[fx.Node, Sequence[Reading]]) -> dict[fx.Node, set[fx.Node]]:
        """The sums that can be read with each target."""
        sums: dict[fx.Node, set[fx.Node]] = {}
        for node, found in possible.items():
            for reading in found:
                sums.setdefault(self.base[reading.target], set()).add(node)
        return sums

    def rank(self, reading: Reading, sums: Set[fx.Node]) -> tuple[bool, bool, bool, bool, int, int]:
        """Smaller for the reading to prefer: the target begins a stream, is not read after its sum but is
        before, is a sum itself; then the older target, and few calls."""
        target = self.base[reading.target]
        is_sum = target in sums or target in self.streams
        is_read_once = len(self.readers[target]) < 2
        begins = target.op == "placeholder" or target in self.streams or self.is_part(target)
        lies_on = begins or (is_sum and not is_read_once)
        stays = any(self.order[each] > self.order[reading.node] for each in self.readers[target])
        return not lies_on, stays, is_read_once, not is_sum, self.order[target], len(reading.spine)


def on_streams(
    flow: Flow,
    possible: Mapping[fx.Node, Sequence[Reading]],
    forks: Mapping[fx.Node, Set[fx.Node]] | None = None,
) -> dict[fx.Node, list[Reading]]:
    """Those of the readings that gain something: the value undone is needed, and not at hand otherwise.

    A target begins a stream if it is an input or comes out of a coupling module, if it is one of the parts
    that a tensor was split into, or if it is read elsewhere before its sum, as x2 is by the F of x1, or if
    the sum is returned. From there a stream leads on over sums, and from there back to where it began. Where
    several sums have one target, only those count that lead on, and the last on a stream that ends there:
    `forks` are all the sums of each target, those included that are now read with another one.

    A row of sums, each of which only the next one reads, leads on where its last sum does: `F(x + p + q)` is
    no more than `F(x + (p + q))`.
    """
    targets = flow.sums_of(possible)
    leading: dict[fx.Node, bool] = {}
    for node in sorted(possible, key=flow.order.__getitem__, reverse=True):
        after_it = targets.get(node, set())
        goes_on = bool(after_it) if len(flow.readers[node]) > 1 else any(leading[each] for each in after_it)
        leading[node] = node in flow.returned or node in flow.joined or goes_on

    def leads_on(node: fx.Node) -> bool:
        return leading[node]

    def begins(reading: Reading) -> bool:
        node, target = reading.node, flow.base[reading.target]
        if target.op == "placeholder" or target in flow.streams:
            return True
        others = [each for each in flow.readers[target] if each.op != "output" and each not in reading.spine]
        if flow.is_part(target):
            return bool(others) or leads_on(node)
        is_last = all(flow.order[each] < flow.order[node] for each in others)
        is_end = node in flow.returned and target not in possible and flow.fakes[node].numel() > 1
        return is_last and (bool(others) or is_end)

    def is_fork(reading: Reading) -> bool:
        target = flow.base[reading.target]
        if forks is None or len(forks[target]) < 2 or leads_on(reading.node):
            return False
        return target not in possible or reading.node is not max(targets[target], key=flow.order.__getitem__)

    worth: dict[fx.Node, list[Reading]] = {}
    open_readings = [reading for found in possible.values() for reading in found if not is_fork(reading)]
    after: defaultdict[fx.Node, list[Reading]] = defaultdict(list)
    at: defaultdict[fx.Node, list[Reading]] = defaultdict(list)
    for reading in open_readings:
        after[flow.base[reading.target]].append(reading)
        at[reading.node].append(reading)
    taken: set[int] = set()
    pending = [reading for reading in open_readings if begins(reading)]
    while pending:
        reading = pending.pop()
        if id(reading) in taken:
            continue
        taken.add(id(reading))
        pending += after.get(reading.node, ())
        pending += at.get(flow.base[reading.target], ())
    for reading in open_readings:
        if id(reading) in taken:
            worth.setdefault(reading.node, []).append(reading)
    return worth
