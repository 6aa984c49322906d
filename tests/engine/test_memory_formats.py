"""Rebuilt values lie in memory as in the forward, whatever views are around; and plans keep their word.

Operators choose by strides: `nn.Linear` on three dimensions is one product for contiguous inputs and
another one otherwise, convolutions round differently on other formats, and `view` refuses what does not
fit. A replay that sees other strides than its forward saves other tensors, or fails.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from engine.kinds import BOTH, PLANS, Weave, follow, loss_of, made_twice, plans, right_or_refused, two_streams
from torch import Tensor, nn
from torch.nn import functional

import revgraph as rg

# Every plan for those nets that are most often written, and a few for the others.
USUAL = ("last of three", "channels")


class Noting(rg.Boundary):
    """Notes how its input lies in memory."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.seen: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        if type(x) is Tensor and x.device.type == "cpu":
            self.seen.append(tuple(s for s, n in zip(x.stride(), x.shape, strict=True) if n > 1))
        return self.inner(x)


def products() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 4))


def convolutions() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, 2, 1))


class Viewing(nn.Module):
    """Views its input as one dimension, which only some strides allow."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x.view(-1, 4))).view(x.shape)


class ViewingTurned(Viewing):
    """Views its transposed input, which goes for a stream that was permuted and not for a contiguous one."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(0, 1)).transpose(0, 1)


class ByStride(nn.Module):
    """Another function for contiguous inputs than for others, as dispatchers of kernels are."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x)) if x.is_contiguous() else torch.sigmoid(self.linear(x)) * 0.5


class Cut(nn.Module):
    """Streams cut out of one tensor along a dimension, woven, and put together."""

    def __init__(self, f: Callable[[], nn.Module], dimension: int = -1, depth: int = 3) -> None:
        super().__init__()
        self.weave, self.dimension = Weave(lambda: Noting(f()), depth), dimension

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, self.dimension)
        return torch.cat(self.weave(a, b), self.dimension)


class Permuted(Cut):
    """The dimensions are permuted before the cut."""

    def __init__(self, f: Callable[[], nn.Module], order: tuple[int, ...], dimension: int = -1) -> None:
        super().__init__(f, dimension)
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(self.order))


class Turned(nn.Module):
    """The streams are transposed between one half-step and the next."""

    def __init__(self, f: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.fs = nn.ModuleList(Noting(f()) for _ in range(4))

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        for f in self.fs:
            a, b = b, a + f(b)
            a, b = a.transpose(0, 1), b.transpose(0, 1)
        return a, b


class Selected(nn.Module):
    """Streams that are slices of a larger tensor, one of them narrowed further."""

    def __init__(self, f: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.stem, self.weave = nn.Linear(4, 12), Weave(lambda: Noting(f()))

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        a, b = self.weave(y[..., :4], y[..., 4:8])
        return torch.cat([a, b, y[..., 8:]], -1)


class Expanded(nn.Module):
    """One stream begins as a single row for the whole batch."""

    def __init__(self, f: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.row, self.weave = nn.Parameter(torch.linspace(-1, 1, 4)), Weave(f)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.weave(self.row.expand(x.shape), x)


class Wired(nn.Module):
    """The wiring modules of the package around convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.deeper, self.split, self.shuffle = rg.SpaceToDepth(), rg.Split(dim=1), rg.ShuffleChannels(8)
        self.f, self.g = (Noting(nn.Conv2d(4, 4, 3, padding=1)) for _ in range(2))
        self.join = rg.Concatenate(dim=1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.split(self.deeper(x))
        a = a + torch.tanh(self.f(b))
        b = b + torch.tanh(self.g(a))
        a, b = self.split(self.shuffle(self.join(a, b)))
        a = a - torch.tanh(self.g(b))
        return self.join(a, b)


def images(channels_last: bool = False, channels: int = 4) -> Tensor:
    x = two_streams(2, channels, 6, 6)[0].detach()
    return (x.to(memory_format=torch.channels_last) if channels_last else x).requires_grad_()


def sequences(*shape: int) -> Tensor:
    return two_streams(*(shape or (2, 3, 8)))[0]


NETS: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Any, ...]]]] = {
    "last of three": (lambda: Cut(products), lambda: (sequences(),)),
    "middle of three": (lambda: Cut(products, 1), lambda: (sequences(2, 6, 4),)),
    "first of three": (lambda: Cut(products, 0), lambda: (sequences(4, 3, 4),)),
    "channels": (lambda: Cut(convolutions, 1), lambda: (images(),)),
    "rows": (lambda: Cut(convolutions, 2), lambda: (images(channels=2),)),
    "channels last": (lambda: Cut(convolutions, 1), lambda: (images(True),)),
    "rows, channels last": (lambda: Cut(convolutions, 2), lambda: (images(True, 2),)),
    "permuted": (lambda: Permuted(products, (1, 0, 2)), lambda: (sequences(),)),
    "turned": (lambda: Turned(products), lambda: two_streams(3, 3, 4)),
    "slices": (lambda: Selected(products), lambda: (sequences(2, 3, 4),)),
    "wiring modules": (Wired, lambda: (images(channels=2),)),
    "by stride": (lambda: Cut(ByStride), lambda: (sequences(),)),
    "views of permuted": (lambda: Permuted(ViewingTurned, (1, 0, 2)), lambda: (sequences(),)),
    "views": (lambda: Cut(Viewing, 0), lambda: (sequences(4, 3, 4),)),
}


