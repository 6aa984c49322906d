"""Small nets of one kind of function, under plans of every sort, followed step by step beside plain autograd.

Replays are compared with their forwards in the first eight forwards under a plan and in every sixteenth,
and later forwards may take a leaner path. So one step that is right says little: `assert_follows` takes
ten, and compares outputs, buffers and the random stream bitwise.
"""

from __future__ import annotations

import dataclasses
import gc
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from engine.samples import DOUBLE, assert_bitwise, assert_close
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

import revgraph as rg

BOTH = ("default", "inverted")
REST = ("recomputed", "results", "mixed", "frontier")
PLANS = (*BOTH, *REST)
FORWARDS = 10
WAYS_OUT = re.compile(
    r"\b(keep|kept|store|anchor|exact|out-of-place|clone|before|after|outside|inside|retain_graph|deterministic|"
    r"instead|pass|use|run|trace|call|convert|return|move)\b",
    re.IGNORECASE,
)


class Weave(nn.Module):
    """Half-steps on two streams that swap places: each function reads what the one before it changed."""

    def __init__(self, f: Callable[[], nn.Module], depth: int = 3) -> None:
        super().__init__()
        self.fs = nn.ModuleList(f() for _ in range(depth))

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        for f in self.fs:
            a, b = b, a + f(b)
        return a, b


def two_streams(*shape: int, seed: int = 1, dtype: torch.dtype = DOUBLE) -> tuple[Tensor, Tensor]:
    """Two leaves that require gradients, on which a `Weave` runs."""
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(*(shape or (5, 4)), dtype=dtype, generator=generator) for _ in range(2))
    return a.requires_grad_(), b.requires_grad_()


def plans(net: rg.ReversibleModule, which: str) -> list[rg.Plan]:
    """The plans of one sort for a net."""
    graph = net.graph
    nodes = {node.name: node for node in graph.nodes if node.kind in ("coupling", "boundary")}
    if which == "default":
        return [rg.plan(graph)]
    if which == "least":
        return [rg.plan(graph, budget="least")]
    if which == "inverted":
        return [rg.decide(graph, {})]
    if which == "kept":
        return [rg.keep_all(graph)]
    if which == "recomputed":
        return [rg.decide(graph, dict.fromkeys(nodes, "recompute"))]
    if which == "mixed":
        cycle: list[Any] = ["invert", "recompute", "keep"]
        chosen = {name: cycle[index % 3] for index, name in enumerate(nodes)}
        legal = {
            name: "keep" if decision == "invert" and nodes[name].kind == "boundary" else decision
            for name, decision in chosen.items()
        }
        return [rg.decide(graph, legal)]
    if which == "results":  # each product and convolution kept, or the term where there are none
        results = {
            name: tuple(range(node.cost.heavy_results)) or (-1,)
            for name, node in nodes.items()
            if node.kind == "coupling"
        }
        return [rg.decide(graph, {}, results=results)]
    assert which == "frontier"
    return rg.frontier(graph, points=4)


def tensors_in(given: Any) -> list[Tensor]:
    """All tensors in nested tuples, lists, mappings and dataclasses."""
    if isinstance(given, Tensor):
        return [given]
    if dataclasses.is_dataclass(given) and not isinstance(given, type):
        given = [getattr(given, field.name) for field in dataclasses.fields(given)]
    if isinstance(given, Mapping):
        given = list(given.values())
    if isinstance(given, Sequence) and not isinstance(given, str):
        return [tensor for each in given for tensor in tensors_in(each)]
    return []


def loss_of(outputs: Any) -> Tensor:
    """A loss in which every output that has a gradient counts differently."""
    tensors = [tensor for tensor in tensors_in(outputs) if tensor.requires_grad]
    return torch.stack([(t.abs() ** 2).sum() * (index + 1) for index, t in enumerate(tensors)]).sum()


def leaves_of(model: nn.Module, inputs: Iterable[Any]) -> list[Tensor]:
    return [leaf for leaf in (*model.parameters(), *tensors_in(list(inputs))) if leaf.requires_grad]


