"""What `rg.saved` tells is what autograd holds: counted independently, and nothing is run for it."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planning.test_prediction import ThreeStreams, Transformer
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.nn.modules import module as calls
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import revgraph as rg
from revgraph import autograd_graph
from revgraph.losses import mean_squares
from revgraph.planning import human_bytes
from revgraph.reporting import as_json, report
from revgraph.saved_table import fold
from revgraph.specs import build as build_spec
from revgraph.specs import example_inputs
from revgraph.trials import differentiable

WAYS = ["data", "trap"] if autograd_graph.TELLS_DATA else ["trap"]


@pytest.fixture(params=WAYS, autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Saved tensors are read as torch 2.10 tells them, and with a trap as before."""
    monkeypatch.setattr(autograd_graph, "TELLS_DATA", request.param == "data")
    torch.manual_seed(0)
    return request.param


def recorded(run: Callable[[], Tensor], *apart: Any) -> tuple[Tensor, int]:
    """What a run returns, and the bytes of what autograd asks hooks to pack in it, without parameters and
    what is apart: an independent count."""
    sizes: dict[int, int] = {}
    alive: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        alive.append(tensor)
        storage = tensor.untyped_storage()
        if not isinstance(tensor._base if tensor._base is not None else tensor, nn.Parameter):
            sizes[storage._cdata] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda packed: packed):
        output = run()
    for tensor in apart:
        sizes.pop(tensor.untyped_storage()._cdata, None)
    return output, sum(sizes.values())


def agree(run: Callable[[], Tensor], *apart: Any) -> rg.SavedTable:
    """The table of a run whose output autograd does not save, once its bytes are those of the recorder."""
    state = torch.get_rng_state()
    hooked, expected = recorded(run, *apart)
    torch.set_rng_state(state)
    output = run()
    table = rg.saved(output, inputs=apart)
    assert table.held_bytes - table.bytes_of("output") == expected
    if autograd_graph.TELLS_DATA:  # the trap tells only the first of what a Function saved
        under_hooks = rg.saved(hooked, inputs=apart)
        assert under_hooks.held_bytes == table.held_bytes
        assert {row.packed_by for row in under_hooks.rows if row.kind == "activation"} <= {__name__}
    return table


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x, None, x.exp())
        return 2 * x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return 2 * gradients[0]


class Plain(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Recurrent(nn.LSTM):
    def __init__(self) -> None:
        super().__init__(8, 8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[0]


def views(x: Tensor) -> Tensor:
    one, two = x.tanh().chunk(2, -1)
    return (one.transpose(0, 1) * two.transpose(0, 1)).exp()


MODELS: dict[str, Callable[[], nn.Module]] = {
    "an MLP": lambda: nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8), nn.Sigmoid()),
    "in-place ReLUs": lambda: nn.Sequential(nn.Linear(8, 8), nn.ReLU(True), nn.Linear(8, 4), nn.ReLU(True)),
    "convolutions": lambda: nn.Sequential(
        nn.Unflatten(-1, (2, 2, 2)), nn.Conv2d(2, 4, 2, padding=1), nn.BatchNorm2d(4), nn.MaxPool2d(2)
    ),
    "a transformer's layer": lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
    "an LSTM": lambda: Recurrent(),
    "a Function": lambda: Plain(lambda x: Doubled.apply(x.tanh())),
    "dropout": lambda: nn.Sequential(nn.Linear(8, 8), nn.Dropout(), nn.Linear(8, 8)),
    "views": lambda: Plain(views),
    "one storage saved often": lambda: Plain(lambda x: (y := x.tanh()) * y.exp() * y.view(-1, 4, 2).sum()),
    "complex numbers": lambda: Plain(lambda x: torch.fft.fft(x.tanh()).mul(1j).abs()),
    "an index": lambda: Plain(lambda x: x.tanh()[torch.tensor([0, 2]), torch.tensor([1, 1])].exp()),
    "a mask": lambda: Plain(lambda x: x.masked_fill(torch.rand(x.shape) > 0.5, 0).softmax(-1)),
    "numbers": lambda: Plain(lambda x: (x * 0.5 / 3).pow(2) ** 1.5),
}


@pytest.mark.parametrize("name", MODELS)
def test_bytes_are_those_that_a_recorder_counts(name: str) -> None:
    model, x = MODELS[name](), torch.randn(3, 8, requires_grad=True)
    agree(lambda: model(x).sum(), x)