CASES = [(name, plan) for name in NETS for plan in (PLANS if name in USUAL else ("inverted", "results"))]
MEASURED = [(name, "frontier") for name in NETS] + [(name, plan) for name in USUAL for plan in BOTH]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "plan"), CASES)
def test_a_replay_sees_the_strides_of_its_forward(name: str, plan: str) -> None:
    make, given = NETS[name]
    inputs = given()
    model, _ = made_twice(make)
    net = rg.trace(model, *inputs)
    notes = [module for module in model.modules() if isinstance(module, Noting)]
    for chosen in plans(net, plan):
        net.plan = chosen
        for note in notes:
            note.seen.clear()
        loss = loss_of(net(*inputs))
        forward = [list(note.seen) for note in notes]
        loss.backward()
        for note, before in zip(notes, forward, strict=True):
            assert set(note.seen) == set(before)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_gradients_of_strided_streams(name: str) -> None:
    make, given = NETS[name]
    model, plain = made_twice(make)
    net = rg.trace(model, *given())
    net.plan = rg.decide(net.graph, {})
    follow(net, plain, given(), 10)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "plan"), MEASURED)
def test_a_plan_measures_what_it_predicts(name: str, plan: str) -> None:
    make, given = NETS[name]
    inputs = given()
    model, _ = made_twice(make)
    net = rg.trace(model, *inputs)
    for chosen in plans(net, plan):
        net.plan = chosen
        measured = rg.measure(net, *inputs)
        predicted = net.plan.peak_bytes, net.plan.held_bytes, round(net.plan.flops_ratio, 6)
        assert (measured.peak_bytes, measured.held_bytes, round(measured.flops_ratio, 6)) == predicted


@pytest.mark.slow
@pytest.mark.parametrize("plan", PLANS)
def test_an_expanded_stream(plan: str) -> None:
    inputs = (sequences(2, 3, 4),)
    model, plain = made_twice(lambda: Expanded(products))
    net = rg.trace(model, *inputs)
    for chosen in plans(net, plan):
        net.plan = chosen
        follow(net, plain, inputs, 9)


@pytest.mark.slow
@pytest.mark.parametrize("plan", ["default", "inverted", "results"])
def test_inputs_that_lie_otherwise_than_the_example(plan: str) -> None:
    """A net traced on contiguous images runs on others; only the prediction is for the example."""
    model, plain = made_twice(lambda: Cut(convolutions, 1))
    net = rg.trace(model, images())
    (net.plan,) = plans(net, plan)
    wide = two_streams(2, 4, 6, 12)[0].detach()[..., ::2].requires_grad_()
    turned = images().detach().transpose(2, 3).requires_grad_()
    for x in (images(True), wide, turned, images()):
        follow(net, plain, (x,), 4)


@pytest.mark.slow
@pytest.mark.parametrize("plan", ["default", "inverted", "mixed"])
def test_a_model_in_channels_last(plan: str) -> None:
    def make() -> nn.Module:
        return Cut(convolutions, 1).to(memory_format=torch.channels_last)  # pyright: ignore

    model, plain = made_twice(make)
    net = rg.trace(model, images(True))
    (net.plan,) = plans(net, plan)
    follow(net, plain, (images(True),))


@pytest.mark.slow
@pytest.mark.parametrize("plan", ["default", "inverted", "results"])
def test_a_function_that_returns_a_strided_term(plan: str) -> None:
    """The sum takes its strides from one operand or the other; what is rebuilt has the forward's."""

    class Transposing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.linear(x)).transpose(0, 1).contiguous().transpose(0, 1)

    inputs = two_streams(3, 5, 4)
    model, plain = made_twice(lambda: Weave(lambda: Noting(Transposing())))
    net = rg.trace(model, *inputs)
    (net.plan,) = plans(net, plan)
    follow(net, plain, inputs)
    for f in model.fs:
        f.seen.clear()
    loss_of(net(*inputs)).backward()
    assert all(len(set(f.seen)) == 1 for f in model.fs)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["pool", "norm", "upsample", "unfold"])
def test_operators_that_choose_by_format(kernel: str) -> None:
    layers: dict[str, Callable[[], nn.Module]] = {
        "pool": lambda: nn.MaxPool2d(3, 1, 1),
        "norm": lambda: nn.GroupNorm(1, 2),
        "upsample": lambda: nn.Sequential(nn.AvgPool2d(2), nn.Upsample(scale_factor=2, mode="bilinear")),
        "unfold": lambda: nn.Sequential(
            nn.Unfold(3, padding=1), nn.Unflatten(2, (6, 6)), nn.Conv2d(18, 2, 1)
        ),
    }

    def make() -> nn.Module:
        return Cut(lambda: nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), layers[kernel](), nn.Tanh()), 1)

    for channels_last in (False, True):
        model, plain = made_twice(make)
        inputs = (images(channels_last),)
        net = rg.trace(model, *inputs)
        net.plan = rg.decide(net.graph, {})
        follow(net, plain, inputs, 9)


def test_an_internal_overlap_is_right_or_refused() -> None:
    """A stream whose elements share memory, as sliding windows do."""

    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weave = Weave(products, 3)

        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            return self.weave(functional.pad(x, (0, 3)).unfold(-1, 4, 1), y)

    with right_or_refused("unfold", "weave"):
        model, plain = made_twice(Windows)
        inputs = (sequences(2, 5), sequences(2, 5, 4))
        net = rg.trace(model, *inputs)
        for chosen in plans(net, "frontier"):
            net.plan = chosen
            follow(net, plain, inputs, 9)
