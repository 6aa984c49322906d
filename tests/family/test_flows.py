"""Flows: log-determinants and their gradients are exact, under any plan, in bytes that depth leaves alone."""

from __future__ import annotations

import gc
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import revgraph as rg
from revgraph import specs
from revgraph.storages import StorageTracker

FLOWS: dict[str, dict[str, Any]] = {
    "nice": {"hidden": 8},
    "realnvp": {"hidden": 8, "blocks": 2},
    "glow": {"hidden": 4, "steps": 1},
}


def shaken(net: nn.Module, seed: int = 0) -> None:
    """Away from the identity at which flows start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)


def flow(name: str, batch: int = 3, **parameters: Any) -> tuple[rg.ReversibleModule, Tensor]:
    torch.manual_seed(1)
    parameters = {**FLOWS[name], **parameters}
    net = rg.load(name, batch=batch, **parameters).double()
    shaken(net)
    shape = specs.build(name, batch=batch, **parameters).inputs[0].shape
    return net, torch.randn(shape, dtype=torch.double)


def tensors(outputs: Any) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def likelihood(net: rg.ReversibleModule, x: Tensor) -> Tensor:
    """The mean log-likelihood of x under a standard normal, up to its constant."""
    outputs, log_det = net.with_log_det(x)
    return (log_det - sum(y.square().flatten(1).sum(1) for y in tensors(outputs)) / 2).mean()


@pytest.mark.slow
@pytest.mark.parametrize("name", FLOWS)
def test_log_determinants_are_those_of_the_jacobian(name: str) -> None:
    net, x = flow(name)
    _, log_det = net.with_log_det(x)

    def outputs_of(sample: Tensor) -> Tensor:
        return torch.cat([y.flatten() for y in tensors(net(sample[None]))])

    for sample, found in zip(x, log_det, strict=True):
        jacobian = torch.autograd.functional.jacobian(outputs_of, sample).reshape(sample.numel(), -1)
        assert found.item() == pytest.approx(torch.linalg.slogdet(jacobian).logabsdet.item(), abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", FLOWS)
def test_outputs_are_those_of_the_forward_and_invert(name: str) -> None:
    net, x = flow(name)
    outputs, _ = net.with_log_det(x)
    for one, two in zip(tensors(outputs), tensors(net(x)), strict=True):
        assert torch.equal(one, two)
    torch.testing.assert_close(net.inverse(*tensors(outputs)), x, rtol=0, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("decision", ["keep", "invert", "recompute"])
@pytest.mark.parametrize("name", FLOWS)
def test_gradients_of_the_likelihood_are_plain_autograds(name: str, decision: str) -> None:
    net, x = flow(name)
    x.requires_grad_()
    wanted = [x, *net.parameters()]
    net.plan = rg.keep_all(net.graph)
    expected = torch.autograd.grad(likelihood(net, x), wanted)
    net.plan = rg.decide(
        net.graph, {node.name: decision for node in net.graph.nodes if node.kind == "coupling"}
    )
    found = torch.autograd.grad(likelihood(net, x), wanted)
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-10)


def test_realnvp_is_its_formula() -> None:
    """Oracle: the coupling written out, with its log-determinant and gradients by plain autograd."""
    net, x = flow("realnvp", blocks=1)
    block: Any = net.get_submodule("block0")
    norm: Any = net.get_submodule("scale")
    x1, x2 = x.chunk(2, 1)
    s1, t1 = block.f(x2).chunk(2, 1)
    s1 = 2 * torch.tanh(s1 / 2)
    y1 = x1 * s1.exp() + t1
    s2, t2 = block.g(y1).chunk(2, 1)
    s2 = 2 * torch.tanh(s2 / 2)
    y = torch.cat([y1, x2 * s2.exp() + t2], 1) * norm.log_scale.exp() + norm.shift
    log_det = (s1 + s2).sum(1) + norm.log_scale.sum()
    expected = torch.autograd.grad((log_det - y.square().sum(1) / 2).mean(), list(net.parameters()))
    found = torch.autograd.grad(likelihood(net, x), list(net.parameters()))
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-12)


@pytest.mark.slow
def test_held_bytes_do_not_grow_with_the_depth_of_a_flow() -> None:
    def held(blocks: int) -> int:
        net = rg.load("realnvp", batch=64, blocks=blocks)
        net.plan = rg.decide(net.graph, {f"block{n}.{f}": "invert" for n in range(blocks) for f in "fg"})
        x = torch.randn(64, 2)
        gc.collect()
        gc.disable()
        try:
            with StorageTracker([x, *net.parameters(), *net.buffers()]) as tracker:
                loss = likelihood(net, x)
                turn = tracker.live()
            loss.backward()
        finally:
            gc.enable()
        return turn

    assert held(2) == held(8) == held(32)


def test_training_a_flow_raises_its_likelihood() -> None:
    torch.manual_seed(0)
    angle = torch.rand(256) * 2 * math.pi
    ring = torch.stack([3 * angle.cos(), 3 * angle.sin()], 1) + 0.1 * torch.randn(256, 2)
    net = rg.load("realnvp", batch=256, blocks=3, hidden=16)
    assert rg.initialize(net, ring) == 1
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    curve = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = -likelihood(net, ring)
        loss.backward()
        optimizer.step()
        curve.append(loss.item())
    assert curve[-1] < curve[0] - 0.2


def test_initialize_gives_every_channel_mean_zero_and_variance_one() -> None:
    torch.manual_seed(0)
    images = torch.rand(64, 1, 8, 8) * 5 - 1
    net = rg.load("glow", batch=64, hidden=4, steps=1)
    before = torch.get_rng_state()
    assert rg.initialize(net, images) == 3
    assert torch.equal(torch.get_rng_state(), before)
    early, late = net(images)
    torch.testing.assert_close(late.mean((0, 2, 3)), torch.zeros(8), rtol=0, atol=1e-5)
    torch.testing.assert_close(late.var((0, 2, 3), correction=0), torch.ones(8), rtol=1e-4, atol=0)
    assert early.isfinite().all()


def test_without_gradients_too() -> None:
    net, x = flow("realnvp")
    with torch.no_grad():
        _, plain = net.with_log_det(x)
    assert not plain.requires_grad
    assert torch.equal(plain, net.with_log_det(x)[1])


class Conditional(nn.Module):
    """A flow of two streams whose functions see a condition, which has a coupling of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 4)
        self.norm = rg.Scale(5.0)
        self.block = rg.Affine(Scaled(), Scaled())

    def forward(self, x1: Tensor, x2: Tensor, condition: Tensor) -> Any:
        return self.block(x1, x2, condition=self.norm(self.embed(condition)))


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return torch.cat([self.inner(x), condition], 1)


