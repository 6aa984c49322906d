"""`net.inverse` with gradients saves memory as the forward does, and its gradients are plain autograd's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from engine.kinds import Bytes, dense, loss_of, made_twice
from engine.samples import assert_close
from torch import Tensor, nn

import revgraph as rg


def additive() -> nn.Module:
    return rg.Additive(
        nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8)), nn.Sequential(nn.Linear(8, 8), nn.Tanh())
    )


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        mask = (x * x).sum(-1, keepdim=True) > 0.1
        return torch.tanh(self.linear(x)) * mask


def masked() -> nn.Module:
    return rg.Additive(Masked(), Masked())


class Blocks(nn.Module):
    def __init__(self, block: Callable[[], nn.Module], depth: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(block() for _ in range(depth))

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        for block in self.blocks:
            a, b = block(a, b)
        return a, b


class Undone(nn.Module):
    """The blocks undone by hand, each sum by a difference."""

    def __init__(self, blocks: nn.Module) -> None:
        super().__init__()
        self.blocks: nn.ModuleList = blocks.blocks  # pyright: ignore

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        for block in reversed(self.blocks):
            f, g = block.children()
            b = b - g(a)
            a = a - f(b)
        return a, b


def outputs(rows: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(rows, 8, dtype=torch.double, generator=generator).requires_grad_() for _ in range(2)]


@pytest.mark.parametrize("block", [additive, masked])
def test_gradients_through_the_inverse(block: Callable[[], nn.Module]) -> None:
    model, plain = made_twice(lambda: Blocks(block, 4))
    y = outputs()
    net = rg.trace(model, *y)
    by_hand = Undone(plain)
    for _ in range(12):
        found, expected = (
            torch.autograd.grad(loss_of(run(*y)), [*leaves.parameters(), *y])
            for run, leaves in ((net.inverse, model), (by_hand, plain))
        )
        assert_close([dense(each) for each in found], [dense(each) for each in expected], 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("block", [additive, masked])
def test_bytes_held_by_the_inverse_do_not_grow_with_the_depth(block: Callable[[], nn.Module]) -> None:
    held = []
    for depth in (3, 9):
        model, _ = made_twice(lambda depth=depth: Blocks(block, depth))
        y = outputs(64)
        net = rg.trace(model, *y)
        with Bytes(*y, *net.parameters()) as tracker:
            loss = loss_of(net.inverse(*y))
            held.append(tracker.now())
            del loss
    assert held[0] == held[1]


def test_the_inverse_of_what_was_kept_is_the_same_under_every_plan() -> None:
    model, _ = made_twice(lambda: Blocks(additive, 3))
    y = outputs()
    net = rg.trace(model, *y)
    expected = [each.detach() for each in Undone(model)(*y)]
    for chosen in (rg.keep_all(net.graph), rg.decide(net.graph, {}), rg.plan(net.graph)):
        net.plan = chosen
        torch.testing.assert_close(list(net.inverse(*y)), expected, rtol=1e-12, atol=1e-12)
