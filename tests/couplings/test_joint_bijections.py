"""Joint bijections: foreign modules with an inverse are couplings, of several streams, in several styles."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import revgraph as rg


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def mlp(width: int, out: int, seed: int = 0, *layers: nn.Module) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(width, 16), *layers, nn.Tanh(), nn.Linear(16, out)).double()


class Turn(nn.Module):
    """Two streams turned by an angle; `forward` and `inverse`, without a log-determinant."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.angle = nn.Parameter(randn(1, seed=seed))

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        c, s = self.angle.cos(), self.angle.sin()
        return a * c - b * s, a * s + b * c

    def inverse(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        c, s = self.angle.cos(), self.angle.sin()
        return a * c + b * s, b * c - a * s


class Flags(nn.Module):
    """An affine step in one forward with flags, of a list, perhaps with a condition in another list."""

    def __init__(self, seed: int = 0, condition: int = 0, *layers: nn.Module) -> None:
        super().__init__()
        self.net = mlp(3 + condition, 6, seed, *layers)
        self.first = seed % 2

    def forward(
        self, x: Sequence[Tensor], c: Sequence[Tensor] = (), rev: bool = False, jac: bool = True
    ) -> tuple[tuple[Tensor, ...], Tensor | None]:
        halves = list(x[0].chunk(2, 1))
        s, t = self.net(torch.cat([halves[self.first], *c], 1)).chunk(2, 1)
        other, s = halves[1 - self.first], s.tanh()
        halves[1 - self.first] = (other - t) * (-s).exp() if rev else other * s.exp() + t
        total = (-s if rev else s).sum(1) if jac else None
        return (torch.cat(halves, 1),), total


class Halves(nn.Module):
    """A list of one into a list of two streams of different widths, with flags; only a rearrangement."""

    def forward(self, x: Sequence[Tensor], rev: bool = False, jac: bool = True) -> tuple[Any, int]:
        return ((torch.cat(tuple(x), 1),) if rev else x[0].split([2, 4], 1)), 0


class Told(nn.Module):
    """One stream; `forward` and `inverse` that return a log-determinant too, given a condition."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.net = mlp(2, 12, seed)

    def _scale(self, context: Tensor | None, x: Tensor) -> tuple[Tensor, Tensor]:
        s, t = self.net(x.new_ones(len(x), 2) if context is None else context).chunk(2, 1)
        return s.tanh(), t

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        s, t = self._scale(context, x)
        return x * s.exp() + t, s.sum(1)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        s, t = self._scale(context, y)
        return (y - t) * (-s).exp(), -s.sum(1)


class Grouped(nn.Module):
    """A reversible block over groups of columns whose own forward is not to be called, given edges."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.nets = nn.ModuleList(mlp(3, 3, seed + index) for index in range(2))

    def forward(self, *args: Any) -> Any:
        raise AssertionError("its memory is the engine's matter")

    def _forward(self, x: Tensor, edges: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        a = a + self.nets[0](b[edges])
        return torch.cat([a, b + self.nets[1](a[edges])], 1)

    def _inverse(self, y: Tensor, edges: Tensor) -> Tensor:
        a, b = y.chunk(2, 1)
        b = b - self.nets[1](a[edges])
        return torch.cat([a - self.nets[0](b[edges]), b], 1)


class Edits(Flags):
    """On the way back it edits in place what it is given."""

    def forward(self, x: Sequence[Tensor], *args: Any, rev: bool = False, jac: bool = True) -> Any:
        if rev:
            (y,), log_det = super().forward([x[0].mul_(0.5)], rev=True, jac=jac)
            return (y,), None if log_det is None else log_det - math.log(2) * 6
        (y,), log_det = super().forward(x, rev=rev, jac=jac)
        return (y * 2,), None if log_det is None else log_det + math.log(2) * 6


class Steps(nn.Module):
    """A network of modules with flags, of which one splits, in plain code."""

    def __init__(self, condition: int = 0) -> None:
        super().__init__()
        self.steps = nn.ModuleList(Flags(seed, condition) for seed in range(3))
        self.halves = Halves()

    def forward(self, x: Any, c: Sequence[Tensor] = (), rev: bool = False, jac: bool = True) -> Any:
        streams, total = (tuple(x) if isinstance(x, (tuple, list)) else (x,)), 0
        calls: list[Any] = [*self.steps, self.halves]
        for call in reversed(calls) if rev else calls:
            given = {} if call is self.halves else {"c": c}
            streams, log_det = call(streams, rev=rev, jac=jac, **given)
            total = total + log_det
        return streams, total


class ToChannels(nn.Module):
    """Pixels into channels and scaled, one stream of another shape."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.pixel_unshuffle(x, 2) * 3

    def inverse(self, y: Tensor) -> Tensor:
        return nn.functional.pixel_shuffle(y / 3, 2)


class Chain(nn.Module):
    """Bijections one after the other; `given` are conditions of each."""

    def __init__(self, *modules: nn.Module, **options: Any) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(rg.Bijection(module, **options) for module in modules)
        self.count = 2 if isinstance(modules[0], Turn) else 1

    def forward(self, *args: Any, **given: Any) -> Any:
        streams, rest = args[: self.count], args[self.count :]
        for block in self.blocks:
            result = block(*streams, *rest, **given)
            streams = result if self.count > 1 else (result,)
        return streams if self.count > 1 else streams[0]


class Parts(nn.Module):
    """One stream into two, of which one goes on, and together again."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = rg.Bijection(Flags(0)), rg.Bijection(Flags(1))
        self.cut = rg.Bijection(Halves())
        self.f = mlp(2, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = self.cut(self.before(x))
        return a, b + self.f(a)


EDGES = torch.tensor([3, 0, 1, 2])
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, ...], dict[str, Any]]] = {
    "two streams": (lambda: Chain(*map(Turn, range(3))), (randn(4, 6), randn(4, 6, seed=1)), {}),
    "streams of maps": (
        lambda: Chain(*map(Turn, range(3))), (randn(4, 2, 3, 3), randn(4, 2, 3, 3, seed=1)), {}
    ),
    "flags": (lambda: Chain(*map(Flags, range(3))), (randn(4, 6),), {}),
    "flags, conditioned": (
        lambda: Chain(*[Flags(seed, 2) for seed in range(3)]), (randn(4, 6),), {"c": [randn(4, 2)]}
    ),
    "parts": (Parts, (randn(4, 6),), {}),
    "told": (lambda: Chain(*map(Told, range(3))), (randn(4, 6),), {}),
    "told, conditioned": (lambda: Chain(*map(Told, range(3))), (randn(4, 6), randn(4, 2)), {}),
    "told, by keyword": (lambda: Chain(*map(Told, range(3))), (randn(4, 6),), {"context": randn(4, 2)}),
    "groups": (lambda: Chain(*map(Grouped, range(3))), (randn(4, 6), EDGES), {}),
    "edits": (lambda: Chain(*map(Edits, range(3))), (randn(4, 6),), {}),
    "a network": (lambda: rg.Bijection(Steps()), (randn(4, 6),), {}),
    "a network, conditioned": (lambda: rg.Bijection(Steps(2)), (randn(4, 6),), {"c": [randn(4, 2)]}),
    "another shape": (lambda: Chain(ToChannels(), ToChannels()), (randn(4, 2, 4, 4),), {}),
    "batch normalization": (
        lambda: Chain(*[Flags(seed, 0, nn.BatchNorm1d(16)) for seed in range(3)]), (randn(4, 6),), {}
    ),
}  # fmt: skip
PLANS: dict[str, Callable[[rg.Graph], rg.Plan]] = {
    "keep": rg.keep_all,
    "invert": lambda graph: rg.decide(graph, {}),
    "recompute": lambda graph: rg.decide(graph, {node.name: "recompute" for node in graph.planned}),
    "least": lambda graph: rg.plan(graph, "least"),
}


