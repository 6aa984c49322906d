"""Small reversible nets to compile."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import revgraph as rg
from revgraph import compile


def half_step(*middle: nn.Module, width: int = 8) -> nn.Module:
    return nn.Sequential(nn.Linear(width, width), *middle, nn.ReLU(), nn.Linear(width, width))


class Chain(nn.Module):
    """Blocks over two streams, the halves of the input, and both together again."""

    def __init__(self, block: Callable[[], nn.Module], depth: int = 2) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(block() for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        for block in self.blocks:
            a, b = block(a, b)
        return torch.cat([a, b], 1)


def chain(*middle: Callable[[], nn.Module], depth: int = 2) -> Chain:
    """Additive blocks; `middle` are made anew for each half-step."""
    return Chain(
        lambda: rg.Additive(*(half_step(*(each() for each in middle)) for _ in "fg")), depth
    ).double()


def inputs(batch: int = 6, width: int = 16, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, width, dtype=torch.double, generator=generator).requires_grad_()


def decided(graph: rg.Graph, decision: str) -> rg.Plan:
    """One decision everywhere; boundaries, which have no inverse, are recomputed."""
    decisions: dict[str, Any] = {
        node.name: "recompute" if decision == "invert" and node.kind != "coupling" else decision
        for node in graph.planned
    }
    return rg.decide(graph, decisions)


def compiled(model: nn.Module, *given: Any, plan: str = "invert", backend: Any = "aot", **trace: Any) -> Any:
    """A compiled step of the model under a plan of one decision."""
    net = rg.trace(model, *given, **trace)
    net.plan = decided(net.graph, plan)
    return compile(net, backend)


def step(run: nn.Module, *given: Any, seed: int = 0) -> list[Tensor]:
    """Loss, and gradients of parameters and inputs, of a step that draws from this seed."""
    torch.manual_seed(seed)
    outputs = run(*given)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    loss = torch.stack([each.square().sum() for each in outputs]).sum()
    leaves = [each for each in (*run.parameters(), *given) if isinstance(each, Tensor) and each.requires_grad]
    return [loss, *torch.autograd.grad(loss, leaves)]


def assert_same_step(found: Any, plain: nn.Module, *given: Any, tolerance: float = 1e-12) -> None:
    for one, two in zip(step(found, *given), step(plain, *given), strict=True):
        scale = max(1.0, two.abs().max().item())
        torch.testing.assert_close(one / scale, two / scale, rtol=0, atol=tolerance)
    for (name, one), (_, two) in zip(found.named_buffers(), plain.named_buffers(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=tolerance, msg=name)


def twice(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    """A model and its copy."""
    return model, copy.deepcopy(model)
