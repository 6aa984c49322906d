"""Running statistics, codebooks, power iterations: of torch's modules and subclasses, moved once a step."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from engine.kinds import (
    BOTH,
    REST,
    Weave,
    assert_follows,
    gradients,
    made_twice,
    plans,
    state_of,
    two_streams,
)
from engine.samples import assert_bitwise, assert_close, assert_same_buffers, doubled
from torch import Tensor, nn
from torch.nn import functional

import revgraph as rg

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")


class Codebook(nn.Module):
    """Vector quantization: the nearest codes, straight through, and codes that follow what they stand for."""

    def __init__(self, parameter: bool, data: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        codes = torch.linspace(-1, 1, 12).view(3, 4) * torch.tensor([1.0, -1.0, 1.0, -1.0])
        if parameter:
            self.codes = nn.Parameter(codes, requires_grad=False)
        else:
            self.register_buffer("codes", codes)
        self.register_buffer("sizes", torch.ones(3))
        self.data = data

    def forward(self, x: Tensor) -> Tensor:
        z = torch.tanh(self.linear(x))
        nearest = torch.cdist(z.detach(), self.codes).argmin(-1)
        quantized = self.codes[nearest]
        if self.training:
            hot = functional.one_hot(nearest, 3).to(z.dtype)
            with torch.no_grad():
                codes, sizes = (self.codes.data, self.sizes.data) if self.data else (self.codes, self.sizes)
                sizes.mul_(0.9).add_(hot.sum(0), alpha=0.1)
                codes.lerp_(hot.t() @ z / sizes.unsqueeze(-1), 0.1)
        return z + (quantized - z).detach() + 0.1 * z * quantized


class ActivatedNorm(nn.BatchNorm1d):
    """A subclass with a forward of its own, as the fused normalizations of image models."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.num_batches_tracked.add_(1)
        y = functional.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training,
            self.momentum,
            self.eps,
        )
        return torch.tanh(y)


class SplitNorm(nn.BatchNorm1d):
    """One normalization for each half of the batch, with statistics of their own."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.other = nn.BatchNorm1d(width)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        return torch.cat([super().forward(x[:3]), self.other(x[3:])])


class OwnStatistics(nn.BatchNorm1d):
    """Statistics worked out and moved by hand, as in normalization over several processes."""

    def forward(self, x: Tensor) -> Tensor:
        mean, variance = (
            (x.mean(0), x.var(0, False)) if self.training else (self.running_mean, self.running_var)
        )
        if self.training:
            self.running_mean.data.lerp_(mean.detach(), self.momentum)
            self.running_var.data.lerp_(variance.detach(), self.momentum)
            self.num_batches_tracked.data += 1
        return (x - mean) / (variance + self.eps).sqrt() * self.weight + self.bias


class Renorm(nn.BatchNorm1d):
    """Normalizes by its running statistics while it moves them."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.running_mean.lerp_(x.detach().mean(0), 0.2)
            self.running_var.lerp_(x.detach().var(0), 0.2)
        return (x - self.running_mean) / (self.running_var + self.eps).sqrt() * self.weight + self.bias


class FrozenNorm(nn.BatchNorm1d):
    """Stays in evaluation whatever the net is in."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.eval()

    def train(self, mode: bool = True) -> FrozenNorm:
        return super().train(False)


class TwiceNormed(nn.Module):
    """One normalization called twice in one function."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.BatchNorm1d(4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.norm(self.linear(self.norm(x))))


