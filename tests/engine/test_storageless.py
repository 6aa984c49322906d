"""Tensors without one strided storage: sparse, nested, quantized, and those of other libraries' layouts.

COO and CSR as inputs and buffers are right. Other layouts are right or refused when traced, by name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from engine.kinds import (
    BOTH,
    REST,
    Weave,
    assert_follows,
    follow,
    made_twice,
    plans,
    right_or_refused,
    two_streams,
)
from torch import Tensor, nn
from torch.nn import functional

import revgraph as rg
from revgraph.measuring import activation_bytes

pytestmark = [
    pytest.mark.filterwarnings("ignore:Sparse .* tensor support is in beta state"),
    pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage"),
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor"),
    pytest.mark.filterwarnings("ignore:.*quantization.* is deprecated"),
]

NODES = 6


def adjacency(layout: str) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    dense = torch.rand(NODES, NODES, generator=generator, dtype=torch.double)
    dense = dense * (torch.rand(NODES, NODES, generator=generator) > 0.5)
    convert: dict[str, Callable[[], Tensor]] = {
        "coo": lambda: dense.to_sparse().coalesce(),
        "coo, not coalesced": lambda: torch.sparse_coo_tensor(
            dense.nonzero().t().repeat(1, 2), dense[dense != 0].repeat(2) / 2, dense.shape
        ),
        "csr": dense.to_sparse_csr,
        "csc": dense.to_sparse_csc,
        "bsr": lambda: dense.to_sparse_bsr((2, 2)),
        "bsc": lambda: dense.to_sparse_bsc((2, 2)),
    }
    return convert[layout]()


def spread(adjacency: Tensor, x: Tensor) -> Tensor:
    """The product with an adjacency matrix; torch has none for blocks on CPU."""
    blocks = adjacency.layout in (torch.sparse_bsr, torch.sparse_bsc)
    return (adjacency.to_dense() if blocks else adjacency) @ x


class GivenGraph(nn.Module):
    """A reversible graph network: the adjacency matrix is an input."""

    def __init__(self) -> None:
        super().__init__()
        self.fs = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, a: Tensor, b: Tensor, adjacency: Tensor) -> tuple[Tensor, Tensor]:
        for f in self.fs:
            a, b = b, a + torch.tanh(f(spread(adjacency, b)))
        return a, b


class Convolution(nn.Module):
    """A function that is given the adjacency matrix beside its stream."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        return torch.tanh(self.linear(spread(adjacency, x)))


class GivenToFunctions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(rg.Additive(Convolution(), Convolution()) for _ in range(2))

    def forward(self, a: Tensor, b: Tensor, adjacency: Tensor) -> tuple[Tensor, Tensor]:
        for block in self.blocks:
            a, b = block(a, b, adjacency=adjacency)
        return a, b


class OwnGraph(nn.Module):
    """The adjacency matrix is a buffer of each function."""

    def __init__(self, layout: str) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("adjacency", adjacency(layout))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(spread(self.adjacency, x)))


class RootGraph(GivenGraph):
    """The adjacency matrix is a buffer of the net."""

    def __init__(self, layout: str) -> None:
        super().__init__()
        self.register_buffer("adjacency", adjacency(layout))

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore
        return super().forward(a, b, self.adjacency)


def refused_by_name(layout: str) -> Any:
    """COO and CSR may not be refused; a refusal of the others names the tensor, its layout or its node."""
    if layout in ("coo", "csr"):
        return right_or_refused()
    return right_or_refused("adjacency", "sparse", "'fs.", "'blocks.", "'matmul", says="(?i)sparse|layout")


LAYOUTS = ["coo", "coo, not coalesced", "csr", "csc", "bsr", "bsc"]


@pytest.mark.slow
@pytest.mark.parametrize("model", [GivenGraph, GivenToFunctions])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_sparse_input(layout: str, model: type[nn.Module]) -> None:
    assert_follows(model, *two_streams(NODES, 4), adjacency(layout), refusal=lambda: refused_by_name(layout))


