"""The graph: nodes and the values between them, as plain data without tensors or modules."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar, cast

from revgraph.courses import verify_course
from revgraph.displays import ShownAsPicture
from revgraph.errors import GraphError
from revgraph.parts import KINDS, Cost, CourseTable, Kind, Node, Value, value_from

if TYPE_CHECKING:
    import networkx as nx

__all__ = ["KINDS", "Cost", "Graph", "Kind", "Node", "Value", "clipped", "table", "verify"]

FORMAT = 2
WIDEST_CELL = 48

T = TypeVar("T")


@dataclass(frozen=True)
class Graph(ShownAsPicture):
    """A network as data: nodes in a topological order, and their values.

    `findings` say what a trace made of the model's sums and modules. Graphs compare by all else that they
    hold, turn into JSON and back, and hold neither tensors nor modules.
    """

    nodes: tuple[Node, ...]
    values: tuple[Value, ...]
    name: str = "graph"
    loss: Node | None = field(default=None, repr=False)
    findings: tuple[str, ...] = field(default=(), repr=False, compare=False)

    @cached_property
    def node(self) -> Mapping[str, Node]:
        """Nodes by name."""
        return {node.name: node for node in self.nodes}

    @cached_property
    def value(self) -> Mapping[str, Value]:
        """Values by name."""
        return {value.name: value for value in self.values}

    @cached_property
    def producer(self) -> Mapping[str, Node]:
        """The node that makes each value."""
        return {name: node for node in self.nodes for name in node.outputs}

    @cached_property
    def readers(self) -> Mapping[str, tuple[Node, ...]]:
        """The nodes that read each value, in order."""
        readers: dict[str, list[Node]] = {value.name: [] for value in self.values}
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                readers[name].append(node)
        return {name: tuple(nodes) for name, nodes in readers.items()}

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """The values that the caller gives."""
        return tuple(name for node in self.nodes if node.kind == "input" for name in node.outputs)

    @cached_property
    def outputs(self) -> tuple[str, ...]:
        """The values that the caller gets."""
        return tuple(name for node in self.nodes if node.kind == "output" for name in node.inputs)

    @cached_property
    def planned(self) -> tuple[Node, ...]:
        """The nodes that a plan decides on: couplings and boundaries, in order."""
        return tuple(node for node in self.nodes if node.kind in ("coupling", "boundary"))

    def worked_out(self, make: Callable[..., T], *arguments: Hashable) -> T:
        """What is made of the graph and these arguments: once, and kept with it."""
        made: dict[Hashable, Any] = self.__dict__.setdefault("_worked_out", {})
        key = make, *arguments
        if key not in made:
            made[key] = make(self, *arguments)
        return made[key]

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled: without what is worked out of it again when it is needed."""
        return {each.name: self.__dict__[each.name] for each in fields(self)}

    def own_bytes(self, name: str) -> int:
        """The bytes of a value's own elements, which a view has fewer of than its storage."""
        value, whole = self.value[name], self.value[self.value[name].storage]
        count = math.prod(whole.shape)
        return min(value.nbytes, value.nbytes * math.prod(value.shape) // count) if count else 0

    def digraph(self) -> nx.DiGraph[str]:
        """The nodes as a networkx graph; an edge lists the values that pass along it."""
        import networkx as nx  # takes a while to import, and few need it

        digraph: nx.DiGraph[str] = nx.DiGraph()
        for node in self.nodes:
            digraph.add_node(node.name, node=node)
        for name, readers in self.readers.items():
            source = self.producer[name].name
            for reader in readers:
                if digraph.has_edge(source, reader.name):
                    digraph.edges[source, reader.name]["values"] += (name,)
                else:
                    digraph.add_edge(source, reader.name, values=(name,))
        return digraph

    def to_json(self) -> str:
        """This graph as JSON text, which `Graph.from_json` reads back to an equal graph."""
        courses = CourseTable()
        data = {
            "revgraph": FORMAT,
            "name": self.name,
            "nodes": [courses.written(node) for node in self.nodes],
            "values": [asdict(value) for value in self.values],
            "loss": None if self.loss is None else courses.written(self.loss),
            "findings": list(self.findings),
        }
        return json.dumps({**data, "courses": courses.data}, indent=1)

    @staticmethod
    def from_json(text: str) -> Graph:
        """The graph that `Graph.to_json` wrote.

        Raises:
            GraphError: the text is not such JSON, or the graph in it is inconsistent.
        """
        try:
            data = json.loads(text)
            if data["revgraph"] != FORMAT:
                raise GraphError(
                    f"graph format {data['revgraph']!r} is unknown: this revgraph reads format {FORMAT}"
                )
            courses = CourseTable(data.get("courses", []))
            loss = data.get("loss")
            graph = Graph(
                nodes=tuple(courses.read(item) for item in data["nodes"]),
                values=tuple(value_from(item) for item in data["values"]),
                name=data["name"],
                loss=None if loss is None else courses.read(loss),
                findings=_texts(data.get("findings", [])),
            )
            if not isinstance(graph.name, str):
                raise ValueError(f"a graph's name is text, not {graph.name!r:.60}")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise GraphError(
                f"this is not a graph in revgraph's JSON form ({type(error).__name__}: {error}). "
                "Write one with graph.to_json()."
            ) from error
        for node in verify(graph).nodes:
            _verify_cost(node, graph)
        if graph.loss is not None:
            _verify_cost(graph.loss, graph)
        return graph

    def __str__(self) -> str:
        count = Counter(node.kind for node in self.nodes)
        head = (
            f"{self.name}: {count['coupling']} couplings, {count['boundary']} boundaries, "
            f"{count['wiring']} wirings"
        )
        rows = [
            tuple(map(clipped, (node.name, node.kind, node.computes, _shapes(self, node.outputs))))
            for node in self.nodes
            if node.kind not in ("input", "output")
        ]
        return "\n".join([head, table(("node", "kind", "computes", "shape"), rows), *self.findings])


def verify(graph: Graph) -> Graph:
    """The graph itself, once it is known to be consistent.

    Every value is made once and before it is read, every node's form fits its kind, and all names are unique.

    Raises:
        GraphError: what is wrong, and at which node.
    """
    if not isinstance(graph, Graph):
        hint = ": give its .graph" if isinstance(getattr(graph, "graph", None), Graph) else ""
        raise GraphError(f"a revgraph.Graph is verified, and this is a {type(graph).__name__}{hint}")
    _unique("node", (node.name for node in graph.nodes))
    _unique("value", (value.name for value in graph.values))
    made: set[str] = set()
    for node in graph.nodes:
        _verify_form(node)
        for name in node.inputs:
            if name not in graph.value:
                raise GraphError(f"node {node.name!r} reads {name!r}, which is no value of the graph")
            if name not in made:
                raise GraphError(
                    f"node {node.name!r} reads {name!r} before any node made it: "
                    "the nodes are not in a topological order, or form a cycle"
                )
        for name in node.outputs:
            if name not in graph.value:
                raise GraphError(f"node {node.name!r} makes {name!r}, which is no value of the graph")
            if name in made:
                raise GraphError(f"value {name!r} is made twice, the second time by node {node.name!r}")
            made.add(name)
    for value in graph.values:
        if value.name not in made:
            raise GraphError(f"value {value.name!r} is made by no node")
        if value.storage not in graph.value:
            raise GraphError(f"value {value.name!r} is a view of {value.storage!r}, which is no value")
        if graph.value[value.storage].storage != value.storage:
            raise GraphError(f"value {value.name!r} is a view of {value.storage!r}, which is a view itself")
    for node in graph.nodes:
        if node.kind == "coupling":
            _verify_coupling(graph, node)
    return graph


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """Rows as aligned plain text under a head."""
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def clipped(cell: str) -> str:
    """A cell of a table, cut where it would make every line long."""
    return cell if len(cell) <= WIDEST_CELL else cell[: WIDEST_CELL - 3] + "..."


def _verify_form(node: Node) -> None:
    if node.kind not in KINDS:
        raise GraphError(f"node {node.name!r} is of kind {node.kind!r}; the kinds are {', '.join(KINDS)}")
    if node.kind == "coupling":
        if node.target is None or node.target not in node.inputs or not node.outputs:
            raise GraphError(f"coupling {node.name!r} needs one target among its inputs and an output")
        if node.inputs.count(node.target) != 1:
            raise GraphError(f"coupling {node.name!r} reads its target {node.target!r} as another input too")
    elif node.target is not None:
        raise GraphError(f"node {node.name!r} of kind {node.kind!r} cannot have a target")
    if node.kind == "input" and node.inputs:
        raise GraphError(f"input node {node.name!r} cannot read values")
    if node.kind == "output" and node.outputs:
        raise GraphError(f"output node {node.name!r} cannot make values")


def _verify_cost(node: Node, graph: Graph) -> None:
    for name in (*node.inputs, *node.cost.saved_values, *node.cost.frees):
        if name not in graph.value:
            raise GraphError(f"node {node.name!r}, or its cost, names {name!r}, which is no value")
    for decision, course in node.cost.courses.items():
        try:
            verify_course(course, len(node.inputs), len(node.outputs), len(node.cost.shared))
        except ValueError as error:
            raise GraphError(f"the course {decision!r} of node {node.name!r}: {error}") from error


def _verify_coupling(graph: Graph, node: Node) -> None:
    target, output = graph.value[cast("str", node.target)], graph.value[node.outputs[0]]
    if target.shape != output.shape:
        raise GraphError(
            f"coupling {node.name!r} turns {target.name!r} of shape {list(target.shape)} into "
            f"{output.name!r} of shape {list(output.shape)}: a coupling keeps its target's shape"
        )


def _texts(items: Any) -> tuple[str, ...]:
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise ValueError(f"findings are a list of lines, not {items!r:.60}")
    return tuple(items)


def _unique(what: str, names: Iterable[str]) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise GraphError(f"{count} {what}s are named {name!r}: names must be unique")


def _shapes(graph: Graph, names: tuple[str, ...]) -> str:
    return ", ".join("x".join(map(str, graph.value[name].shape)) or "scalar" for name in names)