def flat(tree: Any) -> tuple[Tensor, ...]:
    return tuple(tree) if isinstance(tree, (tuple, list)) else (tree,)


def step(module: nn.Module, args: Any, kwargs: Any) -> tuple[list[Tensor], list[Tensor | None]]:
    """Outputs and the gradients of inputs and parameters."""
    leaves: list[Tensor] = [*module.parameters()]

    def leaf(each: Any) -> Any:
        if isinstance(each, list):
            return [leaf(one) for one in each]
        if not each.is_floating_point():
            return each
        leaves.append(each.clone().requires_grad_())
        return leaves[-1]

    args, kwargs = [leaf(each) for each in args], {key: leaf(each) for key, each in kwargs.items()}
    outputs = flat(module(*args, **kwargs))
    loss = sum((place + 1) * each.square().sum() for place, each in enumerate(outputs))
    return [each.detach() for each in outputs], list(torch.autograd.grad(loss, leaves, allow_unused=True))  # pyright: ignore


@pytest.mark.slow
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("case", CASES)
def test_gradients_and_buffers_are_plain_autograds(case: str, plan: str) -> None:
    make, args, kwargs = CASES[case]
    model = make()
    reference = copy.deepcopy(model)
    net = rg.trace(model, *args, **kwargs)
    assert [node for node in net.graph.nodes if node.kind == "boundary"] == []
    net.plan = PLANS[plan](net.graph)
    for one, two in zip(step(net, args, kwargs), step(reference, args, kwargs), strict=True):
        for mine, other in zip(one, two, strict=True):
            assert (mine is None) == (other is None)
            torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-10)
    for mine, other in zip(net.buffers(), reference.buffers(), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_inverse_gives_the_streams_back_and_moves_nothing(case: str) -> None:
    make, args, kwargs = CASES[case]
    net = rg.trace(make(), *args, **kwargs)
    outputs = [each.detach() for each in flat(net(*args, **kwargs))]
    before = [each.clone() for each in net.buffers()]
    names = [name for name in net.graph.inputs if name not in streams_of(net)]
    values = dict(zip(net.graph.inputs, [*args, *kwargs.get("c", []), *kwargs.values()], strict=False))
    known = {name: values[name] for name in names}
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            found = flat(net.inverse(*outputs, **known))
        for one, two in zip(found, args, strict=False):
            torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-10)
    for one, two in zip(net.buffers(), before, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)


