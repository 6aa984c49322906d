"""The trace leaves model, tensors and random state as they were, and takes seconds."""

from __future__ import annotations

import contextlib
import copy
import gc
import pickle
import time
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from tracing.agreement import equal_runs, linear, marks, mlp, randn, same_marks

import revgraph as rg


class Net(nn.Module):
    """Batch normalization, dropout, attributes and frozen parts."""

    def __init__(self, depth: int = 1) -> None:
        super().__init__()
        self.f = nn.ModuleList(
            nn.Sequential(linear(seed=i), nn.BatchNorm1d(4).double(), nn.Dropout(0.3)) for i in range(depth)
        )
        self.g = nn.ModuleList(mlp(seed=i + 50) for i in range(depth))
        self.settings = {"a": [1, 2]}
        self.calls = 0

    def forward(self, x1: Tensor, x2: Tensor) -> Any:
        for f, g in zip(self.f, self.g, strict=True):
            x1 = x1 + f(x2)
            x2 = x2 + g(x1)
        return x1, x2


class Failing(Net):
    """Fails after it has left marks everywhere."""

    def forward(self, x1: Tensor, x2: Tensor) -> Any:
        self.calls += 1
        self.extra = x1
        self.settings = {"b": 1}
        self.f[0][0].scale = x1 * 2
        out = super().forward(x1, x2)
        torch.randn(3)
        if out[0].sum() > 0:
            raise ValueError("no")
        raise ValueError("never")


def pair() -> tuple[Tensor, Tensor]:
    return randn(3, 4, seed=1), randn(3, 4, seed=2)


def prepared(kind: type[Net]) -> Net:
    model = kind(2)
    model.f[0][0].weight.requires_grad_(False)
    model.f[1].eval()
    sum(each.sum() for each in Net.forward(model, *pair())).backward()
    return model


@pytest.mark.parametrize("real", [False, True])
def test_trace_leaves_the_model_as_it_was(real: bool) -> None:
    model = prepared(Net)
    if real:
        model.f.append(nn.Sequential(Picks()))
        model.g.append(Picks())
    before, random = marks(model), torch.get_rng_state()
    gradients = {
        name: None if each.grad is None else each.grad.clone() for name, each in model.named_parameters()
    }
    rg.trace(model, *pair())
    assert torch.equal(random, torch.get_rng_state())
    same_marks(before, marks(model))
    for name, each in model.named_parameters():
        assert (each.grad is None) == (gradients[name] is None)
        if each.grad is not None:
            assert torch.equal(each.grad, gradients[name])


