"""Shape arithmetic follows the input; a path chosen by a shape is held to the example's answer."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from tracing.agreement import Net, agree, equal_runs, linear, mlp, randn

import revgraph as rg


def unpacked(net: Any, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return net.f(x.view(b, -1)) * (h * w) / c


def unpacked_size(net: Any, x: Tensor) -> Tensor:
    b, c, h, w = x.size()
    return net.f(x.reshape(b, c * h * w))


def created(net: Any, x: Tensor) -> Tensor:
    zeros = torch.zeros(x.shape[0], 16, dtype=x.dtype, device=x.device)
    places = torch.arange(x.size(1), device=x.device)
    return net.f(x.flatten(1) + zeros + 1) + places.sum() + torch.ones(x.shape[0], 1, dtype=x.dtype)


def looped(net: Any, x: Tensor) -> Tensor:
    total = torch.zeros_like(x[:, 0])
    for channel in range(x.shape[1]):
        total = total + x[:, channel] * (channel + 1)
    return total


def questions(net: Any, x: Tensor) -> Tensor:
    assert isinstance(x, Tensor)
    assert torch.is_tensor(x)
    assert x.ndim == 4
    assert x.dim() == 4
    assert len(x.shape) == 4
    y = x.new_ones(x.size(0), 1, device=x.device)
    if x.dtype == torch.float64 and x.is_floating_point() and x.device.type == "cpu" and not x.is_cuda:
        y = y * 2
    return net.f(x.flatten(1)).to(x.dtype) * y + x.numel() + x.shape[-1] ** 2


def new_tensors(net: Any, x: Tensor) -> Tensor:
    return net.f(x.flatten(1)) + x.new_zeros(x.shape[0], 1) + x.new_ones(1) + x.new_tensor([1.0, 2, 3, 4])


def expanded(net: Any, x: Tensor) -> Tensor:
    token = net.token.expand(x.shape[0], -1, -1) if hasattr(net, "token") else x[:, :1].flatten(2)
    return torch.cat([token, x.flatten(2)], 1)


def assigned(net: Any, x: Tensor) -> Tensor:
    shape = list(x.shape)
    shape[0] = -1
    size = x.shape[:1] + torch.Size([16])
    return x.reshape(shape).reshape(size) * x.shape.numel()


def unbound(net: Any, x: Tensor) -> Tensor:
    return sum(part * (index + 1) for index, part in enumerate(x.unbind(1)))  # pyright: ignore


def iterated(net: Any, x: Tensor) -> Tensor:
    return torch.stack([row * 2 for row in x.transpose(0, 1)], 1)


def zipped(net: Any, x: Tensor) -> Tensor:
    parts = x.split([1, 3], dim=1)
    return torch.cat([part * (i + 1) for i, part in zip(range(2), parts, strict=True)], 1)


def einsummed(net: Any, x: Tensor) -> Tensor:
    b = x.shape[0]
    return torch.einsum("bchw,bdhw->bcd", x, x).reshape(b, -1) / x.shape[1] ** 0.5


def interpolated(net: Any, x: Tensor) -> Tensor:
    return nn.functional.interpolate(x, size=(x.shape[2] * 2, x.shape[3] * 2), mode="nearest")


def formatted(net: Any, x: Tensor) -> Tensor:
    name = f"shape {tuple(x.shape)[1:]} {x.shape[1]:d}"
    assert name
    return net.f(x.flatten(1))


def asserted(net: Any, x: Tensor) -> Tensor:
    assert x.shape[2] == x.shape[3] and x.shape[1] in (3, 4), "square images"
    return net.f(x.flatten(1))


FORMS = [
    unpacked, unpacked_size, created, looped, questions, new_tensors, expanded, assigned, unbound, iterated,
    zipped, einsummed, interpolated, formatted, asserted,
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("body", FORMS, ids=lambda body: body.__name__)
def test_other_batch_sizes_after_tracing_give_the_right_result(body: Any) -> None:
    model = Net(body, f=linear(16, 4))
    net = agree(model, randn(3, 4, 2, 2))
    for batch in (1, 2, 5):
        equal_runs(net, model, randn(batch, 4, 2, 2, seed=batch))


def test_other_batch_sizes_run_through_couplings_and_wiring() -> None:
    def body(net: Any, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        x1, x2 = x.view(b, c, h * w).permute(0, 2, 1).chunk(2, dim=2)
        x1 = x1 + net.f(x2)
        x2 = x2 - net.g(x1) * (1 / h)
        return torch.cat([x1, x2], dim=2).permute(0, 2, 1).reshape(b, c, h, w)

    model = Net(body, f=mlp(2), g=mlp(2, seed=3))
    net = agree(model, randn(3, 4, 2, 2), couplings=2)
    for shape in ((1, 4, 2, 2), (5, 4, 2, 2), (2, 4, 3, 5)):
        equal_runs(net, model, randn(*shape))


def test_inverse_runs_through_shape_arithmetic_of_the_traced_shape() -> None:
    def body(net: Any, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        x1, x2 = x.view(b, c, h * w).permute(0, 2, 1).chunk(2, dim=2)
        x1 = x1 + net.f(x2)
        return torch.cat([x1, x2], dim=2).permute(0, 2, 1).reshape(b, c, h, w)

    net = rg.trace(Net(body, f=mlp(2)), randn(3, 4, 2, 2))
    x = randn(3, 4, 2, 2, seed=4)
    with torch.no_grad():
        torch.testing.assert_close(net.inverse(net(x)), x, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    "body",
    [
        lambda net, x: x * 2 if x.shape[1] > 3 else x * 3,
        looped,
        lambda net, x: torch.stack([row * 2 for row in x]),
        lambda net, x: x * len(x),
        lambda net, x: x.sum(1) if x.ndim == 2 else x.sum((1, 2)),
    ],
    ids=["branch", "loop", "iteration", "length", "dimensions"],
)
def test_a_shape_that_leads_another_way_is_another_form_of_call(body: Any) -> None:
    model = Net(body)
    net = agree(model, randn(2, 4))
    for shape in ((7, 5), (2, 2), (4, 4, 2), (2, 4)):
        equal_runs(net, model, randn(*shape))


def test_a_shape_that_leads_another_way_in_the_middle_of_a_run_is_traced_when_it_comes() -> None:
    model = Net(lambda net, x: x * 2 if net.f(x).shape[0] > 3 else x * 3, f=linear())
    net = agree(model, randn(2, 4))
    for size in (5, 2, 6, 3, 5):
        equal_runs(net, model, randn(size, 4))


def test_what_depends_on_values_and_leads_another_way_is_refused() -> None:
    """A trace of that call would say nothing of the next one."""

    class Chosen(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[x[:, 0] > 0] if x.sum() < 1e9 else x

    model = Net(lambda net, x: sum(row for row in net.choose(x)), choose=Chosen())
    x = torch.ones(3, 4)
    net = rg.trace(model, x)
    torch.testing.assert_close(net(x), model(x))
    with pytest.raises(rg.TraceError, match="where the numbers in a tensor decide, put the code"):
        net(x * torch.tensor([1.0, -1, 1])[:, None])


def test_branch_on_a_dtype_is_held_to_the_example() -> None:
    """The path was chosen by a dtype; another dtype must take its own path or be refused."""
    model = Net(lambda net, x: x * 2 if x.dtype == torch.float64 else x * 3)
    net = agree(model, randn(3, 4))
    x = randn(3, 4).float()
    try:
        found = net(x)
    except rg.TraceError:
        return
    torch.testing.assert_close(found, model(x), rtol=0, atol=0)


def test_branch_on_is_none_of_an_optional_input() -> None:
    def body(net: Any, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return x * 2 if mask is None else x * mask

    agree(Net(body), randn(3, 4))
    net = agree(Net(body), randn(3, 4), mask=randn(3, 4, seed=2))
    equal_runs(net, Net(body), randn(3, 4))


def test_number_argument_may_change_after_tracing() -> None:
    model = Net(lambda net, x, scale: x * scale + net.f(x), f=linear())
    net = agree(model, randn(3, 4), 2.5)
    equal_runs(net, model, randn(3, 4), 0.5)
    equal_runs(net, model, randn(3, 4), 2)


NUMBERS: dict[str, Any] = {
    "range": lambda net, x, step: [x := torch.sin(x) for _ in range(step + 1)][-1],
    "branch": lambda net, x, step: x * 2 if step > 2 else x,
    "index": lambda net, x, step: x * [5.0, 6.0, 7.0, 8.0][step],
    "dictionary": lambda net, x, step: x * {0: 5.0, 1: 6.0}.get(step, 7.0),
    "set": lambda net, x, step: x * (5.0 if step in {1, 2} else 6.0),
    "math": lambda net, x, step: x * math.cos(step) + round(step * 0.3, 1),
    "text": lambda net, x, step: x * len(f"{step * 9}"),
    "extremes": lambda net, x, step: x * max(step, 1) + min(step, 2),
    "kind": lambda net, x, step: x * (2 if isinstance(step, int) else 3),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", NUMBERS)
def test_a_number_argument_that_leads_another_way_is_another_form_of_call(case: str) -> None:
    model, x = Net(NUMBERS[case]), randn(3, 4)
    net = agree(model, x, 1)
    for step in (0, 1, 2, 3, 1, *([2.5] if case in ("branch", "kind", "math") else [])):
        torch.testing.assert_close(net(x, step), model(x, step), rtol=0, atol=0)


def test_a_number_argument_that_is_computed_with_needs_no_other_trace() -> None:
    model, x = (
        Net(lambda net, x, step, heat=1.0: net.f(x) * step / heat + (step - 1) ** 2, f=linear()),
        randn(3, 4),
    )
    net = rg.trace(model, x, 1, heat=0.7)
    for step in range(40):
        torch.testing.assert_close(net(x, step, heat=0.5 + step), model(x, step, heat=0.5 + step))
    assert len(net._forms) == 1


@pytest.mark.slow
def test_a_number_argument_that_is_traced_anew_each_time_is_told_once_and_does_not_pile_up() -> None:
    model, x = Net(lambda net, x, step: x * int(step)), randn(3, 4)
    net = rg.trace(model, x, 0)
    with pytest.warns(
        rg.TraceWarning, match=r"test_shapes.py:\d+ has had another value.*torch.tensor"
    ) as told:
        for step in range(50):
            torch.testing.assert_close(net(x, step), model(x, step), rtol=0, atol=0)
    assert len(told) == 1 and told[0].filename == __file__
    assert len(net._forms) == 32


@pytest.mark.slow
def test_a_setting_that_is_another_one_in_each_call_is_told_by_its_name() -> None:
    model, x = Net(lambda net, x, names: x * len(names[0])), randn(3, 4)
    net = rg.trace(model, x, ["a"])
    with pytest.warns(rg.TraceWarning, match=r"the argument 'args'\[1\]\[0\] has had another value"):
        for count in range(2, 12):
            net(x, ["a" * count])


def test_other_flag_is_traced_when_it_comes() -> None:
    model = Net(lambda net, x, double=False: x * 2 if double else x * 3)
    net = agree(model, randn(3, 4), double=True)
    equal_runs(net, model, randn(3, 4), double=False)
    equal_runs(net, model, randn(3, 4))


def test_other_string_is_traced_when_it_comes() -> None:
    model = Net(lambda net, x, mode: {"sin": torch.sin, "cos": torch.cos}[mode](x))
    net = agree(model, randn(3, 4), "sin")
    equal_runs(net, model, randn(3, 4), "cos")


def test_default_arguments_keep_their_values() -> None:
    class Defaults(nn.Module):
        def forward(self, x: Tensor, scale: float = 2.0, mode: str = "a") -> Tensor:
            return x * scale if mode == "a" else x

    net = agree(Defaults(), randn(3, 4))
    equal_runs(net, Defaults(), randn(3, 4), 3.0)


def test_arguments_by_position_or_name_are_the_same() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x - y * 2

    net = agree(Two(), randn(3, 4), randn(3, 4, seed=2))
    equal_runs(net, Two(), y=randn(3, 4), x=randn(3, 4, seed=4))
    net = agree(Two(), y=randn(3, 4), x=randn(3, 4, seed=2))
    equal_runs(net, Two(), randn(3, 4), randn(3, 4, seed=4))


def test_missing_and_superfluous_arguments_are_clear_errors() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x - y

    with pytest.raises(rg.TraceError, match="'y'"):
        rg.trace(Two(), randn(3, 4))
    net = rg.trace(Two(), randn(3, 4), randn(3, 4))
    for args, kwargs in (
        ((randn(3, 4),), {}),
        ((randn(3, 4),) * 3, {}),
        ((randn(3, 4),), {"z": randn(3, 4)}),
    ):
        with pytest.raises(rg.TraceError):
            net(*args, **kwargs)
    with pytest.raises(rg.TraceError, match="fails on the example input"):
        net(randn(3, 4), "text")


def test_tensors_in_nested_arguments() -> None:
    class Nested(nn.Module):
        def forward(self, batch: Any, *rest: Any, flags: Any = None) -> Any:
            return batch["x"] * batch["more"][0] + rest[0][1], flags["scale"] * batch["x"]

    net = agree(
        Nested(),
        {"x": randn(3, 4), "more": [randn(3, 4, seed=2), None]},
        (None, randn(3, 4, seed=3)),
        flags={"scale": randn(3, 1, seed=4), "name": "a"},
    )
    other = {"x": randn(3, 4), "more": [randn(3, 4)]}, (None, randn(3, 4))
    equal_runs(net, Nested(), *other, flags={"scale": 1.0, "name": "b"})


def test_same_tensor_given_twice() -> None:
    x = randn(3, 4)
    agree(Net(lambda net, a, b: (a + net.f(b), b * 2), f=mlp()), x, x)


def test_wrong_shape_for_the_model_is_the_models_own_error() -> None:
    net = rg.trace(Net(lambda net, x: net.f(x), f=linear()), randn(3, 4))
    with pytest.raises(RuntimeError, match="shape"):
        net(randn(3, 5))


WIRINGS: dict[str, Any] = {
    "chunk": lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
    "chunk uneven": lambda x: torch.cat(x.chunk(3, 1), 1),
    "split": lambda x: torch.cat(torch.split(x, [1, 3], dim=1)[::-1], dim=1),
    "split size": lambda x: torch.cat(x.split(2, dim=-1), -1),
    "tensor_split": lambda x: torch.cat(torch.tensor_split(x, 3, dim=1), 1),
    "stack": lambda x: torch.stack([x, x * 2], 1).flatten(1, 2),
    "unbind": lambda x: torch.stack(x.unbind(1), 1),
    "view": lambda x: x.view(x.size(0), 2, 2, 4).view(x.size(0), 4, 4),
    "permute": lambda x: x.permute(0, 2, 1),
    "transpose": lambda x: x.transpose(-1, 1).transpose(2, 1),
    "swapaxes": lambda x: torch.swapaxes(x, 1, 2),
    "mT": lambda x: x.mT,
    "T": lambda x: x[0].T,
    "flatten": lambda x: x.flatten(1),
    "unflatten": lambda x: x.unflatten(1, (2, 2)),
    "squeeze": lambda x: x.unsqueeze(0).squeeze(0).unsqueeze(-1),
    "pixel_unshuffle": lambda x: nn.functional.pixel_unshuffle(x.unsqueeze(1), 2),
    "pixel_shuffle": lambda x: torch.pixel_shuffle(x.unsqueeze(-1), 2),
    "contiguous": lambda x: x.transpose(1, 2).contiguous(),
    "narrow": lambda x: x.narrow(1, 1, 2),
    "slice": lambda x: x[:, 1:3, ::2],
    "ellipsis": lambda x: x[..., 0],
    "none index": lambda x: x[:, None, :, 1],
    "index tensor": lambda x: x[:, torch.tensor([0, 2])],
    "roll": lambda x: torch.roll(x, 1, 1).flip(2),
    "repeat": lambda x: x.repeat(1, 2, 1),
    "rearranged twice": lambda x: x.reshape(-1).reshape(x.shape),
    "positional dims": lambda x: torch.permute(x, (2, 0, 1)),
    "keyword dims": lambda x: torch.permute(x, dims=(2, 1, 0)).transpose(dim0=0, dim1=1),
    "keyword transpose swapped": lambda x: torch.transpose(x, dim1=0, dim0=2),
    "cat of itself": lambda x: torch.cat([x, x], 1),
    "cat of one": lambda x: torch.cat([x], 1),
    "cat keyword": lambda x: torch.cat(tensors=(x, x * 2), dim=-1),
    "hstack": lambda x: torch.hstack([x, x * 2]),
    "to": lambda x: x.to(torch.float32).to(x),
    "detach": lambda x: x.detach() * 2 + x,
    "type_as": lambda x: x.float().type_as(x),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("form", WIRINGS)
def test_rearrangement_behind_and_before_couplings_is_right(form: str) -> None:
    def body(net: Any, x1: Tensor, x2: Tensor) -> Any:
        x1 = x1 + net.f(x2)
        x2 = x2 + net.f(x1)
        return WIRINGS[form](x1), x2, WIRINGS[form](x2) * 2

    model = Net(body, f=mlp())
    net = agree(model, randn(3, 4, 4, seed=1), randn(3, 4, 4, seed=2), couplings=2)
    equal_runs(net, model, randn(5, 4, 4, seed=1), randn(5, 4, 4, seed=2))


@pytest.mark.slow
@pytest.mark.parametrize("form", WIRINGS)
def test_rearrangement_between_couplings_is_undone_rightly(form: str) -> None:
    def body(net: Any, x1: Tensor, x2: Tensor) -> Any:
        x1 = x1 + net.f(x2)
        y1, y2 = WIRINGS[form](x1), WIRINGS[form](x2)
        y1 = y1 + torch.tanh(y2) * 0.5
        y2 = y2 - torch.sin(y1) * 0.5
        return y1, y2

    model = Net(body, f=mlp())
    net = agree(model, randn(3, 4, 4, seed=1), randn(3, 4, 4, seed=2))
    equal_runs(net, model, randn(5, 4, 4, seed=1), randn(5, 4, 4, seed=2))


@pytest.mark.slow
@pytest.mark.parametrize("form", WIRINGS)
def test_inverse_through_a_rearrangement_is_right_or_refused(form: str) -> None:
    model = Net(lambda net, x: WIRINGS[form](x))
    x = randn(3, 4, 4)
    net = rg.trace(model, x)
    for other in (x, randn(5, 4, 4, seed=9)):
        with torch.no_grad():
            try:
                back = net.inverse(net(other))
            except rg.GraphError as error:
                assert (
                    "'x'" in str(error)
                    or "boundary" in str(error)
                    or "cannot be undone at this batch" in str(error)
                )
            else:
                torch.testing.assert_close(back, other, rtol=0, atol=0)


def test_code_that_loops_over_what_a_layer_gives_is_traced_when_other_sizes_come() -> None:
    def by_steps(net: Any, x: Tensor) -> Tensor:
        states, _ = net.f(x)
        total = states[:, 0]
        for step in range(states.shape[1]):
            total = torch.tanh(states[:, step] + total)
        return total

    model = Net(by_steps, f=nn.GRU(4, 4, batch_first=True, dtype=torch.double))
    net = rg.trace(model, randn(3, 3, 4))
    for length in (2, 3, 5):
        equal_runs(net, model, randn(2, length, 4))


def test_an_error_at_other_sizes_says_that_the_trace_was_at_these() -> None:
    net = rg.trace(Net(lambda net, x: net.f(x) + x.new_ones(3, 4), f=linear()), randn(3, 4))
    with pytest.raises(RuntimeError) as error:
        net(randn(2, 4))
    assert any("is of shape [2, 4], and was of [3, 4] in the trace" in each for each in notes(error.value))


def notes(error: BaseException) -> list[str]:
    return getattr(error, "__notes__", [])


@pytest.mark.parametrize(
    "pieces", [lambda x: x.unbind(1), lambda x: torch.unbind(x, dim=1), lambda x: x.split(1, 1)]
)
def test_an_input_that_falls_into_other_pieces_is_traced_when_it_comes(pieces: Any) -> None:
    def by_steps(net: Any, x: Tensor) -> Tensor:
        total = torch.zeros_like(x[:, 0])
        for each in pieces(x):
            total = torch.tanh(net.f(each.reshape(-1, 4)) + total)
        return total

    model = Net(by_steps, f=linear())
    net = rg.trace(model, randn(3, 3, 4))
    for length in (3, 6, 2, 3):
        equal_runs(net, model, randn(3, length, 4, seed=length))


PIECES = {
    "unbind": lambda z: torch.stack(z.unbind(1)).sum(0),
    "split": lambda z: sum(part.sum(1) for part in z.split(2, 1)),
    "chunk": lambda z: sum(part.sum(1) * place for place, part in enumerate(z.chunk(3, 1))),
    "unfold": lambda z: sum(z.unfold(1, 2, 1).sum(-1).unbind(1)),
    "length": lambda z: z.sum(1) * len(z.unbind(1)),
    "zipped": lambda z: sum(one * two for one, two in zip(z.unbind(1), reversed(z.unbind(1)), strict=True)),
    "starred": lambda z: (lambda first, *others: first * 2 + sum(others))(*z.unbind(1)),
    "last": lambda z: z.unbind(1)[-1],
    "first": lambda z: z.unbind(1)[0],
    "slice": lambda z: sum(z.unbind(1)[1:]),
    "by place": lambda z: z.unbind(1)[0] + z.unbind(1)[1] + z.unbind(1)[2] if z.shape[1] > 2 else z.sum(1),
}


@pytest.mark.parametrize("pieces", PIECES)
def test_a_computed_tensor_that_falls_into_other_pieces_is_traced_when_it_comes(pieces: str) -> None:
    """Buffers and random numbers end as the model's, whose forward ran once."""

    def body(net: Any, x: Tensor) -> Any:
        return net.drop(PIECES[pieces](net.norm(net.f(x).transpose(1, 2)).transpose(1, 2)))

    model = Net(body, f=linear(), norm=nn.BatchNorm1d(4, dtype=torch.double), drop=nn.Dropout(0.5))
    plain = copy.deepcopy(model)
    net = rg.trace(model, randn(3, 3, 4))
    for length in (3, 6, 2, 3, 6):
        x = randn(3, length, 4, seed=length)
        runs = []
        for run in (net, plain):
            torch.manual_seed(length)
            given = x.clone().requires_grad_()
            runs.append((y := run(given), *torch.autograd.grad(y.square().sum(), [given, *run.parameters()])))
        torch.testing.assert_close(*runs, rtol=0, atol=0)
        torch.testing.assert_close([*net.buffers()], [*plain.buffers()], rtol=0, atol=0)


def test_a_module_that_returns_other_pieces_is_traced_when_it_comes() -> None:
    class Pieces(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return x.unbind(1) if x.sum() < 1e9 else (x,)

    model = Net(lambda net, x: sum(net.pieces(net.f(x))), f=linear(), pieces=Pieces())
    net = rg.trace(model, randn(3, 3, 4))
    for length in (3, 6, 2, 3):
        equal_runs(net, model, randn(3, length, 4, seed=length))


def test_the_inverse_of_pieces_is_of_as_many() -> None:
    """Of three pieces that are read by their places, four make no whole."""

    def body(net: Any, x: Tensor) -> Tensor:
        a, b, c = x.unbind(1)[0], x.unbind(1)[1], x.unbind(1)[2]
        return torch.stack([a, b + net.f(a), c], 1)

    model = Net(body, f=linear())
    net = rg.trace(model, randn(2, 3, 4))
    for length in (3, 4):
        equal_runs(net, model, randn(2, length, 4))