def streams_of(net: rg.ReversibleModule) -> list[str]:
    turned = len([node for node in net.graph.nodes if node.expression.startswith("pack")])
    return list(net.graph.inputs[: 2 if turned else 1])


@pytest.mark.slow
@pytest.mark.parametrize("case", ["flags", "parts", "told", "edits", "a network"])
def test_log_determinants_are_those_of_the_jacobian(case: str) -> None:
    make, (x,), _ = CASES[case]
    net = rg.trace(make(), x)
    y, log_det = net.with_log_det(x)

    def row(each: Tensor) -> Tensor:
        return torch.cat([part.flatten() for part in flat(net(each[None]))])

    for place in range(len(x)):
        jacobian = torch.autograd.functional.jacobian(row, x[place])
        torch.testing.assert_close(log_det[place], torch.linalg.slogdet(jacobian).logabsdet)
    _, back = net.inverse_with_log_det(*[each.detach() for each in flat(y)])
    torch.testing.assert_close(back, -log_det)
    net.plan = rg.decide(net.graph, {})
    found = torch.autograd.grad(net.with_log_det(x)[1].sum(), list(net.parameters()), allow_unused=True)
    net.plan = rg.keep_all(net.graph)
    expected = torch.autograd.grad(net.with_log_det(x)[1].sum(), list(net.parameters()), allow_unused=True)
    for one, two in zip(found, expected, strict=True):
        assert (one is None) == (two is None)
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-10)


def test_no_log_determinant_is_said_by_name() -> None:
    net = rg.trace(Chain(Turn()), randn(4, 6), randn(4, 6))
    with pytest.raises(rg.GraphError, match=r"'blocks.0' \(Turn, .*does not say how it changes volume"):
        net.with_log_det(randn(4, 6), randn(4, 6))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Turn, Flags])
def test_held_bytes_do_not_grow_with_depth(kind: Any) -> None:
    held = []
    for depth in (2, 12):
        args = (randn(64, 6), randn(64, 6, seed=1))[: 2 if kind is Turn else 1]
        net = rg.trace(Chain(*map(kind, range(depth))), *args)
        net.plan = rg.decide(net.graph, {})
        measured = rg.measure(net, *args)
        assert measured.held_bytes == net.plan.held_bytes
        assert measured.peak_bytes == net.plan.peak_bytes
        held.append(measured.held_bytes - 4 * 8 * sum(1 for _ in net.parameters()))
    assert held[1] <= held[0] + 8 * 12


def test_each_step_of_a_network_is_a_node_and_a_bijection_keeps_the_module_around_it_open() -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Chain(Turn(), Turn(1))
            self.network = rg.Bijection(Steps())

        def forward(self, a: Tensor, b: Tensor) -> Any:
            a, b = self.inner(a, b)
            return self.network(a), b

    net = rg.trace(Around(), randn(4, 6), randn(4, 6))
    names = [node.name for node in net.graph.nodes if node.kind == "coupling"]
    assert names == [
        *(f"inner.blocks.{place}" for place in range(2)),
        *(f"network.module.steps.{place}" for place in range(3)),
        "network.module.halves",
    ]


def test_streams_stay_side_by_side_between_bijections() -> None:
    net = rg.trace(Chain(*map(Turn, range(5))), randn(4, 6), randn(4, 6))
    assert [node.kind for node in net.graph.nodes].count("wiring") == 2


@pytest.mark.parametrize("case", ["two streams", "another shape", "told"])
def test_runs_at_other_batch_sizes(case: str) -> None:
    make, args, _ = CASES[case]
    model = make()
    net = rg.trace(model, *args)
    net.plan = rg.decide(net.graph, {})
    larger = [torch.cat([each, each]) for each in args]
    for one, two in zip(step(net, larger, {})[1], step(model, larger, {})[1], strict=True):
        torch.testing.assert_close(one, two)
    for one, two in zip(flat(net.inverse(*flat(net(*larger)))), larger, strict=True):
        torch.testing.assert_close(one, two)


