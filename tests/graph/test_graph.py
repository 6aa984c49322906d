"""The graph as data: frozen, comparable, JSON both ways, verified, printed."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from typing import Any

import networkx as nx
import pytest
import torch
from engine.random_nets import BATCH, WIDTH, RandomNet, recipes
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import revgraph as rg
from revgraph.graph import Cost

SETTINGS = settings(
    max_examples=10,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.generate),
)


def value(name: str, shape: tuple[int, ...] = (2, 3), storage: str | None = None) -> rg.Value:
    return rg.Value(name, shape, "float32", 24, storage or name)


def sample() -> rg.Graph:
    """Two half-steps, a wiring and a boundary."""
    return rg.Graph(
        nodes=(
            rg.Node("x", "input", (), ("x",)),
            rg.Node("split", "wiring", ("x",), ("a", "b"), expression="split(x)"),
            rg.Node("f", "coupling", ("a", "b"), ("y",), "f", "a", "a (+) f(b)", "net.py:3"),
            rg.Node("g", "coupling", ("b", "y"), ("z",), "g", "b", "b (+) g(y)", cost=Cost(flops=5)),
            rg.Node("head", "boundary", ("y", "z"), ("out",), "head", expression="head(y, z)"),
            rg.Node("output", "output", ("out", "z"), ()),
        ),
        values=(
            value("x", (2, 6)),
            value("a", storage="x"),
            value("b", storage="x"),
            value("y"),
            value("z"),
            value("out", ()),
        ),
        name="sample",
    )


def test_sample_is_consistent() -> None:
    assert rg.verify(sample()) == sample()


@pytest.mark.parametrize("thing", [sample(), sample().nodes[0], sample().values[0], sample().nodes[3].cost])
def test_graph_and_its_parts_are_frozen(thing: Any) -> None:
    for field in dataclasses.fields(thing):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(thing, field.name, None)


def test_graphs_compare_by_content() -> None:
    assert sample() == sample()
    for index, node in enumerate(sample().nodes):
        nodes = list(sample().nodes)
        nodes[index] = dataclasses.replace(node, where="elsewhere")
        assert dataclasses.replace(sample(), nodes=tuple(nodes)) != sample()


def test_graphs_are_hashable() -> None:
    assert len({sample(), sample()}) == 1


def test_lookups() -> None:
    graph = sample()
    assert graph.inputs == ("x",)
    assert graph.outputs == ("out", "z")
    assert graph.producer["y"].name == "f"
    assert [node.name for node in graph.readers["z"]] == ["head", "output"]
    assert [node.name for node in graph.readers["y"]] == ["g", "head"]
    assert [node.name for node in graph.planned] == ["f", "g", "head"]
    assert graph.node["g"].others == ("y",)
    assert graph.value["a"].storage == "x"


def test_json_both_ways() -> None:
    assert rg.Graph.from_json(sample().to_json()) == sample()


@pytest.mark.slow
@SETTINGS
@given(recipes(), st.integers(0, 9))
def test_json_both_ways_on_traced_nets(recipe: Any, seed: int) -> None:
    torch.manual_seed(seed)
    model = RandomNet(*recipe).double()
    graph = rg.trace(model, *(torch.randn(BATCH, WIDTH, dtype=torch.double) for _ in range(recipe[0]))).graph
    text = graph.to_json()
    again = rg.Graph.from_json(text)
    assert again == graph
    assert again.to_json() == text
    assert rg.plan(again).decisions == rg.plan(graph).decisions
    assert nx.is_directed_acyclic_graph(graph.digraph())


def test_json_is_plain() -> None:
    data = json.loads(sample().to_json())
    assert data["revgraph"] == 2
    assert [node["name"] for node in data["nodes"]] == [node.name for node in sample().nodes]


def broken(change: Any) -> str:
    data = json.loads(sample().to_json())
    change(data)
    return json.dumps(data)


MALFORMED: dict[str, str] = {
    "empty": "",
    "no JSON": "{",
    "null": "null",
    "number": "3",
    "list": "[]",
    "string": '"x"',
    "empty object": "{}",
    "unknown format": '{"revgraph": 99}',
    "no nodes": '{"revgraph": 2, "name": "a"}',
    "deep": "[" * 100_000,
    "nodes null": broken(lambda data: data.update(nodes=None)),
    "nodes number": broken(lambda data: data.update(nodes=3)),
    "nodes object": broken(lambda data: data.update(nodes={"a": 1})),
    "node null": broken(lambda data: data["nodes"].append(None)),
    "node list": broken(lambda data: data["nodes"].append([])),
    "node text": broken(lambda data: data["nodes"].append("x")),
    "node name number": broken(lambda data: data["nodes"][1].update(name=3)),
    "node name null": broken(lambda data: data["nodes"][1].update(name=None)),
    "node name list": broken(lambda data: data["nodes"][1].update(name=["a"])),
    "node name object": broken(lambda data: data["nodes"][1].update(name={})),
    "inputs null": broken(lambda data: data["nodes"][1].update(inputs=None)),
    "inputs number": broken(lambda data: data["nodes"][1].update(inputs=5)),
    "inputs text": broken(lambda data: data["nodes"][1].update(inputs="x")),
    "inputs of lists": broken(lambda data: data["nodes"][1].update(inputs=[["x"]])),
    "kind null": broken(lambda data: data["nodes"][1].update(kind=None)),
    "kind list": broken(lambda data: data["nodes"][1].update(kind=["wiring"])),
    "missing kind": broken(lambda data: data["nodes"][1].pop("kind")),
    "unknown field": broken(lambda data: data["nodes"][1].update(color="red")),
    "unknown cost": broken(lambda data: data["nodes"][1]["cost"].update(color="red")),
    "cost null": broken(lambda data: data["nodes"][1].update(cost=None)),
    "cost text": broken(lambda data: data["nodes"][2]["cost"].update(flops="many")),
    "negative cost": broken(lambda data: data["nodes"][2]["cost"].update(saved_bytes=-1)),
    "growth beyond all floats": broken(lambda data: data["nodes"][2]["cost"].update(growth=10**400)),
    "rounding infinite": broken(lambda data: data["nodes"][2]["cost"].update(rounding=float("inf"))),
    "saved values unknown": broken(lambda data: data["nodes"][2]["cost"].update(saved_values=["ghost"])),
    "shape null": broken(lambda data: data["values"][0].update(shape=None)),
    "shape text": broken(lambda data: data["values"][0].update(shape="2x3")),
    "shape of texts": broken(lambda data: data["values"][0].update(shape=["2", "6"])),
    "negative shape": broken(lambda data: data["values"][0].update(shape=[-2, 6])),
    "nbytes text": broken(lambda data: data["values"][0].update(nbytes="24")),
    "negative nbytes": broken(lambda data: data["values"][0].update(nbytes=-24)),
    "dtype null": broken(lambda data: data["values"][0].update(dtype=None)),
    "storage null": broken(lambda data: data["values"][0].update(storage=None)),
    "storage a view": broken(lambda data: data["values"][3].update(storage="a")),
    "name null": broken(lambda data: data.update(name=None)),
    "target number": broken(lambda data: data["nodes"][2].update(target=4)),
    "infinite": broken(lambda data: data["values"][0].update(nbytes=float("inf"))),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_json_is_a_graph_error(case: str) -> None:
    with pytest.raises(rg.GraphError):
        rg.Graph.from_json(MALFORMED[case])


@pytest.mark.slow
@settings(SETTINGS, max_examples=100)
@given(st.data())
def test_any_one_part_of_the_json_replaced_ends_in_a_graph_error_or_a_graph(data: Any) -> None:
    tree = json.loads(sample().to_json())
    place: Any = tree
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from(keys))
        if isinstance(place[key], (dict, list)) and place[key] and data.draw(st.booleans()):
            place = place[key]
        else:
            break
    leaf = st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text(max_size=3)
    place[key] = data.draw(
        leaf | st.lists(leaf, max_size=2) | st.dictionaries(st.text(max_size=2), leaf, max_size=2)
    )
    try:
        graph = rg.Graph.from_json(json.dumps(tree))
    except rg.GraphError:
        return
    str(graph)
    str(rg.plan(graph))
    assert rg.Graph.from_json(graph.to_json()) == graph


def changed(index: int, **parts: Any) -> rg.Graph:
    nodes = list(sample().nodes)
    nodes[index] = dataclasses.replace(nodes[index], **parts)
    return dataclasses.replace(sample(), nodes=tuple(nodes))


def with_values(*values: rg.Value) -> rg.Graph:
    return dataclasses.replace(sample(), values=values)


VALUES = sample().values
WRONG: dict[str, tuple[rg.Graph, str]] = {
    "two nodes of a name": (changed(3, name="f"), "2 nodes are named 'f': names must be unique"),
    "two values of a name": (with_values(*VALUES, VALUES[0]), "2 values are named 'x': names must be unique"),
    "unknown kind": (changed(4, kind="layer"), "node 'head' is of kind 'layer'; the kinds are"),
    "no target": (changed(2, target=None), "coupling 'f' needs one target among its inputs and an output"),
    "foreign target": (changed(2, target="z"), "coupling 'f' needs one target"),
    "no output": (changed(2, outputs=()), "coupling 'f' needs one target"),
    "target twice": (
        changed(2, inputs=("a", "b", "a")), "coupling 'f' reads its target 'a' as another input too"
    ),
    "target elsewhere": (changed(4, target="y"), "node 'head' of kind 'boundary' cannot have a target"),
    "input that reads": (changed(0, inputs=("y",)), "input node 'x' cannot read values"),
    "output that makes": (changed(5, outputs=("y",)), "output node 'output' cannot make values"),
    "unknown read": (changed(4, inputs=("ghost",)), "node 'head' reads 'ghost', which is no value"),
    "unknown made": (changed(4, outputs=("ghost",)), "node 'head' makes 'ghost', which is no value"),
    "cycle": (
        changed(2, inputs=("a", "z")),
        "node 'f' reads 'z' before any node made it: the nodes are not in a topological order, or",
    ),
    "itself": (changed(2, inputs=("a", "y")), "node 'f' reads 'y' before any node made it"),
    "made twice": (changed(4, outputs=("y",)), "value 'y' is made twice, the second time by node 'head'"),
    "made by none": (with_values(*VALUES, value("w")), "value 'w' is made by no node"),
    "unknown storage": (
        with_values(*VALUES[:3], value("y", storage="ghost"), *VALUES[4:]),
        "value 'y' is a view of 'ghost', which is no value",
    ),
    "shape changed": (
        with_values(*VALUES[:3], value("y", (3, 2)), *VALUES[4:]),
        "coupling 'f' turns 'a' of shape [2, 3] into 'y' of shape [3, 2]: a coupling keeps",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_verify_says_what_is_wrong_and_where(case: str) -> None:
    graph, text = WRONG[case]
    with pytest.raises(rg.GraphError) as caught:
        rg.verify(graph)
    assert text in str(caught.value)


def test_inconsistent_graph_in_json_is_a_graph_error() -> None:
    with pytest.raises(rg.GraphError, match="made twice"):
        rg.Graph.from_json(changed(4, outputs=("y",)).to_json())


def test_digraph_has_the_values_on_its_edges() -> None:
    digraph = sample().digraph()
    assert nx.is_directed_acyclic_graph(digraph)
    assert set(digraph.nodes) == {node.name for node in sample().nodes}
    assert digraph.edges["split", "f"]["values"] == ("a", "b")
    assert digraph.edges["f", "g"]["values"] == ("y",)
    assert digraph.nodes["f"]["node"] == sample().nodes[2]
    assert not digraph.has_edge("f", "split")


def test_printed_table_is_short_and_aligned() -> None:
    lines = str(sample()).splitlines()
    assert lines[0] == "sample: 2 couplings, 1 boundaries, 1 wirings"
    assert len(lines) == 2 + 4
    assert all(line == line.rstrip() for line in lines)
    head = lines[1]
    for word in ("kind", "computes", "shape"):
        column = head.index(word)
        assert all(line[column - 2 : column] == "  " and line[column] != " " for line in lines[1:])
    assert lines[3].split() == ["f", "coupling", "a", "(+)", "f(b)", "2x3"]
    assert lines[-1].endswith("scalar")


def test_printed_table_of_a_wide_node_stays_narrow() -> None:
    """A node that reads many values, as in a densely connected net, must not make every line long."""
    names = [f"a.rather.long.path.to.layer{index}" for index in range(60)]
    graph = rg.Graph(
        nodes=(
            *(rg.Node(name, "input", (), (name,)) for name in names),
            rg.Node("join", "boundary", tuple(names), ("y",), expression=f"join({', '.join(names)})"),
            rg.Node("output", "output", ("y",), ()),
        ),
        values=(*(value(name) for name in names), value("y")),
    )
    assert max(map(len, str(graph).splitlines())) <= 160
    assert max(map(len, str(rg.plan(graph)).splitlines())) <= 160


def test_empty_graph_prints() -> None:
    assert str(rg.Graph((), (), "none")).startswith("none: 0 couplings")


def test_graph_needs_no_torch() -> None:
    """The module's own code runs with torch barred from import."""
    code = (
        "import sys\nsys.modules['torch'] = None\nimport revgraph.planning\nprint(revgraph.Graph((), ()))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