def gradients(run: Callable[..., Any], model: nn.Module, *inputs: Any, seed: int = 0) -> list[Tensor | None]:
    """The gradients of a step that begins with a seed, of parameters and inputs, as dense tensors."""
    torch.manual_seed(seed)
    found = torch.autograd.grad(loss_of(run(*inputs)), leaves_of(model, inputs), allow_unused=True)
    return [dense(each) for each in found]


def dense(gradient: Tensor | None) -> Tensor | None:
    return gradient if gradient is None or gradient.layout is torch.strided else gradient.to_dense()


def real(tensors: Iterable[Tensor | None]) -> list[Tensor | None]:
    """Complex tensors as real ones, and those without elements left out."""
    views = (each if each is None or not each.is_complex() else torch.view_as_real(each) for each in tensors)
    return [each for each in views if each is None or each.numel()]


def state_of(model: nn.Module) -> list[Tensor]:
    """Buffers and frozen parameters, as dense tensors."""
    frozen = (parameter for parameter in model.parameters() if not parameter.requires_grad)
    tensors = [each.dequantize() if each.is_quantized else each for each in (*model.buffers(), *frozen)]
    return [each.detach() if each.layout is torch.strided else each.detach().to_dense() for each in tensors]


def follow(
    net: rg.ReversibleModule,
    plain: nn.Module,
    inputs: Sequence[Any],
    forwards: int = FORWARDS,
    tolerance: float = 1e-9,
    first_seed: int = 0,
) -> None:
    """Steps of both; after each, both models' parameters move alike, by the plain model's gradient."""
    for number in range(forwards):
        steps: list[Any] = []
        for run in (net, plain):
            torch.manual_seed(first_seed + number)
            outputs = run(*inputs)
            leaves = leaves_of(run, inputs)
            found = torch.autograd.grad(loss_of(outputs), leaves, allow_unused=True)
            made = [tensor.detach() for tensor in tensors_in(outputs)]
            steps.append((made, [dense(each) for each in found], torch.get_rng_state()))
        assert all(tensor.isfinite().all() for tensor in steps[1][0]), "the sample itself overflows"
        assert_bitwise(steps[0][0], steps[1][0])
        assert_close(real(steps[0][1]), real(steps[1][1]), tolerance)
        assert torch.equal(steps[0][2], steps[1][2]), "the random stream"
        assert_bitwise(state_of(net), state_of(plain))
        with torch.no_grad():
            for leaves in (leaves_of(net, ()), leaves_of(plain, ())):
                for leaf, gradient in zip(leaves, steps[1][1], strict=False):
                    if gradient is not None:
                        leaf.sub_(gradient, alpha=1e-3)


def settle(net: rg.ReversibleModule, plain: nn.Module, inputs: Sequence[Any], forwards: int = 12) -> None:
    """Ordinary steps of the net, not looked at; the plain model takes over what they leave."""
    for number in range(forwards):
        gradients(net, net, *inputs, seed=number)
    plain.load_state_dict(net.state_dict())


def made_twice(
    make: Callable[[], nn.Module], dtype: torch.dtype | None = DOUBLE, seed: int = 0
) -> tuple[nn.Module, nn.Module]:
    """Two models alike that share nothing, for not every model can be copied; without a type as made."""
    models = []
    for _ in range(2):
        torch.manual_seed(seed)
        models.append(make() if dtype is None else make().to(dtype))
    return models[0], models[1]


@torch.no_grad()
def restore(net: nn.Module, plain: nn.Module) -> None:
    """Undo what a trace did to buffers and frozen parameters; that it does nothing is a test of its own."""
    for one, two in zip(
        (*net.buffers(), *net.parameters()), (*plain.buffers(), *plain.parameters()), strict=True
    ):
        if one.layout is torch.strided and not one.is_quantized and not torch.equal(one, two):
            one.copy_(two)