class Picks(nn.Module):
    """A shape that depends on values: the trace needs a real run."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x[x > 0].sum()


def test_failing_trace_leaves_the_model_as_it_was() -> None:
    model = prepared(Failing)
    before, random = marks(model), torch.get_rng_state()
    with pytest.raises(rg.TraceError):
        rg.trace(model, *pair())
    assert torch.equal(random, torch.get_rng_state())
    same_marks(before, marks(model))


def test_interrupted_trace_leaves_the_model_as_it_was() -> None:
    class Interrupted(Net):
        def forward(self, x1: Tensor, x2: Tensor) -> Any:
            super().forward(x1, x2)
            raise KeyboardInterrupt

    model = prepared(Interrupted)
    before, random = marks(model), torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        rg.trace(model, *pair())
    assert torch.equal(random, torch.get_rng_state())
    same_marks(before, marks(model))


def test_mutable_attributes_changed_inside_forward_are_as_before() -> None:
    class Logging(Net):
        def forward(self, x1: Tensor, x2: Tensor) -> Any:
            self.settings["a"].append(3)
            self.settings["shape"] = x1.shape
            return super().forward(x1, x2)

    model = Logging()
    rg.trace(model, *pair())
    assert model.settings == {"a": [1, 2]}


@pytest.mark.parametrize("training", [True, False])
def test_training_flags_are_as_before(training: bool) -> None:
    model = prepared(Net).train(training)
    net = rg.trace(model, *pair())
    assert net.training is training
    assert all(module.training is training for module in model.modules())


def test_global_modes_are_as_before() -> None:
    before = (torch.is_grad_enabled(), torch.get_default_dtype(), torch.is_autocast_enabled("cpu"))
    for model in (Net(), Failing()):
        with contextlib.suppress(rg.TraceError):
            rg.trace(model, *pair())
        assert before == (
            torch.is_grad_enabled(),
            torch.get_default_dtype(),
            torch.is_autocast_enabled("cpu"),
        )
        assert type(torch.ones(1)) is Tensor


def test_python_and_numpy_random_states_are_as_before() -> None:
    import random

    import numpy as np

    class Draws(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            random.random()
            np.random.rand()
            return x * 2

    python, numpy = random.getstate(), np.random.get_state()[1].copy()
    rg.trace(nn.Sequential(Draws(), linear()), randn(3, 4))
    assert random.getstate() == python
    assert (np.random.get_state()[1] == numpy).all()


def test_trace_does_not_hold_on_to_the_example() -> None:
    x1, x2 = pair()
    watched = [weakref.ref(x1), weakref.ref(x2)]
    net = rg.trace(Net(), x1, x2)
    del x1, x2
    gc.collect()
    assert [ref() for ref in watched] == [None, None]
    assert net is not None


def test_trace_does_not_hold_on_to_the_example_where_a_real_run_was_needed() -> None:
    x1, x2 = pair()
    model = Net()
    model.g.append(Picks())
    model.f.append(nn.Sequential(Picks()))
    watched = [weakref.ref(x1), weakref.ref(x2)]
    net = rg.trace(model, x1, x2)
    del x1, x2
    gc.collect()
    assert [ref() for ref in watched] == [None, None]
    assert not [thing for thing in gc.get_objects() if type(thing).__name__ == "ShadowProxy"]
    assert net is not None


def test_example_is_not_changed() -> None:
    class Edits(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 1.0
            y += 1
            return nn.functional.relu(y, inplace=True) * x

    x = randn(3, 4).requires_grad_()
    version, before = x._version, x.detach().clone()
    rg.trace(Edits(), x)
    assert x._version == version
    assert torch.equal(x, before)
    assert x.grad is None


def test_model_may_be_traced_several_times_and_nested() -> None:
    model = Net()
    first, second = rg.trace(model, *pair()), rg.trace(model, *pair())
    assert first.graph == second.graph
    equal_runs(second, copy.deepcopy(model), *pair())


def test_traced_net_can_be_a_submodule_of_a_traced_model() -> None:
    class Outer(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner, self.f = inner, mlp(seed=8)

        def forward(self, x1: Tensor, x2: Tensor) -> Any:
            x1, x2 = self.inner(x1, x2)
            return x1 + self.f(x2), x2

    model = Net().eval()
    net = rg.trace(Outer(rg.trace(model, *pair())).eval(), *pair())
    equal_runs(net, Outer(copy.deepcopy(model)).eval(), *pair())


def test_traced_net_pickles_and_copies() -> None:
    model = Net()
    net = rg.trace(model, *pair())
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert other.graph == net.graph
        equal_runs(other, copy.deepcopy(model), *pair())


def test_meta_device_model_is_traced_without_memory() -> None:
    class Big(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            with torch.device("meta"):
                self.f, self.g = nn.Linear(10**6, 10**6), nn.Linear(10**6, 10**6)

        def forward(self, x1: Tensor, x2: Tensor) -> Any:
            x1 = x1 + self.f(x2)
            return x1, x2 + self.g(x1)

    x = torch.empty(8, 10**6, device="meta")
    net = rg.trace(Big(), x, x.clone())
    assert [node.kind for node in net.graph.planned] == ["coupling", "coupling"]
    assert all(node.cost.flops for node in net.graph.planned)


def test_huge_example_is_traced_without_memory_or_arithmetic() -> None:
    x = torch.zeros(1, dtype=torch.double).expand(10**6, 4)
    start = time.perf_counter()
    net = rg.trace(Net(), x, x)
    assert time.perf_counter() - start < 20
    assert net.graph.value[net.graph.inputs[0]].shape == (10**6, 4)


def test_three_hundred_blocks_are_traced_in_seconds() -> None:
    model = Net(300).eval()
    start = time.perf_counter()
    net = rg.trace(model, *pair())
    seconds = time.perf_counter() - start
    assert len(net.graph.planned) == 600
    assert seconds < 30, f"{seconds:.1f} s"


def test_costs_are_those_of_one_block_times_their_number() -> None:
    one = rg.trace(Net(1), *pair()).graph
    three = rg.trace(Net(3), *pair()).graph
    flops = sum(node.cost.flops for node in one.nodes)
    assert flops > 0
    assert sum(node.cost.flops for node in three.nodes) == 3 * flops
