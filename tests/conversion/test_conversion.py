"""A converted network is the pretrained one as beta nears 0, and a dual-residual network otherwise."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from conversion.residual_networks import NETWORKS, Basic, ResNet, Transformer, converted, pretrained
from torch import Tensor, nn
from tracing.agreement import marks, same_marks

import revgraph as rg

CLOSE = dict(rtol=1e-9, atol=1e-9)


def blocks_of(net: rg.ReversibleModule) -> list[rg.Node]:
    """The couplings that are blocks: those which change a second stream."""
    seconds = {node.name for node in net.graph.nodes if node.module == "dual_residual"}
    seconds |= {node.name for node in net.graph.nodes if node.expression.startswith("zeros_like")}
    return [node for node in net.graph.nodes if node.target in seconds]


def gradients(module: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    named = {name: each for name, each in module.named_parameters() if each.requires_grad}
    return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_the_difference_from_the_pretrained_network_falls_in_proportion_to_beta(name: str) -> None:
    model, net, x = converted(name)
    model.eval()
    net.eval()
    errors = []
    for beta in (1e-3, 1e-4, 1e-5):
        rg.set_dual_residual(net, alpha=1, beta=beta)
        errors.append((net(x) - model(x)).abs().max().item())
    assert errors[0] < 0.1
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.05)
    assert errors[1] / errors[2] == pytest.approx(10, rel=0.05)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("training", [False, True])
def test_at_a_tiny_beta_the_output_is_the_pretrained_one_in_float32(name: str, training: bool) -> None:
    model, net, x = converted(name)
    model.float().train(training)
    net.float().train(training)
    rg.set_dual_residual(net, alpha=1, beta=1e-30)
    net.plan = rg.keep_all(net.graph)
    torch.testing.assert_close(net(x.float()), model(x.float()), rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_those_of_the_network_written_out(name: str) -> None:
    model, net, x = converted(name)
    reference: Any = copy.deepcopy(model)
    assert len(blocks_of(net)) == 4
    expected = reference.dual(x, 0.75, 0.25)
    wanted = gradients(reference, expected.square().sum())
    for plan in (rg.decide(net.graph, {}), rg.plan(net.graph), rg.keep_all(net.graph)):
        trained = copy.deepcopy(net)
        trained.plan = plan
        out = trained(x)
        torch.testing.assert_close(out, expected, **CLOSE)
        found = gradients(trained, out.square().sum())
        assert found.keys() == wanted.keys()
        for parameter, gradient in found.items():
            torch.testing.assert_close(gradient, wanted[parameter], **CLOSE)
        for buffer, value in reference.named_buffers():
            torch.testing.assert_close(trained.get_buffer(buffer), value, **CLOSE)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_block_is_undone(name: str) -> None:
    _, net, x = converted(name)
    net.plan = rg.decide(net.graph, {})
    report = rg.check(net, x)
    # All states of a run but its last two, which are held.
    inputs = {node.target for node in net.graph.nodes if node.module == "dual_residual"}
    assert inputs - set(net.plan.stored) <= report.drift.keys()
    assert 0 < max(report.drift.values()) < 1e-9
    assert report.angle_degrees < 1e-6


def test_the_model_is_left_as_it_was() -> None:
    model, x = pretrained("basic")
    before, random = marks(model), torch.get_rng_state()
    rg.dual_residual(model, x)
    same_marks(before, marks(model))
    assert torch.equal(random, torch.get_rng_state())


def test_weights_are_the_models_own_and_keep_their_names() -> None:
    model, net, x = converted("basic")
    assert set(net.state_dict()) - set(model.state_dict()) == {"dual_residual.alpha", "dual_residual.beta"}
    assert set(model.state_dict()) <= set(net.state_dict())
    assert dict(net.named_parameters()) == dict(model.named_parameters())
    other = converted("basic")[1]
    rg.set_dual_residual(other, alpha=0.5, beta=0.5)
    missing = other.load_state_dict(model.state_dict(), strict=False).missing_keys
    assert missing == ["dual_residual.alpha", "dual_residual.beta"]
    other.load_state_dict(net.state_dict())
    torch.testing.assert_close(other(x), net(x), rtol=0, atol=0)
    model.load_state_dict({key: each for key, each in other.state_dict().items() if "dual" not in key})
    for copied in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        torch.testing.assert_close(copied(x), other(x), rtol=0, atol=0)


@pytest.mark.slow
def test_held_bytes_do_not_grow_with_the_blocks_of_a_stage() -> None:
    x = torch.randn(4, 3, 8, 8)
    few, many = (rg.dual_residual(ResNet(Basic, depth), x) for depth in (4, 8))
    for net in (few, many):
        net.plan = rg.decide(net.graph, {})
    assert rg.measure(few, x).held_bytes == rg.measure(many, x).held_bytes
    assert rg.keep_all(many.graph).held_bytes > 1.5 * rg.keep_all(few.graph).held_bytes


def test_blocks_that_change_the_shape_stay_as_they_are() -> None:
    _, net, _ = converted("basic")
    for place in ("layer2.0", "stem", "fc"):
        kinds = [node.kind for node in net.graph.planned if f"{node.name}.".startswith(f"{place}.")]
        assert kinds and set(kinds) == {"boundary"}
    assert [node.name for node in blocks_of(net)] == [
        *(f"layer1.{index}.block" for index in (0, 1)),
        *(f"layer2.{index}.block" for index in (1, 2)),
    ]


@pytest.mark.slow
def test_anchors_bound_the_drift_of_a_small_beta() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 6, 3)
    net = rg.dual_residual(Transformer(6), x, beta=0.05)
    net.plan = rg.decide(net.graph, {})
    loose = max(rg.check(net, x).drift.values())
    rg.estimate_drift(net, x)
    net.plan = rg.plan(net.graph, max_drift=1e-3)
    assert max(rg.check(net, x).drift.values()) <= 1e-3 < loose
    assert rg.keep_all(net.graph).held_bytes > net.plan.held_bytes


@pytest.mark.slow
def test_a_net_from_a_specification_converts_with_its_weights() -> None:
    torch.manual_seed(0)
    spec = {
        "inputs": {"image": [3, 8, 8]},
        "layers": [
            {"stem": {"Stem": {"in_channels": 3, "out_channels": 8}}},
            {"first": {"BasicUnit": {"in_channels": 8, "preactivate": False}}},
            {"second": {"BasicUnit": 8, "repeat": 2}},
            {"wider": {"BasicUnit": {"in_channels": 8, "out_channels": 16, "stride": 2}}},
            {"head": {"Head": {"channels": 16, "classes": 5}}},
        ],
    }
    x = torch.randn(2, 3, 8, 8)
    plain = rg.load(spec, batch=2)
    net = rg.dual_residual(plain, x, beta=1e-30)
    assert len(blocks_of(net)) == 3
    torch.testing.assert_close(net(x), plain(x), rtol=0, atol=1e-6)
    rg.set_dual_residual(net, beta=0.5)
    net.plan = rg.decide(net.graph, {})
    assert rg.check(net, x).angle_degrees < 0.01
    assert net.plan.held_bytes < rg.keep_all(plain.graph).held_bytes


class Inner(nn.Module):
    """A residual block whose F has a single residual addition of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.tanh(self.one(x))
        return x + (z + torch.tanh(self.two(z)))