@pytest.mark.slow
@pytest.mark.parametrize("where", ["functions", "root"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_sparse_buffer(layout: str, where: str) -> None:
    def make() -> nn.Module:
        return RootGraph(layout) if where == "root" else Weave(lambda: OwnGraph(layout))

    assert_follows(make, *two_streams(NODES, 4), refusal=lambda: refused_by_name(layout))


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["coo", "csr"])
def test_sparse_inputs_under_every_plan(layout: str) -> None:
    assert_follows(GivenToFunctions, *two_streams(NODES, 4), adjacency(layout), under=("default", *REST))


@pytest.mark.parametrize("layout", ["coo", "csr"])
def test_a_sparse_input_after_a_trace_with_another(layout: str) -> None:
    """Other entries, another number of them, and a dense matrix in place of the sparse one."""
    model, plain = made_twice(GivenGraph)
    a, b = two_streams(NODES, 4)
    net = rg.trace(model, a, b, adjacency(layout))
    net.plan = rg.decide(net.graph, {})
    ring = torch.eye(NODES, dtype=a.dtype).roll(1, 0)
    for other in (ring.to_sparse() if layout == "coo" else ring.to_sparse_csr(), ring):
        follow(net, plain, (a, b, other), 10)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["coo", "csr"])
@pytest.mark.parametrize("given", [True, False])
def test_nets_with_sparse_tensors_are_costed_measured_and_checked(layout: str, given: bool) -> None:
    model, _ = made_twice(GivenGraph if given else lambda: RootGraph(layout))
    inputs = (*two_streams(NODES, 4), *([adjacency(layout)] if given else []))
    net = rg.trace(model, *inputs)
    net.plan = rg.decide(net.graph, {})
    measured = rg.measure(net, *inputs)
    assert measured.peak_bytes > 0 and measured.held_bytes > 0
    assert rg.check(net, *inputs).max_relative_error < 1e-9


@pytest.mark.parametrize("layout", ["coo", "csr"])
def test_a_sparse_input_with_a_gradient(layout: str) -> None:
    assert_follows(
        GivenGraph,
        *two_streams(NODES, 4),
        adjacency(layout).requires_grad_(),
        refusal=lambda: right_or_refused("adjacency", says="(?i)sparse|layout"),
    )


INDICES = torch.tensor([[0, 1, 2, 5], [1, 2, 3, 0]])


class Inside(nn.Module):
    """Makes a sparse tensor from its stream; the subclasses say which."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def product(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(self.product(torch.tanh(x))))


class Coo(Inside):
    def product(self, x: Tensor) -> Tensor:
        return torch.sparse_coo_tensor(INDICES, x[:4, 0], (NODES, NODES)) @ x


class Csr(Inside):
    def product(self, x: Tensor) -> Tensor:
        rows, columns = torch.tensor([0, 1, 2, 3, 3, 3, 4]), INDICES[1]
        return torch.sparse_csr_tensor(rows, columns, x[:4, 0], (NODES, NODES)) @ x


class Converted(Inside):
    def product(self, x: Tensor) -> Tensor:
        return torch.sparse.mm((x @ x.t()).relu().to_sparse(), x)


class Softmax(Inside):
    def product(self, x: Tensor) -> Tensor:
        weights = torch.sparse_coo_tensor(INDICES, x[:4, 0], (NODES, NODES))
        return torch.sparse.softmax(weights, 1).to_dense() @ x


class Hybrid(Inside):
    def product(self, x: Tensor) -> Tensor:
        return torch.sparse_coo_tensor(torch.tensor([[0, 1, 1, 2, 3, 5]]), x, (NODES, 4)).to_dense()


class Sampled(Inside):
    def product(self, x: Tensor) -> Tensor:
        return torch.sparse.sampled_addmm(adjacency("csr").to(x.dtype), x, x.t()).to_dense() @ x


class Detached(Inside):
    """A sparse tensor that no gradient goes through."""

    def product(self, x: Tensor) -> Tensor:
        return (x @ x.t()).detach().relu().to_sparse() @ x


@pytest.mark.slow
@pytest.mark.parametrize("function", [Coo, Csr, Converted, Softmax, Hybrid, Sampled, Detached])
def test_sparse_tensors_made_inside_a_function(function: type[Inside]) -> None:
    assert_follows(
        lambda: Weave(function),
        *two_streams(NODES, 4),
        under=BOTH,
        refusal=lambda: right_or_refused("'fs.", says="(?i)sparse|layout"),
    )


class SparseEmbedding(nn.Module):
    """A table whose gradient is sparse."""

    def __init__(self, bag: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.table = (
            nn.EmbeddingBag(5, 4, sparse=True, mode="sum") if bag else nn.Embedding(5, 4, sparse=True)
        )
        index = torch.tensor([0, 1, 2, 0, 1, 4])
        self.register_buffer("index", index.view(-1, 1) if bag else index)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x)) * self.table(self.index)


@pytest.mark.slow
@pytest.mark.parametrize("bag", [True, False])
def test_sparse_gradients(bag: bool) -> None:
    assert_follows(
        lambda: Weave(lambda: SparseEmbedding(bag)),
        *two_streams(NODES, 4),
        under=("default", "inverted", "mixed"),
    )


def test_sparse_gradients_stay_sparse_and_add_up() -> None:
    model, plain = made_twice(lambda: Weave(lambda: SparseEmbedding(False)))
    a, b = two_streams(NODES, 4)
    net = rg.trace(model, a, b)
    net.plan = rg.decide(net.graph, {})
    for run in (net, plain):
        for _ in range(2):
            sum(run(a, b)).pow(2).sum().backward()
    for one, two in zip(model.fs, plain.fs, strict=True):
        assert one.table.weight.grad.layout is torch.sparse_coo
        torch.testing.assert_close(one.table.weight.grad.to_dense(), two.table.weight.grad.to_dense())


class Ragged(nn.Module):
    """Rows grouped into sequences of two lengths, as a nested tensor."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.linear, self.how = nn.Linear(4, 4), how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "offsets":
            rows = torch.nested.nested_tensor_from_jagged(x, torch.tensor([0, 2, NODES]))
            return torch.tanh(self.linear(rows)).values()
        layout = torch.jagged if self.how == "jagged" else torch.strided
        rows = torch.nested.as_nested_tensor([x[:2], x[2:]], layout=layout)
        return torch.tanh(torch.cat(list(self.linear(rows).unbind())))