OPERATIONS: list[Callable[[Tensor, Tensor], Tensor]] = [
    lambda a, b: a.tanh(),
    lambda a, b: a * b,
    lambda a, b: a + b,
    lambda a, b: (a + b).relu_(),
    lambda a, b: torch.cat([a, b]).chunk(2)[0],
    lambda a, b: a.t().contiguous().t().exp(),
    lambda a, b: a @ b.t() @ b,
    lambda a, b: nn.functional.dropout(a, 0.3),
    lambda a, b: a.softmax(-1).detach() * b,
    lambda a, b: nn.functional.layer_norm(a, (4,)),
    lambda a, b: Doubled.apply(a.expand(2, *a.shape)[0]),
]


def test_bytes_of_random_graphs_are_those_that_a_recorder_counts() -> None:
    steps = st.tuples(st.integers(0, len(OPERATIONS) - 1), st.integers(0, 20), st.integers(0, 20))

    @settings(max_examples=100, deadline=None, database=None)
    @given(st.lists(steps, min_size=1, max_size=12))
    def holds(recipe: list[tuple[int, int, int]]) -> None:
        x = torch.randn(4, 4, requires_grad=True)

        def run() -> Tensor:
            values = [x]
            for operation, one, two in recipe:
                values.append(OPERATIONS[operation](values[one % len(values)], values[two % len(values)]))
            return torch.stack(values).sum()

        agree(run, x)

    holds()


def test_a_storage_counts_once_and_tells_who_shares_it() -> None:
    x = torch.randn(4, 8, requires_grad=True)
    y = x.exp()
    table = rg.saved((y.view(8, 4).t().sin() + 1).sum())
    (row,) = (row for row in table.rows if row.kind == "activation")
    assert (row.label, row.nbytes, row.shape, row.is_part) == ("exp(result)", 128, (4, 8), False)
    assert row.shares == ("sin(self)",)


def test_of_a_view_the_whole_storage_counts() -> None:
    x = torch.randn(100, 4, requires_grad=True)
    table = rg.saved((x + 1)[:2].pow(2).sum())
    (row,) = (row for row in table.rows if row.kind == "activation")
    assert (row.nbytes, row.shape, row.is_part, row.form) == (1600, (2, 4), True, "2x4 f32 *")
    assert "* a view" in str(table)


def test_parameters_buffers_and_inputs_are_apart() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4).eval(), nn.Linear(4, 4))
    x = torch.randn(2, 4, requires_grad=True)
    table = rg.saved(model(x).sum(), model)
    assert table.input_bytes == x.nbytes
    assert table.bytes_of("parameter") == sum(each.nbytes for each in model.parameters())
    assert table.bytes_of("buffer") == 2 * 16
    named = {f"{row.path}.{row.field}" for row in table.rows if row.kind in ("parameter", "buffer")}
    assert named == {*dict(model.named_parameters()), "1.running_mean", "1.running_var"}


def test_an_input_without_gradient_is_told_by_the_caller() -> None:
    model, x = nn.Linear(4, 4), torch.randn(2, 4)
    assert rg.saved(model(x).sum()).held_bytes == x.nbytes + 4
    table = rg.saved(model(x).sum(), inputs={"x": [x]})
    assert (table.held_bytes, table.input_bytes) == (4, x.nbytes)


def test_a_frozen_parameter_is_a_parameter_without_a_model_too() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4).requires_grad_(False))
    table = rg.saved(model(torch.randn(2, 4, requires_grad=True)).sum())
    assert table.parameter_bytes == 16 * 4 + 4 * 4 + 16 * 4


