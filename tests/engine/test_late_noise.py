"""Noise inside functions: the same on replay, also where a kernel fills it after autograd has packed it."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable

import numpy
import pytest
import torch
from engine.kinds import (
    BOTH,
    REST,
    Weave,
    assert_follows,
    follow,
    gradients,
    plans,
    right_or_refused,
    two_streams,
)
from engine.samples import assert_close, doubled
from torch import Tensor, nn
from torch.nn import functional

import revgraph as rg

FORWARDS = 20


class Noisy(nn.Module):
    """Two layers; the subclasses put noise between them."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

    def noise(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.tanh(self.noise(self.one(x))))


def layer(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """A function with a module of torch's between two layers."""
    return lambda: nn.Sequential(nn.Linear(4, 4), make(), nn.Tanh(), nn.Linear(4, 4))


class FunctionalRReLU(Noisy):
    def noise(self, x: Tensor) -> Tensor:
        return functional.rrelu(x, 0.1, 0.6, self.training)


class RReLUInPlace(Noisy):
    def noise(self, x: Tensor) -> Tensor:
        return functional.rrelu_(x * 1.5, 0.1, 0.6, self.training)


class RReLUFirst(Noisy):
    """The noise is the first tensor that autograd saves."""

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.tanh(functional.rrelu(x, 0.1, 0.6, self.training)))


class RReLULast(Noisy):
    def forward(self, x: Tensor) -> Tensor:
        return functional.rrelu(self.two(torch.tanh(self.one(x))), 0.1, 0.6, self.training)


class Gumbel(Noisy):
    hard = False

    def noise(self, x: Tensor) -> Tensor:
        return x * functional.gumbel_softmax(x, tau=0.7, hard=self.hard)


class HardGumbel(Gumbel):
    hard = True


class BernoulliStraightThrough(Noisy):
    def noise(self, x: Tensor) -> Tensor:
        p = torch.sigmoid(x)
        return p + (torch.bernoulli(p) - p).detach()


class StochasticDepth(Noisy):
    """Drops whole rows, and nothing in evaluation."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if not self.training:
            return y
        return y * x.new_empty(len(x), 1).bernoulli_(0.6) / 0.6

    def noise(self, x: Tensor) -> Tensor:
        return x


class SkipsAtRandom(StochasticDepth):
    """Drops itself as a whole: another number of saved tensors in another forward."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and torch.rand(()).item() < 0.4:
            return x * 0.5
        return super().forward(x)


class RandomDepthOfDraws(Noisy):
    """Draws more or fewer numbers from one forward to the next."""

    def noise(self, x: Tensor) -> Tensor:
        for _ in range(int(torch.randint(1, 4, ()).item())):
            x = functional.dropout(x, 0.3, self.training)
        return x


class Gaussian(Noisy):
    def noise(self, x: Tensor) -> Tensor:
        return x + 0.3 * torch.randn_like(x) * torch.exp(-x * x)


class Filled(Noisy):
    """Memory that is made empty, used as a view, and filled in place."""

    def noise(self, x: Tensor) -> Tensor:
        noise = torch.empty_like(x)
        noise[:, :2].uniform_(0.5, 1.5)
        noise[:, 2:].normal_(1, 0.2)
        return x * noise


class Written(Noisy):
    """Noise written through `out=`."""

    def noise(self, x: Tensor) -> Tensor:
        noise = x.new_empty(x.shape)
        torch.rand(x.shape, out=noise, dtype=x.dtype)
        return x * noise


class Shuffled(Noisy):
    def noise(self, x: Tensor) -> Tensor:
        return x * x[torch.randperm(len(x))]


class Sampled(Noisy):
    def noise(self, x: Tensor) -> Tensor:
        chosen = torch.multinomial(torch.softmax(x, -1), 2)
        return x.scatter_add(-1, chosen, x.gather(-1, chosen))


class Reparametrized(Noisy):
    def noise(self, x: Tensor) -> Tensor:
        return torch.distributions.Normal(x, 0.1 + x * x, validate_args=False).rsample()


class GammaSampled(Noisy):
    """The sample has a gradient of its own towards its concentration."""

    def noise(self, x: Tensor) -> Tensor:
        return x * torch._standard_gamma(1.0 + x * x)