class Quantized(nn.Module):
    """A weight in eight bits, a buffer; torch has these tensors in single precision only."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("weight", torch.quantize_per_tensor(torch.randn(4, 4), 0.1, 0, torch.qint8))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x) @ self.weight.dequantize())


class FakeQuantized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(torch.fake_quantize_per_tensor_affine(x, 0.1, 0, -128, 127)))


class Mkldnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(torch.relu(x.to_mkldnn()).to_dense()))


class NoMemory(nn.Module):
    """Zeros that torch does not write out, and one number expanded."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        zeros = torch._efficientzerotensor(x.shape, dtype=x.dtype)
        return torch.tanh(self.linear(x)) * x.new_tensor(0.5).expand(x.shape) + functional.relu(x * zeros)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["strided", "jagged", "offsets"])
def test_nested_tensors_are_right_or_refused(how: str) -> None:
    assert_follows(
        lambda: Weave(lambda: Ragged(how)),
        *two_streams(NODES, 4),
        under=BOTH,
        refusal=lambda: right_or_refused("'fs.", "test_storageless.py", says="(?i)nested|layout|jagged"),
    )


@pytest.mark.slow
@pytest.mark.parametrize("plan", ["default", "inverted"])
@pytest.mark.parametrize("function", [Quantized, FakeQuantized, Mkldnn])
def test_quantized_and_foreign_layouts_are_right_or_refused(
    function: Callable[[], nn.Module], plan: str
) -> None:
    streams = two_streams(NODES, 4, dtype=torch.float32)
    with right_or_refused("'fs.", "weight", says="(?i)quantized|mkldnn|layout"):
        model, plain = made_twice(lambda: Weave(function), torch.float32)
        net = rg.trace(model, *streams)
        (net.plan,) = plans(net, plan)
        follow(net, plain, streams, tolerance=1e-4)


def test_tensors_that_have_no_memory_of_their_own() -> None:
    assert_follows(lambda: Weave(NoMemory), *two_streams(NODES, 4), under=BOTH)


class Prepared(GivenGraph):
    """Works on the adjacency matrix before it is used: sparse values between nodes."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, a: Tensor, b: Tensor, adjacency: Tensor) -> tuple[Tensor, Tensor]:
        if self.how == "transposed":
            adjacency = adjacency.t()
        elif self.how == "scaled":
            adjacency = adjacency * 0.5
        elif self.how == "made":
            adjacency = torch.sparse_coo_tensor(INDICES, adjacency.to_dense()[:4, 0], (NODES, NODES))
        return super().forward(a, b, adjacency)


@pytest.mark.slow
@pytest.mark.parametrize("sort", ["kept", "recomputed", "inverted"])
@pytest.mark.parametrize("how", ["given", "transposed", "scaled", "made"])
@pytest.mark.parametrize("layout", ["coo", "csr", "csc"])
def test_predicted_bytes_of_sparse_tensors_are_those_measured(layout: str, how: str, sort: str) -> None:
    inputs = (*two_streams(NODES, 4), adjacency(layout))
    net = rg.trace(Prepared(how).double(), *inputs)
    (net.plan,) = plans(net, sort)
    assert activation_bytes(net, *inputs) == (net.plan.peak_bytes, net.plan.held_bytes)
