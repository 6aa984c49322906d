"""The inverse of a net: inputs from outputs, or an error that names what stands in the way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from engine.samples import Chain, Pair, assert_same_buffers, batch, doubled, dropping, inverted, mlp, normed
from torch import Tensor, nn

import revgraph as rg

CLOSE = dict(rtol=1e-12, atol=1e-12)


def roundtrip(model: nn.Module, *inputs: Tensor, other: tuple[Tensor, ...] = (), **known: Any) -> None:
    model = model.double()
    net = rg.trace(model, *inputs, **known)
    for given in (inputs, other) if other else (inputs,):
        outputs = net(*given, **known)
        found = (
            net.inverse(*outputs, **known) if isinstance(outputs, tuple) else net.inverse(outputs, **known)
        )
        for one, two in zip(found if isinstance(found, tuple) else (found,), given, strict=True):
            torch.testing.assert_close(one, two, **CLOSE)


def test_the_inverse_of_additive_blocks_at_any_batch_size() -> None:
    roundtrip(Chain(5), batch(3, 8), other=(batch(7, 8),))


def test_the_inverse_of_affine_couplings() -> None:
    class Flow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(
                rg.Affine(nn.Linear(4, 8), nn.Sequential(nn.Linear(4, 8), nn.Tanh())) for _ in range(3)
            )
            self.swap = rg.Swap()

        def forward(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
            for block in self.blocks:
                x1, x2 = self.swap(*block(x1, x2))
            return x1, x2

    torch.manual_seed(0)
    roundtrip(Flow(), batch(3, 4, seed=1), batch(3, 4, seed=2), other=(batch(2, 4), batch(2, 4, seed=5)))


class Wired(nn.Module):
    """Every wiring module, then back to a picture."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.split, self.join = rg.SpaceToDepth(2), rg.Split(4), rg.Concatenate()
        self.turn, self.flat, self.swap = rg.Permute(3, 0, 2, 1), rg.Reshape(64), rg.Swap()
        self.block = rg.Additive(mlp(64), mlp(64))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b, c, d = self.turn(*self.split(self.down(x)))
        one, two = self.flat(self.join(a, b)), self.flat(self.join(c, d))
        return self.swap(*self.block(one, two))


def test_the_inverse_of_every_wiring_module() -> None:
    torch.manual_seed(0)
    roundtrip(Wired(), batch(2, 8, 4, 4), other=(batch(5, 8, 4, 4),))


def test_the_inverse_of_wiring_in_plain_code() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = mlp(6)

        def forward(self, x: Tensor) -> Tensor:
            one, two = x.chunk(2, dim=1)
            one = one.flatten(1)
            two = two.reshape(two.shape[0], 2, 3).transpose(1, 2).permute(0, 2, 1).reshape(-1, 6)
            one = one + self.f(two)
            two = two - torch.sin(one)
            return torch.cat([two, one], 1).view(-1, 3, 4)

    torch.manual_seed(0)
    roundtrip(Plain(), batch(2, 12), other=(batch(5, 12),))