def test_what_happens_to_a_condition_changes_no_volume() -> None:
    torch.manual_seed(0)
    x1, x2, condition = (torch.randn(2, size).double() for size in (4, 4, 3))
    net = rg.trace(Conditional().double(), x1, x2, condition)
    _, log_det = net.with_log_det(x1, x2, condition)

    def outputs_of(x: Tensor) -> Tensor:
        return torch.cat(net(x[None, :4], x[None, 4:], condition[:1]), 1)[0]

    jacobian = torch.autograd.functional.jacobian(outputs_of, torch.cat([x1[0], x2[0]]))
    assert log_det[0].item() == pytest.approx(torch.linalg.slogdet(jacobian).logabsdet.item(), abs=1e-10)


class Negate(rg.Coupling):
    def couple(self, x: Tensor, term: Tensor) -> Tensor:
        return term - x

    def uncouple(self, y: Tensor, term: Tensor) -> Tensor:
        return term - y


class Wrong(Negate):
    def couple_with_log_det(self, x: Tensor, term: Tensor) -> tuple[Tensor, Tensor]:
        return term - x, torch.zeros(())


class Around(nn.Module):
    def __init__(self, coupling: nn.Module, end: nn.Module | None = None) -> None:
        super().__init__()
        self.coupling = coupling
        self.end = end or nn.Identity()

    def forward(self, x1: Tensor, x2: Tensor) -> Any:
        y1, y2 = self.coupling(x1, x2)
        return self.end(y1), y2


def refused(net: rg.ReversibleModule) -> str:
    with pytest.raises(rg.GraphError) as caught:
        net.with_log_det(torch.randn(2, 4), torch.randn(2, 4))
    return str(caught.value)


def test_what_has_no_log_determinant_is_refused_by_name() -> None:
    example = torch.randn(2, 4), torch.randn(2, 4)
    silent = rg.trace(Around(Negate(nn.Linear(4, 4), nn.Linear(4, 4))), *example)
    assert "coupling 'coupling.f' (Negate" in refused(silent)
    assert "couple_with_log_det" in refused(silent)
    wrong = rg.trace(Around(Wrong(nn.Linear(4, 4), nn.Linear(4, 4))), *example)
    assert "gives a log-determinant of shape [], and it should be [2]" in refused(wrong)
    additive = rg.Additive(nn.Linear(4, 4), nn.Linear(4, 4))
    ended = rg.trace(Around(additive, nn.Linear(4, 4)), *example)
    assert "node 'end'" in refused(ended)
    assert "is a boundary, which cannot be undone" in refused(ended)


def test_more_numbers_out_than_in_are_refused() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.step = rg.Additive(nn.Linear(4, 4))

        def forward(self, x1: Tensor, x2: Tensor) -> Any:
            y1 = self.step(x1, x2)
            return y1, x2, x2 + 0 * y1.sum()

    net = rg.trace(Twice(), torch.randn(2, 4), torch.randn(2, 4))
    assert "as many numbers out as in: inputs 'x1', 'x2' hold 16" in refused(net)