def test_maps_of_other_sizes_run_where_shapes_stay_and_are_refused_where_not() -> None:
    a, b = randn(2, 2, 4, 4), randn(2, 2, 4, 4, seed=1)
    net = rg.trace(Chain(Turn(), Turn(1)), a, b)
    net.plan = rg.decide(net.graph, {})
    assert net(randn(2, 2, 6, 6), randn(2, 2, 6, 6))[0].shape == (2, 2, 6, 6)
    net = rg.trace(Chain(ToChannels()), randn(2, 2, 4, 4))
    with pytest.raises(rg.GraphError, match="Trace the net with an input of this size"):
        net(randn(2, 2, 8, 8))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_nets_are_copied_and_pickled(copied: Callable[[Any], Any]) -> None:
    x = randn(4, 6)
    net = rg.trace(Parts(), x)
    net.plan = rg.decide(net.graph, {})
    other = copied(net)
    for one, two in zip(step(other, (x,), {}), step(net, (x,), {}), strict=True):
        for mine, theirs in zip(one, two, strict=True):
            assert mine is theirs is None or torch.equal(mine, theirs)
    assert list(other.state_dict()) == list(Parts().state_dict())


def test_random_numbers_inside_are_refused_for_inversion_and_recomputed_right() -> None:
    x = randn(4, 6)
    model = Chain(Flags(0, 0, nn.Dropout()), Flags(1))
    net = rg.trace(model, x)
    net.plan = rg.decide(net.graph, {"blocks.0": "invert"})
    with pytest.raises(rg.ReplayError, match=r"bijection node 'blocks.0'.*draws random numbers"):
        net(x)
    net.plan = rg.decide(net.graph, {"blocks.0": "recompute"})
    found = []
    for module in (net, model):
        torch.manual_seed(3)
        found.append(step(module, (x,), {}))
    for one, two in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(one, two)
    net.eval()
    net.plan = rg.decide(net.graph, {})
    net(x).sum().backward()


def test_by_itself_it_returns_the_streams_alone() -> None:
    x = randn(4, 6)
    assert torch.equal(rg.Bijection(Told())(x), Told()(x)[0])
    assert torch.equal(rg.Bijection(Flags())(x), Flags()([x])[0][0])
    assert isinstance(rg.Bijection(Flags())([x]), tuple)
    assert len(rg.Bijection(Turn())(x, x + 1)) == 2


class Bare(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Any:
        return self.function(*args)

    def inverse(self, *args: Any) -> Any:
        return args


def test_what_has_no_inverse_or_is_no_bijection_is_refused() -> None:
    with pytest.raises(TypeError, match="Linear has no inverse: a Bijection wraps a module with a method"):
        rg.Bijection(nn.Linear(2, 2))
    with pytest.raises(TypeError, match="wraps a module, not int"):
        rg.Bijection(3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="at least one stream"):
        rg.Bijection(Turn(), streams=0)
    with pytest.raises(TypeError, match="makes as many numbers as it is given"):
        rg.Bijection(Bare(lambda x: x[:, :1]))(randn(4, 6))
    with pytest.raises(TypeError, match="makes as many numbers as it is given"):
        rg.Bijection(Bare(lambda x: "text"))(randn(4, 6))


def test_sizes_that_do_not_tell_are_asked_for() -> None:
    pair = Bare(lambda x, given: (x, given[:, 0]))
    x, given = randn(4, 6), randn(4, 1)
    with pytest.raises(TypeError, match=r"say how many there are with Bijection\(module, streams="):
        rg.Bijection(pair)(x, given)
    assert torch.equal(rg.Bijection(pair, streams=1)(x, given), x)
    assert len(rg.Bijection(pair, log_det=False)(x, given)) == 2


def test_specifications_take_bijections() -> None:
    rg.register("Turned", Turn)
    layer = {"Bijection": {"module": {"Turned": 1}, "streams": 2}}
    net = rg.load(
        {
            "inputs": {"a": {"shape": [6], "dtype": "float64"}, "b": {"shape": [6], "dtype": "float64"}},
            "layers": [{"one": {**layer, "in": ["a", "b"], "out": ["c", "d"]}}],
            "outputs": ["c", "d"],
        }
    )
    a, b = randn(2, 6), randn(2, 6, seed=1)
    for one, two in zip(net.inverse(*net(a, b)), (a, b), strict=True):
        torch.testing.assert_close(one, two)
    assert [node.kind for node in net.graph.nodes].count("coupling") == 1
