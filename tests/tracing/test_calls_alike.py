"""Calls of one function on tensors of one form are evaluated once in a trace, where results are alike."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from tracing.agreement import Net, agree, linear, randn

import revgraph as rg


def conjugated(net: Any, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """A plain tensor is its own resolved conjugate; that of a conjugate view is a new one."""
    z = torch.complex(x, y)
    new, same = torch.resolve_conj(z.conj()), torch.resolve_conj(z)
    edited = same.mul(1).resolve_conj()
    return (z * new).real, (same + edited).imag + net.f(x)


def negated(net: Any, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    z = torch.complex(x, y)
    new, same = torch.resolve_neg(z.conj().imag), torch.resolve_neg(z.imag)
    return z.real * new, same + net.f(x)


def asking_for_gradients(net: Any, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    one, two = (torch.zeros_like(x, requires_grad=True) for _ in range(2))
    return x * (2 if one.requires_grad else 3), y * (2 if two.requires_grad else 3) + net.f(x)


def of_another_default(net: Any, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    here = torch.arange(x.shape[1])
    with torch.device("meta"):
        there = torch.arange(x.shape[1])
    return x + here, y * (2 if there.device.type == "meta" else 3) + net.f(x)


def many_of_a_kind(net: Any, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    for _ in range(3):
        x = x + torch.tanh(y)
        value, place = torch.max(x, 1)
        y = y + value[:, None] * place[:, None] + torch.cat([x, y], 1)[:, :4] + net.f(x)
        x, y = y.t().contiguous().t(), x.clone().add_(1)
    return x, y


@pytest.mark.parametrize("body", [conjugated, negated, many_of_a_kind])
def test_a_net_agrees_with_its_model(body: Any) -> None:
    agree(Net(body, f=linear()), randn(3, 4), randn(3, 4, seed=1))


def test_results_that_ask_for_gradients_are_told_from_others() -> None:
    x, y, model = randn(3, 4), randn(3, 4, seed=1), Net(asking_for_gradients, f=linear())
    for found, expected in zip(rg.trace(model, x, y)(x, y), model(x, y), strict=True):
        assert torch.equal(found, expected)


def test_another_default_device_inside_the_forward_is_refused() -> None:
    x, y = randn(3, 4), randn(3, 4, seed=1)
    with pytest.raises(rg.TraceError, match="changes the default device to meta; give the device"):
        rg.trace(Net(of_another_default, f=linear()), x, y)


def test_the_default_device_may_be_said_again_inside_the_forward() -> None:
    def body(net: Any, x: Tensor) -> Tensor:
        with torch.device("cpu"):
            return net.f(x) + torch.arange(x.shape[1])

    agree(Net(body, f=linear()), randn(3, 4))


def test_an_edit_of_a_result_that_is_its_input_is_seen() -> None:
    class Edits(nn.Module):
        def forward(self, z: Tensor) -> tuple[Tensor, ...]:
            z = z * 1
            new, same = torch.resolve_conj(z.conj()), torch.resolve_conj(z)
            same.add_(1)
            return z * new, same

    z = torch.complex(randn(3, 4), randn(3, 4, seed=1))
    for found, expected in zip(rg.trace(Edits(), z)(z), Edits()(z), strict=True):
        assert torch.equal(found, expected)


def test_another_default_dtype_inside_the_forward_is_refused() -> None:
    class Changes(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            whole = (x > 0).int()
            half = whole / 2
            torch.set_default_dtype(torch.float64)
            try:
                return half + x, whole / 2
            finally:
                torch.set_default_dtype(torch.float32)

    with pytest.raises(rg.TraceError, match="default dtype is changed"):
        rg.trace(Changes(), torch.randn(3, 4))


def test_a_tensor_that_becomes_one_of_a_class_is_refused() -> None:
    class Marked(torch.Tensor):
        pass

    class Marks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = torch.tanh(x.as_subclass(Marked))
            return (y * (5 if isinstance(y, Marked) else 1)).as_subclass(Tensor)

    with pytest.raises(rg.TraceError, match="makes a tensor a Marked"):
        rg.trace(Marks(), randn(3, 4))
    agree(nn.Sequential(linear(), Marks(), linear()), randn(3, 4))
