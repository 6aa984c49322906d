"""The nodes, values and operations of a graph while it is built, with the names that they are given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, fx

from revgraph.errors import GraphError
from revgraph.expressions import Expression
from revgraph.graph import Node, Value
from revgraph.program import Law, Operation
from revgraph.storages import bytes_of, memory_key


@dataclass
class GraphBuilder:
    """What has been built so far.

    `names` are the traced values' names in the graph, `fakes` the graph's values as the example had them.
    """

    where: Mapping[fx.Node, str]
    nodes: list[Node] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)
    values: dict[str, Value] = field(default_factory=dict)
    names: dict[fx.Node, str] = field(default_factory=dict)
    fakes: dict[str, Tensor] = field(default_factory=dict)
    _taken: Counter[str] = field(default_factory=Counter)
    _storages: dict[int, str] = field(default_factory=dict)

    def unique(self, base: str) -> str:
        """The name, or the next free one with a number behind."""
        self._taken[base] += 1
        return base if self._taken[base] == 1 else self.unique(f"{base}_{self._taken[base]}")

    def name_of(self, node: fx.Node) -> str:
        if node not in self.names:
            raise GraphError(
                f"the traced value {node.name!r} ({self.where.get(node, 'no line known')}) is read in "
                "a way that a graph cannot express. Move the code around it into a submodule, which then "
                "becomes one node."
            )
        return self.names[node]

    def add_plain(self, node: fx.Node) -> str:
        """Name a result that is no tensor."""
        self.names[node] = self.unique(f"#{node.name}")
        return self.names[node]

    def add_value(self, name: str, fake: Tensor) -> str:
        """A new value of a fake's form; views share the storage of the value that came first."""
        self.fakes[name] = fake
        owner = self._storages.setdefault(memory_key(fake), name)
        shape = tuple(int(size) for size in fake.shape)
        dtype = str(fake.dtype).removeprefix("torch.")
        self.values[name] = Value(name, shape, dtype, bytes_of(fake), owner, str(fake.device))
        return name

    def only_values(self, reads: tuple[str, ...]) -> tuple[str, ...]:
        """Those of the names that are values, not plain results."""
        return tuple(read for read in reads if read in self.values)

    def remove(self, made: tuple[str, ...]) -> None:
        """Remove the node that makes these values, which nothing reads, and the values."""
        self.nodes = [node for node in self.nodes if node.outputs != made]
        self.operations = [operation for operation in self.operations if operation.makes != made]
        for name in made:
            del self.values[name]

    def add_coupling(
        self,
        name: str,
        target: str,
        term: Expression,
        reads: tuple[str, ...],
        law: Law,
        module: str,
        text: str,
        where: str,
        besides: tuple[str, ...] = (),
        spoken: str = "",
    ) -> None:
        """A half-step whose output value bears its name; `besides` are further results of its function, and
        `spoken` is what its law is called."""
        inputs, makes = (target, *self.only_values(reads)), (name, *besides)
        self.nodes.append(Node(name, "coupling", inputs, makes, module, target, text, where, law=spoken))
        self.operations.append(Operation(name, term, reads, makes, law, target))
