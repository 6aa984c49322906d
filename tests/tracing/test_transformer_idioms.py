"""What the code of today's transformers does in its forward traces, and does the same in the net."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from tracing.agreement import agree, linear, mlp, randn

import revgraph as rg


def test_halves_whose_middle_is_computed_each_time_stay_in_a_module_that_becomes_one_node() -> None:
    class Rotary(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            self.into, self.out = linear(seed=seed), linear(seed=seed + 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.into(x)
            low = x[..., : x.shape[-1] // 2]
            high = x[..., x.shape[-1] // 2 :]
            return self.out(torch.cat([-high, low], -1))

    class Layer(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            self.attend, self.mlp = Rotary(seed), mlp(seed=seed + 5)

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.attend(x)
            return x + self.mlp(x)

    net = agree(nn.Sequential(Layer(0), Layer(20)), randn(3, 4))
    assert {"0.attend", "0.mlp.0", "1.attend"} <= {node.module for node in net.graph.nodes}


class Config:
    def __init__(self) -> None:
        self.kind: str | None = None
        self.classes = 4


class Classifier(nn.Module):
    """Settles in its first forward with labels on what they are, as transformers' classifiers do."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.config = nn.Sequential(mlp(), mlp(seed=3)), Config()

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        x = self.body(x)
        if labels is None:
            return x
        if self.config.kind is None:
            self.config.kind = "classes" if labels.dtype == torch.long else "numbers"
        if self.config.kind == "classes":
            return nn.functional.cross_entropy(x, labels)
        return nn.functional.mse_loss(x, labels)


def test_what_the_first_forward_settles_the_net_settles_when_it_is_called() -> None:
    model, labels = Classifier(), torch.arange(3)
    net = agree(model, randn(3, 4), labels)
    assert model.config.kind == "classes"
    assert len(net._forms) == 1, "no call needed another trace"
    net(randn(3, 4))
    assert len(net._forms) == 2


def test_a_trace_and_calls_that_do_not_settle_leave_it_open() -> None:
    model = Classifier()
    net = rg.trace(model, randn(3, 4), torch.arange(3))
    assert model.config.kind is None
    net(randn(3, 4))
    assert model.config.kind is None


def test_other_inputs_at_first_settle_otherwise_as_in_the_model() -> None:
    model, numbers = Classifier(), randn(3, 4, seed=8)
    reference = copy.deepcopy(model)
    net = rg.trace(model, randn(3, 4), torch.arange(3))
    assert torch.equal(net(randn(3, 4), numbers), reference(randn(3, 4), numbers))
    assert model.config.kind == "numbers"


def test_what_is_settled_otherwise_later_is_followed() -> None:
    model = Classifier()
    net = rg.trace(model, randn(3, 4), torch.arange(3))
    net(randn(3, 4), torch.arange(3))
    model.config.kind = "numbers"
    assert torch.equal(net(randn(3, 4), randn(3, 4)), model(randn(3, 4), randn(3, 4)))


def test_a_first_forward_that_computes_something_else_is_refused_or_run_by_its_module() -> None:
    class Started(nn.Module):
        """Scales by the first input it sees."""

        def __init__(self) -> None:
            super().__init__()
            self.inner, self.scale, self.began = linear(), 1.0, None

        def forward(self, x: Tensor) -> Tensor:
            if self.began is None:
                self.began = True
                return 2 * self.inner(x)
            return self.inner(x)

    with pytest.raises(rg.TraceError, match=r"it changes model\.began, which it also reads"):
        rg.trace(Started(), randn(3, 4))
    agree(nn.Sequential(mlp(), Started()), randn(3, 4))


def test_sizes_that_a_module_returns_are_known_where_the_costs_are_found() -> None:
    class Patches(nn.Module):
        """The patches of an image, and how many there are each way."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = linear(1), linear(1, 4)

        def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
            size = x.shape[1], x.shape[2]
            return self.second(self.first(x.flatten(1).unsqueeze(-1))), size

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches, self.body = Patches(), mlp()

        def forward(self, x: Tensor) -> Tensor:
            x, (height, width) = self.patches(x)
            return self.body(x).transpose(1, 2).contiguous().view(-1, 4, height, width)

    net = agree(Net(), randn(2, 3, 5))
    assert all(node.cost.courses for node in net.graph.planned)
    assert net(randn(2, 5, 4)).shape == (2, 4, 5, 4)