class Quantile(Noisy):
    def noise(self, x: Tensor) -> Tensor:
        return torch.where(torch.empty_like(x).exponential_() > 0.7, x, 0.1 * x)


class FractionalPool(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.pool = nn.FractionalMaxPool2d(2, output_size=3)

    def forward(self, x: Tensor) -> Tensor:
        return functional.interpolate(self.pool(torch.tanh(self.conv(x))), size=x.shape[-2:])


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, dropout=0.3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


class ScaledDotProduct(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 12)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.mix(x).chunk(3, -1)
        return functional.scaled_dot_product_attention(q, k, v, dropout_p=0.3 if self.training else 0.0)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 4, num_layers=2, dropout=0.4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0]


FUNCTIONS = {
    "rrelu": layer(nn.RReLU),
    "rrelu in place": layer(lambda: nn.RReLU(inplace=True)),
    "dropout": layer(nn.Dropout),
    "dropout in place": layer(lambda: nn.Dropout(0.4, inplace=True)),
    "dropout 1d": layer(lambda: nn.Dropout1d(0.4)),
    "alpha dropout": layer(lambda: nn.AlphaDropout(0.4)),
    "feature alpha dropout": layer(lambda: nn.FeatureAlphaDropout(0.4)),
    **{
        each.__name__: each
        for each in (
            FunctionalRReLU, RReLUInPlace, RReLUFirst, RReLULast, Gumbel, HardGumbel,
            BernoulliStraightThrough, StochasticDepth, SkipsAtRandom, RandomDepthOfDraws, Gaussian, Filled,
            Written, Shuffled, Sampled, Reparametrized, GammaSampled, Quantile,
        )
    },
}  # fmt: skip

ON_SEQUENCES = {each.__name__: each for each in (Attention, ScaledDotProduct, Recurrent)}


