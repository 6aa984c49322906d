"""What must hold for a specification that nobody wrote with care."""

from __future__ import annotations

from itertools import islice
from typing import Any

import torch
import yaml
from torch import Tensor
from trust.random_specs import EXAMPLE, wrong_types
from trust.weighing import Outcome, Tally, timed

import revgraph as rg
from revgraph import specs
from revgraph.errors import SpecError

SMALL = specs.Limits(parameters=10**5, layers=60, elements=10**5)


def refused_or_built(source: Any) -> Outcome:
    """The outcome of building it, and where it is built, of making a reversible network of it."""
    outcome = timed(lambda: specs.build(source, limits=SMALL))
    assert outcome.kind in ("done", "SpecError"), outcome
    if outcome.kind == "done":
        try:
            rg.load(source)
        except SpecError as error:
            return Outcome("SpecError", str(error), outcome.seconds, outcome.kilobytes)
    return outcome


def wrong_types_everywhere(each: int = 1) -> Tally:
    """The example with every place holding every wrong value once, as mappings; of these, one in `each`."""
    tally = Tally()
    for tree in islice(wrong_types(yaml.safe_load(EXAMPLE)), 0, None, each):
        tally.add(refused_or_built(tree))
    return tally


def gradients_agree(spec: dict[str, Any], start: int) -> None:
    """Asserts that the network's gradients, all inverted, are those of the plain modules under autograd."""
    torch.manual_seed(start)
    plain = specs.build(spec).module.double()
    torch.manual_seed(start)
    net = rg.load(spec).double()
    inverted = {node.name: "invert" for node in net.graph.nodes if node.kind == "coupling"}
    net.plan = rg.decide(net.graph, inverted)
    inputs = [torch.randn(2, *each.shape[1:], dtype=torch.float64) for each in specs.build(spec).inputs]
    expected, got = _gradients(plain, inputs), _gradients(net, inputs)
    assert expected.keys() == got.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(
            got[name], gradient, rtol=1e-10, atol=1e-12, msg=lambda text, n=name: f"{n}: {text}"
        )


def _gradients(net: torch.nn.Module, inputs: list[Tensor]) -> dict[str, Tensor]:
    leaves = [each.clone().requires_grad_() for each in inputs]
    net.zero_grad()
    net(*leaves).square().sum().backward()
    found = {f"input {index}": leaf.grad for index, leaf in enumerate(leaves)}
    found |= {name: parameter.grad for name, parameter in net.named_parameters()}
    assert all(gradient is not None for gradient in found.values())
    return {name: gradient for name, gradient in found.items() if gradient is not None}
