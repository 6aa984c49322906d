"""Every shipped network trains, and its gradients are those of plain autograd, in float64."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

import revgraph as rg
from revgraph import specs
from revgraph.engine.module import ReversibleModule
from revgraph.tracing import trace

MOST = 2
LARGEST_IMAGE = 32
# Up to the head, these can be undone.
INVERTIBLE = ("i-revnet", "haar-revnet")


def shortened(tree: Any) -> Any:
    """The specification with no more than two of whatever it repeats, and small images."""
    if isinstance(tree, dict):
        return {
            key: min(value, MOST) if key == "repeat" and isinstance(value, int) else shortened(value)
            for key, value in tree.items()
        }
    return [shortened(item) for item in tree] if isinstance(tree, list) else tree


def small(name: str) -> dict[str, Any]:
    spec = shortened(yaml.safe_load((files("revgraph") / "models" / f"{name}.yaml").read_text()))
    for key in ("blocks", "steps", "rounds", "depth", "layers"):
        if key in spec.get("parameters", {}):
            spec["parameters"][key] = 1
    if spec["inputs"].get("image") == [3, 224, 224]:
        spec["inputs"]["image"] = [3, LARGEST_IMAGE, LARGEST_IMAGE]
    return spec


def loss_of(outputs: Any) -> Tensor:
    tensors = outputs if isinstance(outputs, tuple) else (outputs,)
    return sum((each.square().mean() for each in tensors), torch.zeros(()))


@pytest.mark.slow
@pytest.mark.parametrize("name", specs.shipped())
def test_it_trains_with_plain_autograds_gradients(name: str) -> None:
    torch.manual_seed(0)
    spec = small(name)
    built = specs.build(spec, batch=4)
    # Without costs, which no gradient depends on, and which take most of the time.
    program = trace(built.module, specs.traced_inputs(built), {}, built.name)
    net = ReversibleModule(built.module, program).double()
    couplings = [node.name for node in net.graph.nodes if node.kind == "coupling"]
    others = [node.name for node in net.graph.nodes if node.kind == "boundary"]
    net.plan = rg.decide(
        net.graph, {**dict.fromkeys(couplings, "invert"), **dict.fromkeys(others, "recompute")}
    )
    inputs = [each.double() if each.is_floating_point() else each for each in specs.example_inputs(built)]
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        loss_of(net(*inputs)).backward()
        optimizer.step()
    report = rg.check(net, *inputs)
    assert report.max_relative_error < 1e-8
    assert report.angle_degrees < 1e-6


@pytest.mark.parametrize("name", specs.shipped())
def test_its_spec_is_short_described_and_named_for_its_file(name: str) -> None:
    text = (files("revgraph") / "models" / f"{name}.yaml").read_text()
    spec = yaml.safe_load(text)
    assert spec["name"] == name
    assert len(spec["description"]) > 20
    assert len(text.splitlines()) < 60


@pytest.mark.slow
@pytest.mark.parametrize("name", INVERTIBLE)
def test_everything_before_the_head_is_invertible(name: str) -> None:
    torch.manual_seed(0)
    spec = small(name)
    assert list(spec["layers"][-1]) == ["head"]
    net = rg.load({**spec, "layers": spec["layers"][:-1]}, batch=2).double().eval()
    image = torch.randn(2, 3, 32, 32, dtype=torch.double)
    torch.testing.assert_close(net.inverse(net(image)), image, rtol=0, atol=1e-10)


def test_a_graph_networks_nodes_hear_of_their_neighbours_alone() -> None:
    torch.manual_seed(0)
    net = rg.load("revgnn", batch=5, depth=1).double()
    edges = torch.tensor([[0, 1], [1, 2]])  # 0 -> 1 -> 2, and 3 and 4 alone
    nodes = torch.randn(5, 16, dtype=torch.double)
    changed = nodes.clone()
    changed[0] += 1
    moved = (net(nodes, edges) - net(changed, edges)).abs().sum(1) > 0
    assert moved.tolist() == [True, True, True, False, False]


@pytest.mark.slow
def test_a_recurrent_net_reads_its_rows_in_order() -> None:
    torch.manual_seed(0)
    net = rg.load("revgru", batch=2).double()
    rows = torch.randn(2, 8, 8, dtype=torch.double)
    assert not torch.allclose(net(rows), net(rows.flip(1)))
    cells = {node.module for node in net.graph.nodes if node.kind == "coupling"}
    assert cells == {"cell.f", "cell.g"}
