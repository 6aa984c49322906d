"""A dynamic step is compiled once for all batches, and right for each."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from compiling.nets import assert_same_step, chain, compiled, decided, inputs, step, twice
from compiling.random_steps import worst_error
from torch import Tensor, nn

import revgraph as rg
from revgraph.compiling import backend
from revgraph.compiling.module import _compiled

PLANS = ("keep", "recompute", "invert")


def compilations(step: rg.ReversibleModule) -> int:
    return len(_compiled[step._executable]["aot", step.dynamic].partitions)  # pyright: ignore


def dynamic(model: nn.Module, x: Tensor, plan: str = "invert", exact: bool = False) -> rg.ReversibleModule:
    net = rg.trace(model, x, exact=exact)
    net.plan = decided(net.graph, plan)
    return rg.compile(net, "aot", dynamic=True)


@pytest.mark.slow
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("middle", [lambda: nn.BatchNorm1d(8), lambda: nn.Dropout(0.4)])
def test_one_compilation_for_all_batches(middle: Callable[[], nn.Module], plan: str) -> None:
    model, plain = twice(chain(middle))
    run = dynamic(model, inputs(), plan)
    for batch in (6, 3, 11):
        assert_same_step(run, plain, inputs(batch))
    assert compilations(run) == 1


class Images(nn.Module):
    """Convolutions on both halves of the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.first, self.second = (rg.Additive(convolution(4), convolution(4)) for _ in range(2))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.second(*self.first(*self.stem(x).chunk(2, 1)))
        return self.head(torch.cat([a, b], 1).mean((2, 3)))


def convolution(channels: int) -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1))


@pytest.mark.slow
@pytest.mark.parametrize("plan", PLANS)
def test_images_of_any_size(plan: str) -> None:
    model, plain = twice(Images().double())

    def images(batch: int, height: int, width: int) -> Tensor:
        return torch.randn(batch, 3, height, width, dtype=torch.double).requires_grad_()

    torch.manual_seed(0)
    run = dynamic(model, images(5, 4, 6), plan)
    for sizes in ((5, 4, 6), (7, 4, 6), (2, 8, 10)):
        assert_same_step(run, plain, images(*sizes))
    assert compilations(run) == 1


@pytest.mark.slow
def test_where_sizes_cannot_stay_open_each_shape_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    partition = backend.partition

    def closed(joint: Any, *args: Any, **kwargs: Any) -> Any:
        if any(isinstance(node.meta.get("val"), torch.SymInt) for node in joint.graph.nodes):
            raise RuntimeError("a size is not known")
        return partition(joint, *args, **kwargs)

    monkeypatch.setattr(backend, "partition", closed)
    model, plain = twice(chain(lambda: nn.Hardtanh(-0.77)))
    run = dynamic(model, inputs())
    with pytest.warns(rg.CompileWarning, match="not for all sizes at once, so each shape .* is not known"):
        assert_same_step(run, plain, inputs())
    assert_same_step(run, plain, inputs(3))
    assert len(_compiled[run._executable]["aot", True].partitions) == 2


@pytest.mark.slow
def test_attention() -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
            self.attention = nn.MultiheadAttention(8, num_heads=2, batch_first=True)
            self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

        def forward(self, x: Tensor) -> Tensor:
            x1, x2 = x.chunk(2, -1)
            query = self.norm1(x2)
            x1 = x1 + self.attention(query, query, query, need_weights=False)[0]
            x2 = x2 + self.mlp(self.norm2(x1))
            return torch.cat([x1, x2], -1)

    model, plain = twice(Layer().double())
    generator = torch.Generator().manual_seed(0)

    def tokens(batch: int, length: int) -> Tensor:
        return torch.randn(batch, length, 16, dtype=torch.double, generator=generator).requires_grad_()

    run = dynamic(model, tokens(3, 5))
    for sizes in ((3, 5), (4, 7), (2, 9)):
        assert_same_step(run, plain, tokens(*sizes))
    assert compilations(run) == 1


@pytest.mark.slow
def test_exact_mode() -> None:
    model, plain = twice(chain())
    found, eager = dynamic(model, inputs(), exact=True), rg.trace(plain, inputs(), exact=True)
    for batch in (6, 9):
        pairs = zip(step(found, inputs(batch)), step(eager, inputs(batch)), strict=True)
        assert all(torch.equal(one, two) for one, two in pairs)
    assert compilations(found) == 1


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_random_plans_equal_plain_autograd(seed: int) -> None:
    assert worst_error(seed, "aot", dynamic=True) <= 1e-12


@pytest.mark.slow
def test_a_static_step_compiles_each_batch() -> None:
    model, plain = twice(chain(lambda: nn.Hardtanh(-0.79)))
    run = compiled(model, inputs())
    for batch in (6, 3, 6):
        assert_same_step(run, plain, inputs(batch))
    assert compilations(run) == 2


def test_a_copy_is_as_dynamic() -> None:
    run = dynamic(chain(), inputs())
    assert type(copy.deepcopy(run)) is type(run)
    assert rg.compile(run, "aot").dynamic is False  # pyright: ignore
