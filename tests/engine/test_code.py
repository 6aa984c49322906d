"""`net.code`: the Python that runs, to be read."""

from __future__ import annotations

import ast
import re

import pytest
import torch
from torch import Tensor, nn

import revgraph as rg


class Steps(nn.ModuleList):
    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        for layer in self:
            a, b = b, a + torch.tanh(layer(b))
        return a, b


def code_of(decisions: dict[str, str]) -> str:
    net = rg.trace(Steps(nn.Linear(4, 4) for _ in range(3)), *torch.randn(2, 3, 4))
    net.plan = rg.decide(net.graph, decisions)  # pyright: ignore[reportArgumentType]
    return net.code


def test_code_shows_the_functions_the_forward_and_the_replays() -> None:
    code = code_of({})
    functions, rest = code.split("# The forward")
    forward, backward = rest.split("# The backward")
    assert len(re.findall(r"^def run__\d\(", functions, re.M)) == 3
    assert functions.count("linear(x0, p0, p1)") == 3, "layers that are known are opened"
    assert forward.count(" + run__") == 3
    assert re.findall(r"run__(\d)", backward) == ["2", "1", "0"]
    assert "_0 = _2 - run__2(_1)  # invert, captures, frees _2" in backward
    ast.parse(code)


def test_code_follows_the_plan() -> None:
    kept = code_of(dict.fromkeys(("0", "1", "2"), "keep"))
    assert "0 replays" in kept and "# keep" in kept and "# invert" not in kept
    recomputed = code_of({"2": "recompute"})
    assert "# recompute, captures" in recomputed and " - run__2" not in recomputed


@pytest.mark.slow
@pytest.mark.parametrize("name", ["revnet-38", "glow", "i-revnet", "leapfrog"])
def test_code_of_shipped_networks_is_python(name: str) -> None:
    net = rg.load(name)
    tree = ast.parse(net.code)
    functions = [each for each in tree.body if isinstance(each, ast.FunctionDef)]
    assert len(functions) == sum(node.kind != "input" for node in net.graph.nodes if node.kind != "output")
