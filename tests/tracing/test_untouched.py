"""The trace leaves model, tensors and random state as they were, and takes seconds."""

from __future__ import annotations

import contextlib
import copy
import gc
import pickle
import random
import time
import weakref
from collections import OrderedDict
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


class Frozen(dict):  # type: ignore[type-arg]
    """A dictionary that refuses changes, as configurations are."""

    def __setitem__(self, *_: Any) -> None:
        raise TypeError("frozen")

    def update(self, *_: Any, **__: Any) -> None:
        raise TypeError("frozen")

    clear = pop = update


class Counter:
    def __init__(self) -> None:
        self.count, self.seen, self.random = 0, [1], random.Random(3)


class Edits(nn.Module):
    """Edits everything that it holds, in its own code or in a submodule, and fails or not."""

    sparse: Tensor

    def __init__(self, fails: bool, inner: nn.Module | None = None) -> None:
        super().__init__()
        self.fails, self.inner, self.layer = fails, inner, linear()
        self.config, self.order = Frozen(a=1), OrderedDict(a=[1], b=2)
        self.counter, self.plain, self.inside = Counter(), randn(4), [randn(4, seed=2)]
        self.generator, self.calls = torch.Generator(), 0
        self.register_buffer("sparse", torch.eye(4, dtype=torch.double).to_sparse())
        self.scripted = torch.jit.script(linear()) if fails else linear()  # pyright: ignore

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x) + self.scripted(x) if self.inner is None else self.inner(x)
        self.plain.add_(1)
        self.inside[0].mul_(2)
        self.inside.append(self.plain)
        self.order["a"].append(2)
        self.order["c"] = 3
        self.counter.count += 1
        self.counter.seen.append(2)
        self.counter.new = self.counter.random.random()
        self.calls += int(torch.randint(5, (1,), generator=self.generator))
        dict.update(self.config, a=2, b=self.calls)
        if self.fails:
            raise ValueError("no")
        return torch.sparse.mm(self.sparse, y.T).T


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("inner", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_what_the_forward_edits_is_as_before(fails: bool, inner: bool) -> None:
    model = Edits(fails, Edits(fails) if inner else None)
    held = [each for each in model.modules() if isinstance(each, Edits)]
    if not fails and inner:
        model = nn.Sequential(linear(), model)
    with contextlib.nullcontext() if inner and not fails else pytest.raises(rg.TraceError):
        rg.trace(model, randn(3, 4))
    for each in held:
        assert each.config == {"a": 1}
        assert type(each.config) is Frozen
        assert list(each.order.items()) == [("a", [1]), ("b", 2)]
        assert vars(each.counter).keys() == {"count", "seen", "random"}
        assert (each.counter.count, each.counter.seen, each.calls) == (0, [1], 0)
        assert each.counter.random.getstate() == random.Random(3).getstate()
        assert torch.equal(each.generator.get_state(), torch.Generator().get_state())
        assert torch.equal(each.plain, randn(4))
        assert len(each.inside) == 1
        assert torch.equal(each.inside[0], randn(4, seed=2))
        assert (each.plain._version, each.inside[0]._version) == (0, 0)
        assert torch.equal(each.sparse.to_dense(), torch.eye(4, dtype=torch.double))


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
    with pytest.raises(rg.TraceError, match=r"changes model\.settings"):
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_hooks_that_the_forward_registers_are_gone_after_the_trace() -> None:
    class Watching(nn.Module):
        """Registers hooks on its layers when it first runs."""

        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
            self.is_watching, self.seen = False, list[int]()

        def forward(self, x: Tensor) -> Any:
            if not self.is_watching:
                for layer in self.layers:
                    layer.register_forward_hook(lambda module, args, result: self.seen.append(1))
                self.is_watching = True
            self.seen.clear()
            return self.layers(x), len(self.seen)

    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Watching()

        def forward(self, x: Tensor) -> Any:
            return self.inner(x)

    model = Around()
    net = rg.trace(model, torch.randn(2, 4))
    assert not any(module._forward_hooks for module in model.modules())
    assert [net(torch.randn(2, 4))[1] for _ in range(2)] == [2, 2]
    rg.trace(model, torch.randn(2, 4))
    assert all(len(layer._forward_hooks) == 1 for layer in model.inner.layers)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_a_scripted_module_is_refused_by_name() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = torch.jit.script(nn.Linear(4, 4).double())  # pyright: ignore

        def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
            return b, a + self.f(b)

    with pytest.raises(rg.TraceError, match=r"^f is a scripted module.*Put the module that it was made of"):
        rg.trace(Net(), randn(3, 4), randn(3, 4))
