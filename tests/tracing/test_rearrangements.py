"""Rearrangements in plain code are wiring: undone by the net, of volume one, with right gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from tracing.agreement import agree, equal_runs, linear, randn

import revgraph as rg

Form = Callable[[Any], Any]


def board(x: Tensor) -> tuple[Tensor, ...]:
    return x[:, :, ::2, ::2], x[:, :, 1::2, 1::2], x[:, :, ::2, 1::2], x[:, :, 1::2, ::2]


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    half = x.shape[1] // 2
    return x[:, :half], x[:, half:]


# What gives streams from x, and the shape of x. Streams go on as rows of four.
FORMS: dict[str, tuple[Form, tuple[int, ...]]] = {
    "slices": (lambda x: (x[:, :4], x[:, 4:]), (4, 8)),
    "slices, the last first": (lambda x: (x[:, 4:], x[:, :4]), (4, 8)),
    "slices from the end": (lambda x: (x[:, -4:], x[:, :-4]), (4, 8)),
    "slices at a size": (halves, (4, 8)),
    "slices at sizes": (lambda x: (x[:, : x.size(1) // 2], x[:, x.size(1) // 2 :]), (4, 8)),
    "unequal slices": (lambda x: (x[:, :3], x[:, 3:4], x[:, 4:]), (4, 8)),
    "every other": (lambda x: (x[:, ::2], x[:, 1::2]), (4, 8)),
    "ellipsis": (lambda x: (x[..., :4], x[..., 4:]), (4, 8)),
    "slices of slices": (lambda x: (x[:, :4][:, ::2], x[:, :4][:, 1::2], x[:, 4:]), (4, 8)),
    "a slice read twice": (lambda x: (x[:, :4] + 0 * x[:, 4:].sin(), x[:, 4:]), (4, 8)),
    "narrow": (lambda x: (x.narrow(1, 0, 4), torch.narrow(x, 1, 4, 4)), (4, 8)),
    "items": (lambda x: (x[:, 0], x[:, 1]), (4, 2, 4)),
    "items from the end": (lambda x: (x[:, 0], x[:, -1]), (4, 2, 4)),
    "select": (lambda x: (x.select(1, 0), torch.select(x, 1, 1)), (4, 2, 4)),
    "unpacked": (lambda x: tuple(x), (2, 4, 4)),
    "checkerboard": (board, (4, 1, 4, 4)),
    "unbind": (lambda x: x.unbind(1), (4, 2, 4)),
    "unbind last": (lambda x: torch.unbind(x, -1), (4, 4, 2)),
    "unequal split": (lambda x: x.split([3, 5], 1), (4, 8)),
    "tensor_split": (lambda x: torch.tensor_split(x, (1, 4), dim=1), (4, 8)),
    "hsplit": (lambda x: torch.hsplit(x, 2), (4, 8)),
    "flip": (lambda x: x.flip(1).chunk(2, 1), (4, 8)),
    "flip of both": (lambda x: torch.flip(x, (0, -1)).chunk(2, 1), (4, 8)),
    "fliplr": (lambda x: torch.fliplr(x).chunk(2, 1), (4, 8)),
    "roll": (lambda x: x.roll(1, 1).chunk(2, 1), (4, 8)),
    "roll of all": (lambda x: torch.roll(x, 3).chunk(2, 1), (4, 8)),
    "roll by names": (lambda x: torch.roll(x, shifts=(1, -2), dims=(0, 1)).chunk(2, 1), (4, 8)),
    "rot90": (lambda x: torch.rot90(x, 1, (2, 3)).chunk(2, 2), (4, 1, 4, 4)),
    "index list": (lambda x: x[:, [7, 3, 1, 0, 5, 2, 4, 6]].chunk(2, 1), (4, 8)),
    "index tensor": (lambda x: x[:, torch.tensor([7, 3, 1, 0, 5, 2, 4, 6])].chunk(2, 1), (4, 8)),
    "index_select": (lambda x: x.index_select(1, torch.tensor([1, 0, 3, 2, 5, 4, 7, 6])).chunk(2, 1), (4, 8)),
    "index lists": (lambda x: (x[:, [0, 3, 4, 7]], x[:, [1, 2, 5, 6]]), (4, 8)),
    "masks": (lambda x: (x[:, torch.arange(8) < 4], x[:, torch.arange(8) >= 4]), (4, 8)),
    "t": (lambda x: x.t().chunk(2, 0), (8, 8)),
    "T": (lambda x: x.T.chunk(2, 0), (8, 8)),
    "movedim": (lambda x: x.movedim(-1, 0).chunk(2, 0), (4, 4, 2)),
    "permute": (lambda x: x.permute(2, 0, 1).chunk(2, 0), (4, 4, 2)),
    "transpose by names": (lambda x: torch.transpose(x, dim0=2, dim1=0).chunk(2, 0), (4, 4, 2)),
    "a new dimension": (lambda x: (x[:, None, :4], x[:, None, 4:]), (4, 8)),
    "the whole": (lambda x: x[None][0][:].chunk(2, 1), (4, 8)),
    "channel shuffle": (lambda x: torch.channel_shuffle(x, 4).chunk(2, 1), (4, 8, 2, 2)),
    "stack": (lambda x: torch.stack(x.chunk(2, 1), 2).flatten(1).chunk(2, 1), (4, 8)),
    "hstack": (lambda x: torch.hstack(x.split([3, 5], 1)).chunk(2, 1), (4, 8)),
    "ravel": (lambda x: x.ravel().view(4, 8).chunk(2, 1), (4, 8)),
}  # fmt: skip


class Net(nn.Module):
    """Streams from x by a form, as two of width four, through three couplings, and side by side again."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.f, self.g, self.h = (linear(4, seed=seed) for seed in (1, 2, 3))
        self.form = form

    def forward(self, x: Tensor) -> Tensor:
        streams = [stream.reshape(x.shape[0], -1) for stream in self.form(x)]
        a, b = torch.cat(streams, 1).reshape(-1, 8).chunk(2, 1)
        a = a + self.f(b)
        b = b + self.g(a)
        return torch.cat([a + self.h(b), b], 1)