def test_the_inverse_of_subtraction_alpha_and_three_streams() -> None:
    class Three(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f, self.g = mlp(), nn.Bilinear(4, 4, 4)

        def forward(self, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, ...]:
            a = a - self.f(b)
            b = torch.add(b, self.f(c), alpha=0.3)
            c = self.g(a, b) - c
            a += self.g(b, c)
            return a, b, c

    torch.manual_seed(0)
    roundtrip(Three(), *(batch(3, 4, seed=seed) for seed in range(3)))


def test_known_inputs_are_given_by_name() -> None:
    class Conditioned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f, self.g, self.embed = mlp(), mlp(), nn.Linear(2, 4)

        def forward(self, x1: Tensor, x2: Tensor, c: Tensor, scale: float) -> tuple[Tensor, Tensor]:
            c = torch.tanh(self.embed(c))
            y1 = x1 + self.f(x2 + c) * scale
            return y1, x2 + self.g(y1 * c)

    torch.manual_seed(0)
    net = rg.trace(Conditioned().double(), batch(3, 4), batch(3, 4, seed=2), batch(3, 2), 2.0)
    x1, x2, c = batch(5, 4), batch(5, 4, seed=2), batch(5, 2)
    outputs = net(x1, x2, c, 3.0)
    found = net.inverse(*outputs, c=c, scale=3.0)
    for one, two in zip(found, (x1, x2), strict=True):
        torch.testing.assert_close(one, two, **CLOSE)
    with pytest.raises(rg.GraphError, match="'c'"):
        net.inverse(*outputs)
    with pytest.raises(rg.GraphError, match="no input 'condition'"):
        net.inverse(*outputs, condition=c)


def test_a_boundary_on_the_way_is_named() -> None:
    torch.manual_seed(0)
    x = batch()
    net = rg.trace(nn.Sequential(Chain(), nn.Linear(8, 8), Chain()).double(), x)
    with pytest.raises(rg.GraphError, match=r"'1'.*is a boundary, which cannot be undone"):
        net.inverse(net(x))


def test_outputs_of_another_form_are_refused() -> None:
    torch.manual_seed(0)
    x1, x2 = batch(3, 4, seed=1), batch(3, 4, seed=2)
    net = rg.trace(Pair().double(), x1, x2)
    y1, _ = net(x1, x2)
    with pytest.raises(rg.GraphError, match="returns 2 outputs"):
        net.inverse(y1)
    with pytest.raises(rg.GraphError, match="is a tensor, and a NoneType"):
        net.inverse(y1, None)


def test_the_inverse_leaves_batchnorm_as_it_was() -> None:
    x = batch()
    model, plain = doubled(lambda: Chain(f=normed))
    net = inverted(model, x)
    output = net(x)
    plain(x)
    before = [buffer for _, buffer in model.named_buffers()]
    torch.testing.assert_close(net.inverse(output), x, **CLOSE)
    assert_same_buffers(model, plain)
    assert all(one is two for one, two in zip(before, model.buffers(), strict=True))


def test_the_inverse_refuses_dropout_in_training() -> None:
    x = batch()
    model, _ = doubled(lambda: Chain(f=dropping))
    net = inverted(model, x)
    output = net(x)
    with pytest.raises(rg.GraphError, match=r"draws random numbers.*net\.eval\(\)"):
        net.inverse(output)
    net.eval()
    torch.testing.assert_close(net.inverse(net(x)), x, **CLOSE)


def test_a_refused_inverse_leaves_the_random_stream() -> None:
    x = batch()
    model, _ = doubled(lambda: Chain(f=dropping))
    net = inverted(model, x)
    output = net(x)
    before = torch.get_rng_state()
    with pytest.raises(rg.GraphError):
        net.inverse(output)
    assert torch.equal(before, torch.get_rng_state())


def test_an_exception_in_the_inverse_names_the_node() -> None:
    torch.manual_seed(0)
    x1, x2 = batch(3, 4, seed=1), batch(3, 4, seed=2)
    net = rg.trace(Pair().double(), x1, x2)
    with pytest.raises(RuntimeError) as caught:
        net.inverse(batch(3, 5), batch(3, 4))
    assert any("node 'g'" in note for note in caught.value.__notes__)


def test_the_inverse_is_differentiable() -> None:
    torch.manual_seed(0)
    model = Chain(2).double()
    x = batch()
    net = rg.trace(model, x)
    y = net(x).detach().requires_grad_()
    slope = torch.autograd.functional.jacobian(lambda y: net.inverse(y), y).reshape(24, 24)
    forward = torch.autograd.functional.jacobian(lambda x: net(x), x.detach()).reshape(24, 24)
    torch.testing.assert_close(slope @ forward, torch.eye(24, dtype=torch.double), rtol=1e-10, atol=1e-10)


def test_the_inverse_at_other_sizes_than_the_batch() -> None:
    class Sequence(nn.Module):
        """Time first: the batch is the second dimension."""

        def __init__(self) -> None:
            super().__init__()
            self.f = mlp(4)

        def forward(self, x: Tensor) -> Tensor:
            one, two = x.reshape(x.shape[0], x.shape[1], 2, 4).unbind(2)
            one = one + self.f(two)
            return torch.cat([one, two], 2)

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = mlp(4)

        def forward(self, x: Tensor) -> Tensor:
            one, two = x.chunk(2, -1)
            one = (one + self.f(two)).flatten(1)
            return torch.cat([one, two.flatten(1)], 1)

    torch.manual_seed(0)
    for model, traced, other in (
        (Sequence(), batch(5, 3, 8), batch(5, 2, 8)),
        (Wide(), batch(2, 3, 8), batch(4, 6, 8)),
    ):
        net = rg.trace(model.double(), traced)
        try:
            found = net.inverse(net(other))
        except (rg.RevgraphError, RuntimeError):
            continue
        torch.testing.assert_close(found, other, **CLOSE)