class Functional(nn.Module):
    """No module of torch's at all: running statistics handed to the function."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("variance", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return functional.batch_norm(self.linear(x), self.mean, self.variance, training=self.training)


def normed(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Linear(4, 4), make(), nn.Tanh())


OTHERS: dict[str, Callable[[], nn.Module]] = {
    "codebook": lambda: Codebook(parameter=False, data=False),
    "codebook through data": lambda: Codebook(parameter=False, data=True),
    "codebook as a parameter": lambda: Codebook(parameter=True, data=False),
    "codebook as a parameter through data": lambda: Codebook(parameter=True, data=True),
    "activated norm": normed(lambda: ActivatedNorm(4)),
    "split norm": normed(lambda: SplitNorm(4)),
    "own statistics": normed(lambda: OwnStatistics(4)),
    "renorm": normed(lambda: Renorm(4)),
    "frozen norm": normed(lambda: FrozenNorm(4)),
    "twice normed": TwiceNormed,
    "functional": Functional,
    "momentum none": normed(lambda: nn.BatchNorm1d(4, momentum=None)),
    "momentum none, activated": normed(lambda: ActivatedNorm(4, momentum=0.3)),
    "without affine": normed(lambda: nn.BatchNorm1d(4, affine=False)),
    "spectral norm": lambda: nn.Sequential(
        nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)), nn.Tanh()
    ),
    "spectral norm, old style": lambda: nn.Sequential(nn.utils.spectral_norm(nn.Linear(4, 4)), nn.Tanh()),
    "weight norm": lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Tanh()),
    "weight norm, old style": lambda: nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 4)), nn.Tanh()),
}

ON_IMAGES: dict[str, Callable[[], nn.Module]] = {
    "instance norm": lambda: nn.Sequential(
        nn.Conv1d(4, 4, 1), nn.InstanceNorm1d(4, affine=True, track_running_stats=True), nn.Tanh()
    ),
    "batch norm": lambda: nn.Sequential(nn.Conv1d(4, 4, 3, padding=1), ActivatedNorm(4)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_state_moves_once(name: str) -> None:
    assert_follows(lambda: Weave(OTHERS[name]), *two_streams(6, 4), under=BOTH, evaluation=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ON_IMAGES)
def test_statistics_over_positions_move_once(name: str) -> None:
    assert_follows(
        lambda: Weave(ON_IMAGES[name]),
        *two_streams(2, 4, 5),
        under=("default", "inverted", "results"),
        evaluation=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_tracing_moves_no_state(name: str) -> None:
    model, plain = made_twice(lambda: Weave(OTHERS[name]))
    rg.trace(model, *two_streams(6, 4))
    assert_bitwise(state_of(model), state_of(plain))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["activated norm", "renorm"])
def test_state_moves_once_under_every_plan(name: str) -> None:
    assert_follows(lambda: Weave(OTHERS[name]), *two_streams(6, 4), under=REST, evaluation=True)


class OneOfEach(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.Sequential(Functional(), TwiceNormed(), OwnStatistics(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.parts(x)


@pytest.mark.slow
@pytest.mark.parametrize("plan", ["default", "inverted"])
def test_several_forwards_before_their_backward_passes(plan: str) -> None:
    model, plain = doubled(lambda: Weave(OneOfEach))
    a, b = two_streams(6, 4)
    net = rg.trace(model, a, b)
    (net.plan,) = plans(net, plan)
    for _ in range(10):
        results = []
        for run in (net, plain):
            losses = [sum(run(a * scale, b)).pow(2).sum() for scale in (1.0, 0.5, 2.0)]
            leaves = [a, b, *run.parameters()]
            results.append([g for index in (1, 0, 2) for g in torch.autograd.grad(losses[index], leaves)])
        assert_close(*results, 1e-9)
        assert_same_buffers(net, plain)


@pytest.mark.slow
@pytest.mark.parametrize("plan", ["default", "inverted"])
def test_a_forward_in_evaluation_between_forward_and_backward(plan: str) -> None:
    model, plain = doubled(lambda: Weave(OneOfEach))
    a, b = two_streams(6, 4)
    net = rg.trace(model, a, b)
    (net.plan,) = plans(net, plan)
    for _ in range(10):
        results = []
        for run in (net, plain):
            loss = sum(run(a, b)).pow(2).sum()
            run.eval()
            with torch.no_grad():
                run(b, a)
            run.train()
            results.append(torch.autograd.grad(loss, [a, b, *run.parameters()]))
        assert_close(*results, 1e-9)
        assert_same_buffers(net, plain)


def test_checking_and_measuring_move_nothing() -> None:
    model, plain = doubled(lambda: Weave(OneOfEach))
    a, b = two_streams(6, 4)
    net = rg.trace(model, a, b)
    net.plan = rg.decide(net.graph, {})
    assert rg.check(net, a, b).max_relative_error < 1e-9
    rg.measure(net, a, b)
    assert_same_buffers(net, plain)


def test_without_gradients_buffers_move_as_in_the_plain_model() -> None:
    model, plain = doubled(lambda: Weave(OneOfEach))
    a, b = two_streams(6, 4)
    net = rg.trace(model, a, b)
    for _ in range(2):
        with torch.no_grad():
            net(a, b), plain(a, b)
        assert_same_buffers(net, plain)
        assert_close(gradients(net, model, a, b), gradients(plain, plain, a, b), 1e-9)


class Writer(nn.Module):
    """Moves a frozen parameter, or clamps a trained one, in one of the ways that torch has for it."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.linear, self.how = nn.Linear(4, 4), how
        self.mean = nn.Parameter(torch.zeros(4), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.detach().mean(0)
        with torch.no_grad():
            if self.how == "copy":
                self.mean.copy_(self.mean * 0.9 + mean)
            elif self.how == "view":
                self.mean[:2].lerp_(mean[:2], 0.1)
            elif self.how == "data":
                self.mean.data.lerp_(mean, 0.1)
            elif self.how == "other memory":
                self.mean.data = self.mean.data * 0.9 + mean
            elif self.how == "many":
                torch._foreach_lerp_([self.mean], [mean], 0.1)
            else:
                self.linear.weight.data.clamp_(-0.3, 0.3)
        return torch.tanh(self.linear(x)) * (1 + self.mean)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["copy", "view", "data", "other memory", "many", "clamp"])
def test_parameters_that_a_forward_writes_move_once_a_step_and_in_no_check(how: str) -> None:
    model, plain = made_twice(lambda: Weave(lambda: Writer(how)))
    a, b = two_streams(6, 4)
    before = [(each.clone(), each._version, each.data_ptr()) for each in model.parameters()]
    net = rg.trace(model, a, b)
    net.plan = rg.decide(net.graph, {})
    rg.measure(net, a, b)
    rg.check(net, a, b)
    for parameter, (value, version, place) in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter, value)
        assert (parameter._version, parameter.data_ptr()) == (version, place)
    for _ in range(10):
        assert_close(gradients(net, model, a, b), gradients(plain, plain, a, b), 1e-9)
        assert_bitwise([*net.parameters()], [*plain.parameters()])