class Group(nn.Module):
    """A residual block around a run of residual blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Inner(), Inner(), Inner())
        self.end = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.end(self.blocks(x))


class Parallel(nn.Module):
    """Two branches beside the identity."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.one(x)) + torch.tanh(self.two(x))


class Postnorm(nn.Module):
    """The norm after the addition."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.norm = nn.Linear(4, 4), nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(torch.tanh(self.f(x)) + x)


@pytest.mark.slow
@pytest.mark.parametrize(("block", "count"), [(Inner, 3), (Group, 9), (Parallel, 3), (Postnorm, 3)])
def test_other_forms_of_residual_blocks_are_found(block: type[nn.Module], count: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(block() for _ in range(3))).double()
    x = torch.randn(5, 4).double()
    net = rg.dual_residual(model, x, beta=1e-12)
    assert len(blocks_of(net)) == count
    torch.testing.assert_close(net(x), model(x), rtol=0, atol=1e-10)
    rg.set_dual_residual(net, alpha=0.5, beta=0.5)
    net.plan = rg.decide(net.graph, {})
    report = rg.check(net, x)
    assert report.max_relative_error < 1e-9
    assert report.drift


class Once(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.f(x)


def test_a_network_without_a_run_of_blocks_is_an_error_with_advice() -> None:
    for model in (nn.Linear(4, 4), Once()):
        with pytest.raises(rg.TraceError, match=r"no two residual blocks follow one another in \w+"):
            rg.dual_residual(model, torch.randn(2, 4))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("alpha", "beta"), [(1, 0), (1, -0.5), (1, float("nan")), (float("inf"), 0.5), ("1", 0.5), (1, 1e-60)]
)
def test_coefficients_that_cannot_be_undone_are_errors(alpha: Any, beta: Any) -> None:
    model, x = nn.Sequential(Once(), Once()), torch.randn(2, 4)
    with pytest.raises(rg.GraphError, match="must be a finite number"):
        rg.dual_residual(model, x, alpha=alpha, beta=beta)
    net = rg.dual_residual(model, x)
    with pytest.raises(rg.GraphError, match="must be a finite number"):
        rg.set_dual_residual(net, alpha=alpha, beta=beta)


def test_what_cannot_be_converted_says_why() -> None:
    x = torch.randn(2, 4)
    net = rg.dual_residual(nn.Sequential(Once(), Once()), x)
    with pytest.raises(rg.GraphError, match="converted already"):
        rg.dual_residual(net, x)
    with pytest.raises(rg.GraphError, match="was not made by"):
        rg.set_dual_residual(nn.Linear(1, 1), beta=0.5)
    with pytest.raises(rg.TraceError, match="bfloat16"):
        rg.dual_residual(nn.Sequential(Once(), Once()).bfloat16(), x.bfloat16())
    wrong: Any = len
    with pytest.raises(rg.TraceError, match=r"only a torch\.nn\.Module"):
        rg.dual_residual(wrong, x)