def test_tensors_that_a_function_puts_on_its_ctx_count() -> None:
    class Own(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.kept = {"mask": [x > 0], "number": 3}
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> Tensor:
            return gradients[0]

    table = rg.saved(Own.apply(torch.randn(5, requires_grad=True)))
    assert [(row.label, row.nbytes) for row in table.rows if row.kind == "activation"] == [("Own(kept)", 5)]


def test_sparse_tensors_count_with_their_indices() -> None:
    sparse = torch.eye(4).to_sparse()
    table = rg.saved(torch.sparse.mm(sparse, torch.randn(4, 4, requires_grad=True)).sum())
    assert table.held_bytes == 4 * 4 + 2 * 4 * 8 + 4


def test_a_wrapper_counts_as_what_it_wraps() -> None:
    nested = torch.nested.nested_tensor([torch.randn(2, 3), torch.randn(4, 3)], layout=torch.jagged)
    table = rg.saved(nested.requires_grad_().exp().values().sum())
    (row,) = (row for row in table.rows if row.operator == "exp")
    assert (row.nbytes, row.form) == (6 * 3 * 4 + 3 * 8, "2x?x3 f32")  # values and offsets


def test_fake_tensors_count_as_if_they_were_there() -> None:
    x = torch.empty(1_000_000, 1_000, device="meta", requires_grad=True)
    assert rg.saved(x.exp().sum()).held_bytes == x.nbytes + 4


def test_modes_around_the_call_see_nothing_of_it() -> None:
    class Counting(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.count += 1
            return func(*args, **(kwargs or {}))

    x = torch.randn(4, requires_grad=True)
    loss = (x.exp() * 0.5).sum()
    with Counting() as mode:
        assert rg.saved(loss).held_bytes == 20
    assert mode.count == 0


def test_a_graph_of_gradients_counts_too() -> None:
    x = torch.randn(4, requires_grad=True)
    (gradient,) = torch.autograd.grad(x.exp().sum(), x, create_graph=True)
    assert "exp" in {row.operator for row in rg.saved(gradient.pow(3).sum()).rows}


@pytest.mark.parametrize("outputs", [torch.ones(2), torch.ones(2, requires_grad=True), [], {"a": None}])
def test_outputs_without_a_graph_are_an_error(outputs: Any) -> None:
    with pytest.raises(rg.GraphError, match="none of them has a grad_fn"):
        rg.saved(outputs)


def test_a_module_instead_of_a_loss_is_an_error() -> None:
    with pytest.raises(rg.GraphError, match=r"not at a module \(Linear\). Give the loss, or a function"):
        rg.saved(nn.Linear(2, 2))


def test_outputs_may_be_nested() -> None:
    @dataclass
    class Output:
        loss: Tensor
        others: dict[str, tuple[Tensor, None]]

    x = torch.randn(4, requires_grad=True)
    y = x.exp()
    assert rg.saved(Output(y.sum(), {"y": (y, None)})).held_bytes == y.nbytes + 4


def test_after_backward_the_table_says_that_all_is_freed() -> None:
    x = torch.randn(4, requires_grad=True)
    loss = (Doubled.apply(x.exp()) + torch.stack([x, x])[torch.tensor([0])]).sum()
    before = rg.saved(loss)
    loss.backward(retain_graph=True)
    assert rg.saved(loss) == before
    loss.backward()
    table = rg.saved(loss)
    assert (table.held_bytes, table.freed) == (loss.nbytes, 3)
    assert "freed, as a backward has run: what 3 of the operators saved" in str(table)


def test_an_edit_of_a_view_hides_what_it_saved_and_the_table_says_so() -> None:
    x = torch.randn(4, 4, requires_grad=True)
    y = x + 1
    y[0].mul_(x[1].exp())
    table = rg.saved(y.sum())
    assert table.unseen == {"copy_slices": 1}
    assert "missing, as Python cannot see it: what 1 x copy_slices saved" in str(table)


def test_a_saved_tensor_that_was_edited_is_still_held(way: str) -> None:
    y = torch.randn(4, requires_grad=True).exp()
    y.add_(1)
    table = rg.saved(y.sum())
    assert table.unseen == ({} if way == "data" else {"exp": 1})
    assert table.held_bytes == (y.nbytes if way == "data" else 0) + 4


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 4)) for _ in "abc"
        )
        self.reentrant = reentrant
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = checkpoint(self.run, layer, x, use_reentrant=self.reentrant, preserve_rng_state=False)
        return x

    def run(self, layer: nn.Module, x: Tensor) -> Tensor:
        self.calls += 1
        return layer(x)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_holds_its_inputs_and_is_not_replayed(reentrant: bool) -> None:
    model, x = Checkpointed(reentrant), torch.randn(2, 4, requires_grad=True)
    table = rg.saved(lambda: model(x).sum(), model)
    assert model.calls == 3
    assert table.held_bytes == 2 * x.nbytes + 4
    if not reentrant:
        (row,) = (row for row in table.folded() if row.kind == "stored")
        assert (row.path, row.label, row.count) == ("layers.1-2", "stored by torch.utils.checkpoint", 2)
        assert "rebuilt in backward by torch.utils.checkpoint: 15 tensors" in str(table)