@pytest.mark.slow
@pytest.mark.parametrize("name", FUNCTIONS)
def test_noise_is_the_same_on_replay(name: str) -> None:
    assert_follows(lambda: Weave(FUNCTIONS[name]), *two_streams(), forwards=FORWARDS, evaluation=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rrelu", "RReLUFirst", "HardGumbel"])
def test_noise_under_every_plan(name: str) -> None:
    assert_follows(
        lambda: Weave(FUNCTIONS[name]),
        *two_streams(),
        under=("default", *REST),
        forwards=FORWARDS,
        evaluation=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ON_SEQUENCES)
def test_noise_inside_attention_and_recurrent_layers(name: str) -> None:
    assert_follows(
        lambda: Weave(ON_SEQUENCES[name], 2),
        *two_streams(2, 3, 4),
        under=("inverted", "results"),
        forwards=FORWARDS,
        evaluation=True,
    )


def test_fractional_pooling() -> None:
    assert_follows(
        lambda: Weave(FractionalPool, 2),
        *two_streams(2, 2, 6, 6),
        under=("default", "inverted", "results"),
        forwards=FORWARDS,
        evaluation=True,
    )


class OpaqueRReLU(rg.Boundary, FunctionalRReLU):
    """The same in a function that is not looked into."""


class Between(nn.Module):
    """Noise in boundaries, before and behind the couplings."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.weave, self.behind = OpaqueRReLU(), Weave(FunctionalRReLU, 2), OpaqueRReLU()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        a, b = self.weave(self.before(a), b)
        return self.behind(a + 0.5 * b)


@pytest.mark.slow
def test_noise_in_boundaries() -> None:
    assert_follows(
        Between, *two_streams(), under=(*BOTH, "recomputed", "results"), forwards=FORWARDS, evaluation=True
    )


@pytest.mark.slow
@pytest.mark.parametrize("plan", ["default", "inverted"])
def test_backward_passes_in_another_order_than_forwards(plan: str) -> None:
    model, plain = doubled(lambda: Weave(FUNCTIONS["rrelu"]))
    a, b = two_streams()
    net = rg.trace(model, a, b)
    (net.plan,) = plans(net, plan)
    results = []
    for run in (net, plain):
        found = []
        for number in range(10):
            torch.manual_seed(number)
            losses = [sum(run(a, b)).pow(2).sum() for _ in range(3)]
            for loss in (losses[1], losses[2], losses[0]):
                torch.rand(2)
                found += torch.autograd.grad(loss, [a, b, *run.parameters()])
        results.append([*found, torch.get_rng_state()])
    assert torch.equal(results[0].pop(), results[1].pop())
    assert_close(*results, 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rrelu", "dropout", "HardGumbel"])
def test_checking_and_measuring_agree_about_noise(name: str) -> None:
    model, plain = doubled(lambda: Weave(FUNCTIONS[name]))
    a, b = two_streams()
    net = rg.trace(model, a, b)
    net.plan = rg.decide(net.graph, {})
    for _ in range(3):
        assert rg.check(net, a, b).max_relative_error < 1e-9
        rg.measure(net, a, b)
        assert_close(gradients(net, net, a, b), gradients(plain, plain, a, b), 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rrelu", "RReLUFirst", "StochasticDepth"])
def test_noise_that_begins_late(name: str) -> None:
    """Ten forwards in evaluation draw nothing; then training does."""
    model, plain = doubled(lambda: Weave(FUNCTIONS[name]))
    a, b = two_streams()
    net = rg.trace(model, a, b)
    net.plan = rg.decide(net.graph, {})
    net.eval(), plain.eval()
    follow(net, plain, (a, b), 10)
    net.train(), plain.train()
    follow(net, plain, (a, b), 10)


class FromPython(rg.Boundary, Noisy):
    def noise(self, x: Tensor) -> Tensor:
        return x * random.choice([0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0])


class FromNumpy(rg.Boundary, Noisy):
    def noise(self, x: Tensor) -> Tensor:
        return x * torch.from_numpy(numpy.random.rand(*x.shape)).to(x.dtype)


class FromItsOwnGenerator(rg.Boundary, Noisy):
    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator()

    def noise(self, x: Tensor) -> Tensor:
        return x * torch.rand(x.shape, generator=self.generator, dtype=x.dtype)

    def __deepcopy__(self, memo: dict[int, object]) -> FromItsOwnGenerator:
        made = FromItsOwnGenerator().to(self.one.weight.dtype)
        made.load_state_dict(self.state_dict())
        made.generator.set_state(self.generator.get_state())
        return made


@pytest.mark.slow
@pytest.mark.parametrize("function", [FromPython, FromNumpy, FromItsOwnGenerator])
@pytest.mark.parametrize("plan", ["inverted", "recomputed"])
def test_noise_from_elsewhere_is_right_or_refused(function: type[Noisy], plan: str) -> None:
    model, plain = doubled(lambda: Weave(function))
    a, b = two_streams()
    with right_or_refused("'fs.", says="(?i)deterministic|random|generator"):
        states = random.getstate(), numpy.random.get_state(), copy.deepcopy(model.fs)
        net = rg.trace(model, a, b)
        for f, before in zip(model.fs, states[2], strict=True):
            if isinstance(f, FromItsOwnGenerator):
                f.generator.set_state(before.generator.get_state())
        (net.plan,) = plans(net, plan)
        found, expected = [], []
        for run, out in ((net, found), (plain, expected)):
            random.setstate(states[0]), numpy.random.set_state(states[1])
            out += gradients(run, run, a, b)
        assert_close(found, expected, 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("rest", [lambda y: y, torch.tanh], ids=["at the end", "in the middle"])
def test_a_node_that_is_nothing_but_late_noise_is_recomputed_whole(rest: Callable[[Tensor], Tensor]) -> None:
    """A replay that ends with the last tensor it captures would end before the noise is filled in."""

    class Alone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.noise = nn.Linear(4, 4), nn.RReLU()

        def forward(self, x: Tensor) -> Tensor:
            return rest(x + self.noise(self.layer(x)))

    model, x = Alone().double(), torch.randn(3, 4, dtype=torch.float64)
    net = rg.trace(copy.deepcopy(model), x)
    net.plan = rg.decide(net.graph, {node.name: "recompute" for node in net.graph.planned})
    for seed in range(FORWARDS):
        found = []
        for each in (model, net):
            each.zero_grad()
            torch.manual_seed(seed)
            each(x).pow(2).mean().backward()
            found.append([parameter.grad for parameter in each.parameters()])
        for one, two in zip(*found, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)
