"""What is computed of parameters that were not read as attributes is refused, never frozen without a word."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import revgraph as rg


class Penalty(nn.Module):
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("scale", torch.ones(4))

    def tensors(self) -> list[Tensor]:
        return list(self.parameters())

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + sum(each.pow(2).sum() for each in self.tensors())


class OfBuffers(Penalty):
    def tensors(self) -> list[Tensor]:
        return list(self.buffers())


class OfAttributes(Penalty):
    def tensors(self) -> list[Tensor]:
        return [self.layer.weight, self.scale]


@pytest.mark.parametrize("kind", [Penalty, OfBuffers])
def test_a_forward_that_computes_of_parameters_as_they_are_is_refused(kind: type[Penalty]) -> None:
    with pytest.raises(rg.TraceError, match="read past their attributes"):
        rg.trace(kind(), torch.randn(2, 4))


@pytest.mark.parametrize("kind", [Penalty, OfBuffers])
def test_as_a_submodule_it_is_one_node(kind: type[Penalty]) -> None:
    model, x = nn.Sequential(kind(), nn.Linear(4, 4)), torch.randn(2, 4)
    net = rg.trace(model, x)
    with torch.no_grad():
        for tensor in (*model[0].parameters(), *model[0].buffers()):
            tensor.mul_(2)
    torch.testing.assert_close(net(x), model(x), rtol=0, atol=0)


def test_what_is_read_as_attributes_is_followed() -> None:
    model, x = OfAttributes(), torch.randn(2, 4)
    net = rg.trace(model, x)
    with torch.no_grad():
        model.layer.weight.mul_(2)
        model.scale.mul_(2)
    torch.testing.assert_close(net(x), model(x), rtol=0, atol=0)
