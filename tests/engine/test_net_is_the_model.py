"""The net is the model: attributes, methods, indexing, length, signature and mode, copied and pickled too."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import revgraph as rg


class Model(nn.Sequential):
    config: ClassVar = {"width": 4}

    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
        self.strength = 1.0

    def forward(self, x: Tensor, labels: Tensor | None = None, *, scale: float = 1.0) -> Any:
        y = super().forward(x) * self.strength * scale
        return y if labels is None else {"loss": ((y - labels) ** 2).mean(), "y": y}

    def features(self, x: Tensor) -> Tensor:
        return self[0](x)

    @property
    def width(self) -> int:
        return self[0].in_features

    def extra_repr(self) -> str:
        return "its own"

    def train(self, mode: bool = True) -> Model:
        super().train(mode)
        self[1].eval()
        return self

    def gradient_checkpointing_enable(self) -> None:
        raise AssertionError("not called")


def forms() -> list[rg.ReversibleModule]:
    net = rg.trace(Model(), torch.randn(2, 4))
    return [net, copy.deepcopy(net), pickle.loads(pickle.dumps(net))]


@pytest.mark.parametrize("which", range(3))
def test_attributes_methods_and_items_are_the_models(which: int) -> None:
    net, x = forms()[which], torch.randn(2, 4)
    model: Any = net._model
    assert net.config == {"width": 4}
    assert net.width == 4
    assert len(net) == 3
    assert net[0] is model[0]
    assert list(net) == list(model)
    assert torch.equal(net.features(x), model.features(x))
    assert net.extra_repr() == "its own"
    assert {"features", "strength", "plan"} <= set(dir(net))
    assert isinstance(net, rg.ReversibleModule)
    with pytest.raises(AttributeError):
        _ = net.nothing


@pytest.mark.parametrize("which", range(3))
def test_signature_is_the_models(which: int) -> None:
    net = forms()[which]
    assert inspect.signature(net.forward) == inspect.signature(Model().forward)
    assert inspect.signature(type(net).forward) == inspect.signature(Model.forward)


def test_what_is_assigned_to_the_net_is_the_models() -> None:
    net, x = forms()[0], torch.randn(2, 4)
    model: Any = net._model
    before = net(x)
    net.strength = 2.0
    assert model.strength == 2.0
    torch.testing.assert_close(net(x), before * 2)
    net[2] = nn.Linear(4, 2)
    assert net(x).shape == (2, 2)
    net.extra = nn.Linear(3, 3)
    assert model.extra is net.extra
    assert "extra.weight" in net.state_dict()
    del net.extra
    assert not hasattr(model, "extra")


def test_a_forward_that_is_wrapped_is_called() -> None:
    net, x = forms()[0], torch.randn(2, 4)
    inner = net.forward
    net.forward = lambda *args, **kwargs: inner(*args, **kwargs) + 1
    torch.testing.assert_close(net(x), net._model(x) + 1)


def test_modes_are_the_models_own() -> None:
    net = forms()[0]
    net.eval()
    assert not net.training
    net.train()
    assert net.training
    assert net[0].training
    assert not net[1].training  # as its own `train` says
    net._model.eval()
    assert not net.training


def test_calls_of_other_forms_are_traced_when_they_come() -> None:
    for net in forms():
        x, labels = torch.randn(2, 4), torch.randn(2, 4)
        model: Any = copy.deepcopy(net._model)
        nodes = net.graph
        for _ in range(2):
            for kwargs in ({}, {"labels": labels}, {"scale": 2.0}, {"labels": labels, "scale": 0.5}):
                ours, theirs = net(x, **kwargs), model(x, **kwargs)
                losses = [each["loss"] if "labels" in kwargs else each.sum() for each in (ours, theirs)]
                found = torch.autograd.grad(losses[0], list(net.parameters()))
                wanted = torch.autograd.grad(losses[1], list(model.parameters()))
                torch.testing.assert_close((losses[0], found), (losses[1], wanted))
        assert net.graph == nodes
        assert len(net._forms) == 4


def test_gradient_checkpointing_explains_itself() -> None:
    with pytest.warns(UserWarning, match=r"takes the place of gradient checkpointing.*net\.plan"):
        forms()[0].gradient_checkpointing_enable()