def test_what_is_offloaded_counts_where_it_is() -> None:
    x = torch.randn(4, requires_grad=True)
    with save_on_cpu():
        loss = x.exp().sum()
    (row,) = (row for row in rg.saved(loss).rows if row.kind == "activation")
    assert (row.label, row.nbytes, row.packed_by) == ("exp(result)", 16, "torch.autograd.graph")


class Packs:
    """Packs numbers, and keeps the tensors itself, as offloaders do."""

    def __init__(self, **others: Any) -> None:
        self.kept: dict[int, Tensor] = {}
        self.others = others

    def pack(self, tensor: Tensor) -> int:
        self.kept[len(self.kept)] = tensor.detach().clone()
        return len(self.kept) - 1

    def unpack(self, packed: int) -> Tensor:
        raise AssertionError("an unpack hook was run")


def packed_by(packer: Any) -> Tensor:
    x = torch.randn(4, requires_grad=True)
    with saved_tensors_hooks(packer.pack, packer.unpack):
        return x.exp().tanh().sum()


def test_no_hook_is_run_and_what_its_object_keeps_is_found() -> None:
    table = rg.saved(packed_by(Packs()))
    assert (table.held_bytes, table.bytes_of("stored")) == (2 * 16 + 4, 2 * 16)
    assert f"packed, it is not known how, by {__name__}: 2 tensors" in str(table)


def test_what_a_hook_knows_of_other_packages_is_not_looked_into() -> None:
    packer = Packs(model=nn.Linear(8, 8), trainer=SimpleNamespace(data=torch.randn(1000)))
    assert rg.saved(packed_by(packer)).bytes_of("stored") == 2 * 16


def test_a_hook_that_keeps_nothing_in_sight_is_told_as_unknown() -> None:
    elsewhere: list[bytes] = []

    class Away(Packs):
        def pack(self, tensor: Tensor) -> int:
            elsewhere.append(bytes(tensor.detach().numpy()))
            return len(elsewhere) - 1

    table = rg.saved(packed_by(Away()))
    assert (table.held_bytes, table.count_of("packed")) == (4, 2)


def test_an_owner_of_hooks_tells_what_it_holds_by_name() -> None:
    net = rg.trace(rg.Additive(nn.Linear(4, 4), nn.Linear(4, 4)), *torch.randn(2, 3, 4))
    name, x = net.graph.inputs[0], torch.randn(3, 4)

    class Tape(Packs):
        plan = net.plan

        def held_for_backward(self) -> Iterator[tuple[str, Tensor]]:
            yield "layers.0.y", self.kept[0]
            yield name, x

    table = rg.saved(packed_by(Tape()))
    assert table.planned_bytes == net.plan.held_bytes
    assert (table.bytes_of("stored"), table.input_bytes) == (16, x.nbytes + 16)
    (row,) = (row for row in table.rows if row.kind == "stored")
    assert (row.path, row.label) == ("layers.0.y", f"stored by {__name__}")
    assert f"rebuilt in backward by {__name__}: 2 tensors" in str(table)


def test_an_owner_counts_once_behind_several_hooks() -> None:
    net = rg.trace(rg.Additive(nn.Linear(4, 4), nn.Linear(4, 4)), *torch.randn(2, 3, 4))

    class Tape:
        plan = net.plan
        value = torch.randn(5)

        def held_for_backward(self) -> Iterator[tuple[str, Tensor]]:
            yield "value", self.value

    class Node:
        def __init__(self, tape: Tape) -> None:
            self.tape = tape

        def pack(self, tensor: Tensor) -> tuple[int, str]:
            return 0, "node"

        def unpack(self, packed: tuple[int, str]) -> Tensor:
            raise AssertionError("an unpack hook was run")

    tape = Tape()
    table = rg.saved([packed_by(Node(tape)), packed_by(Node(tape))])
    assert (table.planned_bytes, table.bytes_of("stored")) == (net.plan.held_bytes, 20)
    assert table.count_of("rebuilt") == 4


