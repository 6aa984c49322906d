"""Small nets for the engine's tests, and the oracle: plain autograd on the same modules."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

import revgraph as rg

WIDTH = 4
BATCH = 3
DOUBLE = torch.double


def mlp(width: int = WIDTH) -> nn.Module:
    return nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width))


def normed(width: int = WIDTH) -> nn.Module:
    return nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.Tanh())


def dropping(width: int = WIDTH) -> nn.Module:
    return nn.Sequential(nn.Linear(width, width), nn.Dropout(0.4), nn.Tanh())


class Chain(nn.Module):
    """A split, additive blocks, a concatenation."""

    def __init__(self, depth: int = 3, f: Callable[[int], nn.Module] = mlp, width: int = WIDTH) -> None:
        super().__init__()
        self.split = rg.Split()
        self.blocks = nn.ModuleList(rg.Additive(f(width), f(width)) for _ in range(depth))
        self.join = rg.Concatenate()

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.split(x)
        for block in self.blocks:
            one, two = block(one, two)
        return self.join(one, two)


class Pair(nn.Module):
    """Two half-steps in plain arithmetic; takes and returns two streams."""

    def __init__(self, f: nn.Module | None = None, g: nn.Module | None = None) -> None:
        super().__init__()
        self.f = mlp() if f is None else f
        self.g = mlp() if g is None else g

    def forward(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
        y1 = x1 + self.f(x2)
        y2 = x2 + self.g(y1)
        return y1, y2


def couplings(graph: rg.Graph) -> list[str]:
    return [node.name for node in graph.nodes if node.kind == "coupling"]


def inverted(model: nn.Module, *inputs: Any, **extras: Any) -> rg.ReversibleModule:
    """The traced model with every coupling inverted and every boundary kept."""
    net = rg.trace(model, *inputs, **extras)
    net.plan = rg.decide(net.graph, {})
    return net


def doubled(model: Callable[[], nn.Module], seed: int = 0) -> tuple[nn.Module, nn.Module]:
    """A model in float64 and an independent copy of it for plain autograd."""
    torch.manual_seed(seed)
    made = model().to(DOUBLE)
    return made, copy.deepcopy(made)


def batch(*shape: int, seed: int = 1, grad: bool = True) -> Tensor:
    return drawn(*(shape or (BATCH, 2 * WIDTH)), dtype=DOUBLE, seed=seed).requires_grad_(grad)


def drawn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
    """Normal numbers on the default device, the same on each."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(shape, dtype=dtype, generator=generator, device="cpu")
    return numbers.to(torch.get_default_device())


def random_streams() -> list[Tensor]:
    """Where the random numbers of the CPU, and of the GPUs if any is in use, stand."""
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else ())]


def loss_of(outputs: Any) -> Tensor:
    tensors = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    return torch.stack([(tensor**2).sum() * (index + 1) for index, tensor in enumerate(tensors)]).sum()


def step(run: nn.Module, model: nn.Module, *inputs: Any, **extras: Any) -> list[Tensor | None]:
    """The gradients of all parameters that require one, and of the tensor arguments that do."""
    tensors = [each for each in (*inputs, *extras.values()) if isinstance(each, Tensor)]
    leaves = [leaf for leaf in (*model.parameters(), *tensors) if leaf.requires_grad]
    return list(torch.autograd.grad(loss_of(run(*inputs, **extras)), leaves, allow_unused=True))


def assert_close(
    found: Sequence[Tensor | None], expected: Sequence[Tensor | None], tolerance: float = 1e-12
) -> None:
    """Equal up to `tolerance` times the largest element (at least 1) of each tensor."""
    assert len(found) == len(expected)
    for one, two in zip(found, expected, strict=True):
        assert (one is None) == (two is None)
        if one is not None and two is not None:
            assert one.shape == two.shape and one.dtype == two.dtype
            scale = max(1.0, two.abs().max().item())
            assert (one - two).abs().max().item() <= tolerance * scale


def assert_bitwise(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    assert len(found) == len(expected)
    assert all(torch.equal(one, two) for one, two in zip(found, expected, strict=True))


def assert_same_buffers(one: nn.Module, two: nn.Module) -> None:
    assert_bitwise(list(one.buffers()), list(two.buffers()))


@contextmanager
def counted(model: nn.Module, kind: type[nn.Module]) -> Iterator[dict[str, int]]:
    """Counts calls of the submodules of a kind, by hooks of our own."""
    calls: dict[str, int] = {}
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, kind):
            calls[name] = 0

            def count(*_: Any, name: str = name) -> None:
                calls[name] += 1

            handles.append(module.register_forward_pre_hook(count))
    yield calls
    for handle in handles:
        handle.remove()