def undone(net: rg.ReversibleModule, x: Tensor) -> None:
    """The inverse gives x back, also with gradients, and the volume stays."""
    y = net(x)
    torch.testing.assert_close(net.inverse(y.detach()), x, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(net.inverse(y), x, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FORMS if name != "a slice read twice"])
def test_is_wiring_all_the_way(name: str) -> None:
    form, shape = FORMS[name]
    x = randn(*shape)
    net = agree(Net(form), x, couplings=3)
    assert [node for node in net.graph.nodes if node.kind == "boundary"] == []
    undone(net, x)
    if x.shape[0] * 8 == x.numel():  # otherwise samples are mixed
        y, log_det = net.with_log_det(x)
        assert torch.equal(log_det, torch.zeros(len(x), dtype=torch.double))
        torch.testing.assert_close(y, net(x), rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("plan", [rg.keep_all, lambda graph: rg.plan(graph, "least")])
def test_is_right_under_plans(name: str, plan: Any) -> None:
    form, shape = FORMS[name]
    x = randn(*shape)
    model = Net(form)
    net = agree(model, x)
    net.plan = plan(net.graph)
    expected = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    found = torch.autograd.grad(net(x).square().sum(), list(net.parameters()))
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


class Ordered(nn.Module):
    """Channels in the order of an index buffer, and a coupling."""

    order: Tensor

    def __init__(self, order: list[int]) -> None:
        super().__init__()
        self.f = linear(4)
        self.register_buffer("order", torch.tensor(order))

    def forward(self, x: Tensor) -> Tensor:
        a, b = x[:, self.order].chunk(2, 1)
        return torch.cat([a + self.f(b), b], 1)


def test_the_order_in_a_buffer_is_the_one_that_is_there_now() -> None:
    x = randn(3, 8)
    net = agree(Ordered([7, 3, 1, 0, 5, 2, 4, 6]), x, couplings=1)
    undone(net, x)
    net.load_state_dict({**net.state_dict(), "order": torch.arange(8)})
    undone(net, x)


def test_the_order_in_a_parameter_of_whole_numbers_is_wiring_too() -> None:
    model = Ordered([7, 3, 1, 0, 5, 2, 4, 6])
    order = model.order
    del model.order
    model.register_parameter("order", nn.Parameter(order, requires_grad=False))
    x = randn(3, 8)
    net = agree(model, x, couplings=1)
    undone(net, x)


def test_an_order_that_lost_a_place_is_refused_by_name() -> None:
    x = randn(3, 8)
    net = rg.trace(Ordered([7, 3, 1, 0, 5, 2, 4, 6]), x)
    net.load_state_dict({**net.state_dict(), "order": torch.tensor([7, 3, 1, 0, 5, 2, 4, 4])})
    with pytest.raises(rg.GraphError, match="'order': an index holds a place more than once"):
        net.inverse(net(x))


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5, 6, 6], [0, 1, 2, 3, 4, 5, 6, 7, 0, 1]])
def test_an_index_that_repeats_or_forgets_is_a_boundary(order: list[int]) -> None:
    net = rg.trace(Indexed(order), randn(3, 8))
    assert [node.kind for node in net.graph.nodes if node.expression == "getitem(x)"] == ["boundary"]


