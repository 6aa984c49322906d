"""The net is the model: attributes, methods, indexing, length, signature and mode, copied and pickled too."""

from __future__ import annotations

import copy
import inspect
import pickle
from abc import ABC, abstractmethod
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

    def set_grad_checkpointing(self, enable: bool = True) -> None:
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.parametrize("which", range(3))
def test_net_is_of_the_models_class(which: int) -> None:
    net = forms()[which]
    assert isinstance(net, (Model, nn.Sequential))
    assert type(net).__name__ == net._get_name() == "Model"
    assert repr(net).startswith("reversible Model(")
    assert type(net).config is Model.config
    assert type(net).features is Model.features


class Registered(ABC, nn.Module):
    """A class that has all that inheriting from it could spoil."""

    known: ClassVar[list[str]] = []
    scale = 1.0
    _version = 7

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Registered.known.append(cls.__name__)

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor: ...


class Odd(Registered):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)
        self.scale = 2.0  # the class has another one
        self.calls = 0

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().__call__(x) + 1

    def __getattr__(self, name: str) -> Any:
        return "anything" if name == "anything" else super().__getattr__(name)

    def __deepcopy__(self, memo: Any) -> Odd:
        other = Odd()
        other.load_state_dict(self.state_dict())
        other.scale = self.scale
        return other

    def __matmul__(self, other: int) -> int:
        return other + 1

    @property
    def doubled(self) -> float:
        return self.scale * 2

    @doubled.setter
    def doubled(self, value: float) -> None:
        self.scale = value / 2

    @classmethod
    def made(cls) -> Odd:
        return cls()

    @staticmethod
    def one() -> int:
        return 1

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * self.scale


def test_what_a_class_has_is_not_lost_and_does_not_run_on_the_net() -> None:
    known, model, x = [*Registered.known], Odd(), torch.randn(2, 3)
    net: Any = rg.trace(model, x)
    assert Registered.known == known
    assert isinstance(net, Odd)
    torch.testing.assert_close(net(x), model(x))
    assert (model.calls, net.calls) == (2, 2)
    assert (net.scale, net.doubled, net.one(), net @ 4) == (2.0, 4.0, 1, 5)
    net.doubled = 6.0
    assert model.scale == net.scale == 3.0
    torch.testing.assert_close(net(x), model(x))
    assert type(net.made()) is type(type(net).made()) is Odd
    assert net.anything == "anything"
    assert net.state_dict()._metadata[""]["version"] == 7
    other = copy.deepcopy(net)
    assert isinstance(other, rg.ReversibleModule)
    assert other.inner is other._model.inner
    assert other.inner is not net.inner
    torch.testing.assert_close(other(x), model(x))


def test_a_model_that_refers_to_its_net_is_copied_with_it() -> None:
    net = forms()[0]
    model: Any = net._model
    model.around = [net]
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        inner = other.around[0]
        assert inner._model is other
        assert inner[0] is other[0]
        assert len(list(inner.parameters())) == 4


def test_classes_that_cannot_be_inherited_from_have_nets_all_the_same() -> None:
    class Registry(type):
        known: ClassVar[list[str]] = []

        def __init__(cls, name: str, *rest: Any) -> None:
            super().__init__(name, *rest)
            Registry.known.append(name)

    class Made(nn.Linear, metaclass=Registry):
        pass

    x = torch.randn(2, 3)
    for model in (Made(3, 3), rg.Additive(nn.Linear(3, 3))):
        inputs = (x, x) if isinstance(model, rg.Additive) else (x,)
        net = rg.trace(model, *inputs)
        assert not isinstance(net, type(model))
        torch.testing.assert_close(net(*inputs), model(*inputs))
    assert Registry.known == ["Made"]


@pytest.mark.parametrize("name", ["gradient_checkpointing_enable", "set_grad_checkpointing"])
def test_gradient_checkpointing_explains_itself(name: str) -> None:
    with pytest.warns(UserWarning, match=r"takes the place of gradient checkpointing.*net\.plan"):
        getattr(forms()[0], name)()
    forms()[0].set_grad_checkpointing(enable=False)


@pytest.mark.parametrize("through", ["net", "model"])
def test_layers_that_are_removed_or_inserted_are_the_nets(through: str) -> None:
    """Torch's containers put another table in the place of their own when they renumber their children."""
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
    net: Any = rg.trace(model, torch.ones(2, 4))
    changed: Any = net if through == "net" else model
    del changed[0]
    changed.append(nn.Linear(4, 4))
    changed.insert(1, nn.Tanh())
    assert [*net.state_dict()] == [*model.state_dict()]
    assert [*map(id, net.parameters())] == [*map(id, model.parameters())]
    assert len(net) == len(net._modules) == 4
    assert getattr(net, "1") is model[1]
    net(torch.ones(2, 4)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    other = copy.deepcopy(net)
    assert [*other.state_dict()] == [*net.state_dict()]
    assert torch.equal(other(torch.ones(2, 4)), model(torch.ones(2, 4)))