def assert_follows(
    make: Callable[[], nn.Module],
    *inputs: Any,
    under: Sequence[str] = ("inverted",),
    forwards: int = FORWARDS,
    tolerance: float = 1e-9,
    dtype: torch.dtype | None = DOUBLE,
    evaluation: bool = False,
    refusal: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> None:
    """The traced model is as the plain one under plans of these sorts; where asked, in evaluation too.

    What fails is told for every sort. `refusal` makes a context around each trace and each sort that lets
    allowed errors pass.
    """
    failures: list[tuple[str, Exception]] = []
    model = plain = net = None
    for sort in under:
        if net is None:  # at first, and after a failure
            model, plain = made_twice(make, dtype)
            with refusal():
                net = rg.trace(model, *inputs)
        if net is None or plain is None:
            return
        restore(net, plain)
        try:
            with refusal(), results_refused(net) if sort == "results" else nullcontext():
                for chosen in plans(net, sort):
                    net.plan = chosen
                    follow(net, plain, inputs, forwards, tolerance)
                    if evaluation:
                        net.eval(), plain.eval()
                        follow(net, plain, inputs, 2, tolerance)
                        net.train(), plain.train()
                        follow(net, plain, inputs, 1, tolerance)
        except Exception as error:
            failures.append((sort, error))
            net = None
    if failures:
        told = [f"{sort}: {type(error).__name__}: {error}" for sort, error in failures]
        raise AssertionError("\n".join(told)) from failures[0][1]


def results_refused(net: rg.ReversibleModule) -> AbstractContextManager[None]:
    """A plan by hand may keep results that a function edits, and be refused; one of the planner's may not."""
    return right_or_refused(*net.graph.node, says="results? ")


@contextmanager
def right_or_refused(*names: str, says: str = "") -> Iterator[None]:
    """The block passes, or an error of revgraph's names one of `names` and a way out, and matches `says`.

    Any other exception passes through.
    """
    try:
        yield
    except rg.RevgraphError as error:
        text = "\n".join([str(error), *getattr(error, "__notes__", [])])
        assert any(name in text for name in names), f"names none of {names}: {text}"
        assert WAYS_OUT.search(text), f"names no way out: {text}"
        assert re.search(says, text), f"says nothing of {says!r}: {text}"


class Bytes(TorchDispatchMode):
    """Bytes of the storages that operators make, by weak references to the storages themselves."""

    def __init__(self, *known: Tensor) -> None:
        super().__init__()
        self.known = {StorageWeakRef(each.untyped_storage()).cdata for each in known}
        self.made: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        for tensor in tensors_in(results):
            storage = tensor.untyped_storage()
            reference = StorageWeakRef(storage)
            if reference.cdata not in self.known and reference.cdata not in self.made:
                self.made[reference.cdata] = (reference, storage.nbytes())
        self.peak = max(self.peak, self.now())
        return results

    def now(self, *without: Tensor) -> int:
        left_out = {StorageWeakRef(each.untyped_storage()).cdata for each in without}
        self.made = {key: each for key, each in self.made.items() if not each[0].expired()}
        return sum(size for key, (_, size) in self.made.items() if key not in left_out)


def bytes_of_a_step(net: nn.Module, *inputs: Tensor) -> tuple[int, int, int]:
    """Bytes held between forward and backward, at the peak, and after backward; the collector is off.

    Gradients of parameters and inputs are left out of what is held after backward, not of the peak.
    """
    gc.disable()
    try:
        with Bytes(*inputs, *net.parameters(), *net.buffers()) as tracker:
            loss = loss_of(net(*inputs))
            held = tracker.now()
            loss.backward()
            del loss
            grads = [leaf.grad for leaf in leaves_of(net, inputs) if leaf.grad is not None]
            peak, after = tracker.peak, tracker.now(*grads)
        for leaf in leaves_of(net, inputs):
            leaf.grad = None
        return held, peak, after
    finally:
        gc.enable()