class Indexed(nn.Module):
    def __init__(self, order: list[int]) -> None:
        super().__init__()
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        return x[:, self.order].sin()


LOSING: dict[str, Form] = {
    "one slice": lambda x: x[:, :4],
    "overlapping slices": lambda x: torch.cat([x[:, :5], x[:, 3:]], 1)[:, :4],
    "a sum": lambda x: x.sum(1, keepdim=True).expand(-1, 4),
    "a gap": lambda x: torch.cat([x[:, :2], x[:, 3:5]], 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSING)
@pytest.mark.parametrize("call", ["inverse", "with_log_det"])
def test_what_is_no_wiring_is_named_where_it_is_met(name: str, call: str) -> None:
    class Losing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = linear(4)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return LOSING[name](x) + self.f(y)

    x, y = randn(3, 8), randn(3, 4, seed=1)
    net = rg.trace(Losing(), x, y)
    with pytest.raises(rg.GraphError, match=r"node '\w+' \(.*test_rearrangements.py:\d+\) is a boundary"):
        net.inverse(net(x, y), y=y) if call == "inverse" else net.with_log_det(x, y)


def test_slices_run_at_other_sizes() -> None:
    net = rg.trace(Net(FORMS["checkerboard"][0]), randn(4, 1, 4, 4))
    x = randn(4, 1, 8, 8)
    assert net(x).shape == (32, 8)
    torch.testing.assert_close(
        torch.autograd.grad(net(x).square().sum(), list(net.parameters()))[0],
        torch.autograd.grad(net.__dict__["_model"](x).square().sum(), list(net.parameters()))[0],
    )


def test_slices_that_no_longer_cover_are_traced_again() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = linear(2)

        def forward(self, x: Tensor) -> Tensor:
            a, b = x[:, :2], x[:, 2:4]
            return torch.cat([a + self.f(b), b], 1)

    model = Two()
    net = rg.trace(model, randn(3, 4))
    for width in (5, 4):
        equal_runs(net, model, randn(3, width))


def test_a_stream_that_is_read_as_complex_comes_back() -> None:
    class Rotated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = linear(4)

        def forward(self, x: Tensor) -> Tensor:
            z = torch.view_as_complex(x.unflatten(1, (4, 2)))
            z = z + self.f(torch.ones(4, dtype=torch.double)).to(torch.complex128)
            return torch.view_as_real(z).flatten(1)

    x = randn(3, 8)
    net = agree(Rotated(), x, couplings=1)
    undone(net, x)


@pytest.mark.parametrize("minus", [False, True])
def test_sums_of_complex_streams_are_couplings(minus: bool) -> None:
    class Wave(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = nn.Linear(4, 4, dtype=torch.complex128)

        def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
            term = self.f(b)
            return (term - a if minus else a + term), b

    a, b = (torch.complex(randn(3, 4, seed=seed), randn(3, 4, seed=seed + 1)) for seed in (1, 3))
    net = agree(Wave(), a, b, couplings=1)
    back = net.inverse(*net(a, b))
    torch.testing.assert_close(back[0], a, rtol=1e-12, atol=1e-12)


def test_bits_read_as_another_type_are_no_reshape() -> None:
    class Bits(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.view(torch.int64)

    net = rg.trace(nn.Sequential(Bits()), randn(3, 4))
    with pytest.raises(rg.GraphError, match="boundary"):
        net.inverse(net(randn(3, 4)))


def test_a_join_with_a_parameter_is_a_boundary() -> None:
    class Prefixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.prefix = nn.Parameter(randn(1, 4))
            self.f = linear(4)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return torch.cat([self.prefix, a + self.f(b)])

    net = agree(Prefixed(), randn(3, 4), randn(3, 4, seed=1), couplings=1)
    net.plan = rg.plan(net.graph, "least")
    net(randn(3, 4), randn(3, 4, seed=1)).sum().backward()