def test_nothing_is_kept_alive() -> None:
    packer = Packs()
    loss = packed_by(packer)
    gone = weakref.ref(packer)
    gc.collect()
    gc.disable()
    try:
        rg.saved(loss)
        del loss, packer
        assert gone() is None
    finally:
        gc.enable()


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.act, self.drop = nn.GELU(), nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(self.down(self.act(self.up(self.norm(x))).tanh()))


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 8)
        self.layers = nn.ModuleList(Layer() for _ in range(12))
        self.head = nn.Linear(8, 10, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def stack_loss(model: nn.Module, tokens: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())


def test_modules_by_their_calls() -> None:
    model, tokens = Stack(), torch.randint(10, (2, 3))
    table = rg.saved(lambda: stack_loss(model, tokens), model, inputs=tokens)
    assert table.paths == "calls"
    assert {(row.path, row.label): row.count for row in table.folded()} == {
        ("layers.0-11.norm", "layer_norm(input)"): 12,
        ("layers.0-11.norm", "layer_norm(result1)"): 12,
        ("layers.0-11.norm", "layer_norm(result2)"): 12,
        ("layers.0-11.up", "addmm(mat1)"): 12,
        ("layers.0-11.act", "gelu(self)"): 12,
        ("layers.0-11", "tanh(result)"): 12,
        ("layers.0-11.drop", "mul(other)"): 12,
        ("head", "mm(self)"): 1,
        ("", "log_softmax(result)"): 1,
        ("", "nll_loss(total_weight)"): 1,
        ("", "output"): 1,
    }


def test_modules_by_parameters_are_those_around() -> None:
    model, tokens = Stack(), torch.randint(10, (2, 3))
    exact = rg.saved(lambda: stack_loss(model, tokens), model, inputs=tokens)
    table = rg.saved(stack_loss(model, tokens), model, inputs=tokens)
    assert table.paths == "parameters"
    assert table.held_bytes == exact.held_bytes
    for found, true in zip(table.rows, exact.rows, strict=True):
        assert (found.operator, found.field, found.nbytes) == (true.operator, true.field, true.nbytes)
        assert true.path == found.path or found.path == "" or true.path.startswith(f"{found.path}.")
    paths = {(row.path, row.label) for row in table.folded()}
    assert {("layers.0-11", "gelu(self)"), ("layers.0-11.norm", "layer_norm(input)")} <= paths
    assert "modules: by the parameters that operators read" in str(table)


def test_frozen_parameters_and_casts_name_modules_too() -> None:
    model = nn.Sequential(nn.Linear(4, 8).requires_grad_(False), nn.Tanh(), nn.Linear(8, 4))
    x = torch.randn(2, 4, requires_grad=True)
    hidden = model[:2](x)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model[2](hidden).sum()
    table = rg.saved(loss, model)
    assert {row.label: row.path for row in table.rows if row.kind == "activation"} == {
        "tanh(result)": "",
        "addmm(mat1)": "2",
        "addmm(mat2)": "2",
    }
    assert {row.path for row in table.rows if row.kind == "parameter"} == {"0", "2"}


def test_a_module_that_is_called_twice_has_one_line() -> None:
    layer = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    model, x = nn.Sequential(layer, layer), torch.randn(2, 4, requires_grad=True)
    table = rg.saved(lambda: model(x).sum(), model)
    assert [(row.path, row.label, row.count) for row in table.folded()][:1] == [("0.1", "tanh(result)", 2)]


def test_the_hooks_on_calls_go_even_after_an_exception() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        rg.saved(lambda: model(torch.ones(2, 3)), model)
    assert not calls._global_forward_hooks and not calls._global_forward_pre_hooks
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_call_that_fails_inside_leaves_the_right_module() -> None:
    class Tries(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wrong = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            try:
                return self.wrong(x)
            except RuntimeError:
                return x.exp()

    model, x = nn.Sequential(Tries()), torch.randn(2, 4, requires_grad=True)
    assert [row.path for row in rg.saved(lambda: model(x).sum(), model).rows if row.operator == "exp"] == [
        "0"
    ]


def test_graph_model_and_random_state_are_left_as_they_were() -> None:
    model, x = MODELS["a transformer's layer"](), torch.randn(3, 8, requires_grad=True)
    loss = model(x).sum()
    state = torch.get_rng_state()
    expected = torch.autograd.grad(loss, [x, *model.parameters()], retain_graph=True)
    rg.saved(loss, model)
    found = torch.autograd.grad(loss, [x, *model.parameters()])
    assert all(torch.equal(one, two) for one, two in zip(found, expected, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


def net_and_inputs(name: str) -> tuple[rg.ReversibleModule, tuple[Any, ...]]:
    if name in ("transformer", "three streams"):
        inputs = (torch.randint(50, (3, 10)),) if name == "transformer" else tuple(torch.randn(3, 5, 8))
        return rg.trace(Transformer() if name == "transformer" else ThreeStreams(), *inputs), inputs
    built = build_spec(name, batch=2)
    inputs = example_inputs(built)
    return rg.trace(built.module, *inputs), inputs


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["revnet-38", "resnet-32", "realnvp", "revgru", "transformer", "three streams"]
)
def test_a_reversible_net_holds_what_its_plan_foresaw(name: str) -> None:
    net, inputs = net_and_inputs(name)
    for plan in [rg.keep_all(net.graph), rg.decide(net.graph, {}), *rg.frontier(net.graph, points=4)]:
        net.plan = plan
        loss = mean_squares(differentiable(net(*inputs)))
        table = rg.saved(loss, net, inputs=inputs)
        assert table.held_bytes == table.planned_bytes == plan.held_bytes


def test_a_reversible_net_is_not_replayed() -> None:
    net, inputs = net_and_inputs("three streams")
    net.plan = rg.decide(net.graph, {node.name: "recompute" for node in net.graph.planned})
    count: list[int] = []
    net.get_submodule("bend").register_forward_pre_hook(lambda *_: count.append(1))
    table = rg.saved(lambda: mean_squares(differentiable(net(*inputs))), net, inputs=inputs)
    assert len(count) == 1
    assert table.count_of("rebuilt") > 0
    assert table.bytes_of("rebuilt") == 0
    assert "rebuilt in backward by revgraph" in str(table)
    assert {row.path.split(".")[0] for row in table.rows if row.kind == "rebuilt"} >= {"f", "bend"}


def test_the_text_fits_80_columns_and_its_rows_add_up() -> None:
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 6)
    x = torch.randn(3, 20, 8)
    table = rg.saved(lambda: model(x).sum(), model, inputs=x)
    lines = str(table).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith(f"{human_bytes(table.held_bytes)} held in ")
    assert sum(row.nbytes * row.count for row in table.folded()) == table.held_bytes
    assert len(lines) < len(table.rows) / 3


def test_many_small_rows_are_summed_up_in_the_text() -> None:
    small = [rg.SavedRow(name, "relu", "result", "activation", 4) for name in "abcde"]
    table = rg.SavedTable((rg.SavedRow("big", "relu", "result", "activation", 10**6), *small))
    assert str(table).splitlines()[-1] == "and 5 lines of less than half a percent: 20 B in 5 tensors"
    assert len(str(table).splitlines()) == 5
    few = str(rg.SavedTable(table.rows[:4]))
    assert "less than" not in few and len(few.splitlines()) == 7


def test_rows_fold_only_where_each_layer_has_the_same() -> None:
    def row(path: str, nbytes: int = 8) -> rg.SavedRow:
        return rg.SavedRow(path, "relu", "result", "activation", nbytes)

    def folded(*rows: rg.SavedRow) -> list[tuple[str, int]]:
        return [(each.path, each.count) for each in fold(rows)]

    grid = [row(f"stages.{stage}.blocks.{block}") for stage in range(3) for block in range(4)]
    assert folded(*grid) == [("stages.0-2.blocks.0-3", 12)]
    assert folded(*grid[:-1]) == [("stages.0-1.blocks.0-3", 8), ("stages.2.blocks.0-2", 3)]
    assert folded(row("a.9"), row("a.10"), row("a.12")) == [("a.9-10", 2), ("a.12", 1)]
    assert folded(row("a.0"), row("a.0"), row("a.1")) == [("a.0", 2), ("a.1", 1)]
    assert folded(row("a.0"), row("a.1", 16)) == [("a.0", 1), ("a.1", 1)]
    assert folded(row("a.x"), row("a.y")) == [("a.x", 1), ("a.y", 1)]


def test_the_table_is_reported_and_shown_in_notebooks() -> None:
    model, x = nn.Linear(4, 4), torch.randn(2, 4)
    table: Any = rg.saved(model(x).sum(), model)
    data = json.loads(json.dumps(as_json(table)))
    assert data["held_bytes"] == table.held_bytes == 36
    assert data["rows"][0]["operator"] == "addmm"
    assert report(table).rows == (
        ("32 B x 1", "89", "", "addmm(mat1)", "2x4 f32"),
        ("4 B x 1", "11", "", "output", "scalar f32"),
    )
    assert ElementTree.fromstring(table._repr_html_()).tag == "table"
