"""What cannot be traced stays one opaque node with the same behaviour, or is refused with reasons."""

from __future__ import annotations

import copy
import dataclasses
import os
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from tracing import entry_points
from tracing.agreement import agree, equal_runs, linear, mlp, randn

import revgraph as rg


class Body(nn.Module):
    def __init__(self, body: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        self.body = body
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, *args: Any) -> Any:
        return self.body(self, *args)


class Around(nn.Module):
    """Couplings before and after a module that may not be traceable."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.f, self.middle, self.g = mlp(), middle, mlp(seed=5)

    def forward(self, x1: Tensor, x2: Tensor) -> Any:
        x1 = x1 + self.f(x2)
        y = self.middle(x1)
        x2 = x2 + self.g(y)
        return y, x2


def pair() -> tuple[Tensor, Tensor]:
    return randn(3, 4, seed=1), randn(3, 4, seed=2)


def branch(net: Any, x: Tensor) -> Tensor:
    return x * 2 if x.sum() > 0 else x * 3


def item(net: Any, x: Tensor) -> Tensor:
    return x * x.detach().max().item()


def as_float(net: Any, x: Tensor) -> Tensor:
    return x * float(x.detach().mean())


def listed(net: Any, x: Tensor) -> Tensor:
    return x * torch.tensor(x.detach().tolist(), dtype=x.dtype)


def numpied(net: Any, x: Tensor) -> Tensor:
    return x * torch.from_numpy(x.detach().cpu().numpy() * 2)


def without_grad(net: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = net.f(x)
    return x * y


def without_grad_decorated(net: Any, x: Tensor) -> Tensor:
    @torch.no_grad()
    def scale(x: Tensor) -> Tensor:
        return net.f(x)

    return x * scale(x)


def autocasted(net: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        y = net.f(x.float())
    return x * y.double()


def random(net: Any, x: Tensor) -> Tensor:
    return x * torch.randn(4, dtype=x.dtype)


def random_scalar(net: Any, x: Tensor) -> Tensor:
    return x * torch.rand(()).double()


def random_branch(net: Any, x: Tensor) -> Tensor:
    return x * 2 if torch.rand(()) < 0.5 else x * 3


def random_like(net: Any, x: Tensor) -> Tensor:
    return x + torch.randn_like(x) * torch.bernoulli(torch.sigmoid(x))


def random_in_place(net: Any, x: Tensor) -> Tensor:
    return x * torch.empty_like(x).uniform_(0, 1)


def random_of_a_shape(net: Any, x: Tensor) -> Tensor:
    return x * torch.rand(x.shape[0], 1, dtype=x.dtype)


def training_branch(net: Any, x: Tensor) -> Tensor:
    return torch.sin(x) if net.training else torch.cos(x)


def training_and(net: Any, x: Tensor) -> Tensor:
    return torch.sin(x) if net.training and x.shape[1] > 1 else torch.cos(x)


def training_factor(net: Any, x: Tensor) -> Tensor:
    return x * (1.0 + net.training)


def clamped(net: Any, x: Tensor) -> Tensor:
    return x.clamp(min=float(x.detach().min()), max=1.0)


def grad_of_inside(net: Any, x: Tensor) -> Tensor:
    with torch.enable_grad():
        y = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(net.f(y).square().sum(), y)
    return x * gradient


def set_built(net: Any, x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    out[:, 1] = x[:, 0] * 2
    out[x > 0] = 1.0
    return out * x


def filled(net: Any, x: Tensor) -> Tensor:
    out = torch.zeros(x.shape, dtype=x.dtype)
    out[:, :2] = x[:, :2]
    return out + x


def copied_into(net: Any, x: Tensor) -> Tensor:
    out = torch.empty(x.shape, dtype=x.dtype)
    out.copy_(x * 2)
    return out * x


def scattered(net: Any, x: Tensor) -> Tensor:
    index = torch.arange(x.shape[1]).expand_as(x)
    return torch.zeros_like(x).scatter_(1, index, x * 2) + x


def list_comparison(net: Any, x: Tensor) -> Tensor:
    return x * 2 if list(x.shape) == [3, 4] else x * 3


def tensor_in_list(net: Any, x: Tensor) -> Tensor:
    values = [x * 1.0, x * 2.0]
    return values[1] if any(each is x for each in values) else values[0]


def global_counter(net: Any, x: Tensor) -> Tensor:
    net.calls = getattr(net, "calls", 0) + 1
    return x * 2


def tried(net: Any, x: Tensor) -> Tensor:
    try:
        return x.view(-1, 7)
    except RuntimeError:
        return torch.sin(x)


def requires_grad_asked(net: Any, x: Tensor) -> Tensor:
    return x * 2 if x.requires_grad else x * 3


def grad_mode_asked(net: Any, x: Tensor) -> Tensor:
    return x * 2 if torch.is_grad_enabled() else x * 3


def contiguous_asked(net: Any, x: Tensor) -> Tensor:
    return x * 2 if x.is_contiguous() else x * 3


def detached_requires(net: Any, x: Tensor) -> Tensor:
    y = x.detach().requires_grad_()
    return y * 2 + x


def where_mask(net: Any, x: Tensor) -> Tensor:
    return torch.where(x > 0, x, torch.tensor(0.5, dtype=x.dtype)).masked_fill(x > 2, float("-inf")).exp()


def nonzero(net: Any, x: Tensor) -> Tensor:
    return x + x[torch.nonzero(x > 0)[:, 0]].sum(0)


def boolean_mask(net: Any, x: Tensor) -> Tensor:
    return x * x[x > 0].mean()


def unique(net: Any, x: Tensor) -> Tensor:
    return x * torch.unique(torch.round(x)).numel()


MIDDLES = [
    branch, item, as_float, listed, numpied, without_grad, without_grad_decorated, autocasted,
    random, random_scalar, random_branch, random_like, random_in_place, random_of_a_shape, training_branch,
    training_and, training_factor, clamped, grad_of_inside, set_built, filled, copied_into,
    scattered, list_comparison, tensor_in_list, tried, requires_grad_asked,
    grad_mode_asked, contiguous_asked, detached_requires, where_mask, nonzero, boolean_mask, unique,
]  # fmt: skip


def untraceable_parts(name: str) -> nn.Module:
    f = mlp(seed=8)
    return f.float() if name == "autocasted" else f


@pytest.mark.slow
@pytest.mark.parametrize("body", MIDDLES, ids=lambda body: body.__name__)
def test_submodule_behaves_as_before_whatever_it_does(body: Any) -> None:
    model = Around(Body(body, f=untraceable_parts(body.__name__)))
    net = agree(model, *pair(), couplings=2)
    equal_runs(net, model, randn(3, 4, seed=11), randn(3, 4, seed=12))
    net.eval()
    model.eval()
    equal_runs(net, model, randn(3, 4, seed=13) - 2, randn(3, 4, seed=14))


@pytest.mark.slow
@pytest.mark.parametrize("body", MIDDLES, ids=lambda body: body.__name__)
def test_root_behaves_as_before_or_is_refused_with_reasons(body: Any) -> None:
    model = Body(body, f=untraceable_parts(body.__name__))
    try:
        net = rg.trace(model, randn(3, 4))
    except rg.TraceError as error:
        text = str(error)
        assert "Body" in text, text
        assert "submodule" in text, text
        return
    try:
        net(randn(3, 4).requires_grad_())
    except rg.TraceError as error:
        assert "Trace the model again" in str(error)
        return
    for seed in range(3):
        equal_runs(net, model, randn(3, 4, seed=seed))
    for x in (randn(3, 4) - 3, randn(3, 4) + 3, randn(4, 3).t()):
        try:
            with torch.no_grad():
                torch.manual_seed(1)
                found = net(x)
        except rg.TraceError:
            continue
        with torch.no_grad():
            torch.manual_seed(1)
            expected = model(x)
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    net.eval()
    model.eval()
    try:
        net(randn(3, 4))
    except rg.TraceError:
        return
    equal_runs(net, model, randn(3, 4))


@pytest.mark.slow
@pytest.mark.parametrize("body", MIDDLES, ids=lambda body: body.__name__)
def test_function_of_a_coupling_behaves_as_before_whatever_it_does(body: Any) -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = Body(body, f=untraceable_parts(body.__name__))

        def forward(self, x1: Tensor, x2: Tensor) -> Any:
            return x1 + self.f(x2), x2 * 1.0

    if body is grad_of_inside:  # the error names the node to keep
        with pytest.raises(rg.ReplayError, match="differentiates inside its own forward"):
            agree(Half(), *pair())
        return
    agree(Half(), *pair())


def vmapped(self: Any, x: Tensor) -> Tensor:
    return torch.vmap(torch.tanh)(self.f(x))


def copied(self: Any, x: Tensor) -> Tensor:
    return copy.deepcopy(self.f)(x) + self.f(x)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (vmapped, r"torch's C\+\+ code, which takes no traced values \(torch.vmap"),
        (copied, r"a parameter or module that is not part of the model \(a copy made in the forward"),
    ],
)
def test_refusal_speaks_of_the_users_code(body: Any, reason: str) -> None:
    with pytest.raises(rg.TraceError, match=reason):
        rg.trace(Body(body, f=mlp()), randn(3, 4))


@pytest.mark.parametrize("body", [branch, numpied, as_float], ids=lambda body: body.__name__)
def test_refusal_names_the_line_of_the_users_code(body: Any) -> None:
    with pytest.raises(rg.TraceError) as caught:
        rg.trace(Body(body, f=mlp()), randn(3, 4))
    first = body.__code__.co_firstlineno
    assert any(f"test_opaque.py:{first + line}" in str(caught.value) for line in range(5)), str(caught.value)


@pytest.fixture(scope="module")
def outcomes() -> dict[tuple[str, str], tuple[str, str]]:
    """Exit status and error of each case, run outside this process: some used to end the interpreter."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", "from tracing.entry_points import main; main()"],
        capture_output=True, text=True, timeout=1200, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-1000:]
    rows = [line.split("|", 3) for line in done.stdout.splitlines()]
    return {(name, place): (status, text) for name, place, status, text in rows}


# What torch itself refuses here, with its own words.
TORCH_LIMITS = {
    ("reentrant checkpoint", "root"): "incompatible with .grad()",
    ("reentrant checkpoint", "submodule"): "incompatible with .grad()",
    ("reentrant checkpoint", "function"): "incompatible with .grad()",
    ("functional gradient", "function"): "don't yet support saved tensor hooks",
}


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="each case runs in a fork of its own")
@pytest.mark.parametrize("place", entry_points.PLACES)
@pytest.mark.parametrize("name", sorted(entry_points.BODIES))
def test_entry_points_past_torch_functions_behave_as_before(name: str, place: str, outcomes: Any) -> None:
    status, text = outcomes[name, place]
    limit = TORCH_LIMITS.get((name, place))
    if limit is None:
        assert status == "0", f"exit status {status}: {text}"
    else:
        assert limit in text


def test_gradient_mode_inside_is_seen_when_the_net_runs_without() -> None:
    model = Around(Body(grad_mode_asked))
    net = rg.trace(model, *pair())
    with torch.no_grad():
        for one, two in zip(net(*pair()), model(*pair()), strict=True):
            torch.testing.assert_close(one, two, rtol=0, atol=0)


def test_in_place_writes_to_buffers_happen_once_a_step() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(1, dtype=torch.double))
            self.register_buffer("mean", torch.zeros(4, dtype=torch.double))

        def forward(self, x: Tensor) -> Tensor:
            self.count += 1
            self.mean.mul_(0.9).add_(x.detach().mean(0), alpha=0.1)
            return x / self.count + self.mean

    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = Counting()

        def forward(self, x1: Tensor, x2: Tensor) -> Any:
            return x1 + self.f(x2), x2

    agree(Around(Counting()), *pair(), couplings=2)
    agree(Half(), *pair())


def test_buffers_assigned_anew_are_kept_once_a_step() -> None:
    class Assigning(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(1, dtype=torch.double))

        def forward(self, x: Tensor) -> Tensor:
            self.count = self.count + 1
            return x / self.count

    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = Assigning()

        def forward(self, x1: Tensor, x2: Tensor) -> Any:
            return x1 + self.f(x2), x2

    agree(Around(Assigning()), *pair(), couplings=2)
    agree(Half(), *pair())


def test_root_that_writes_a_buffer_is_right_or_refused() -> None:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(1, dtype=torch.double))

        def forward(self, x: Tensor) -> Tensor:
            self.count += 1
            return x / self.count

    try:
        rg.trace(Root(), randn(3, 4))
    except rg.TraceError as error:
        assert "submodule" in str(error)
    else:
        agree(Root(), randn(3, 4))


def test_root_that_assigns_a_buffer_is_right_or_refused() -> None:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(1, dtype=torch.double))

        def forward(self, x: Tensor) -> Tensor:
            self.count = self.count + 1
            return x / self.count

    try:
        rg.trace(Root(), randn(3, 4))
    except rg.TraceError as error:
        assert "submodule" in str(error)
    else:
        agree(Root(), randn(3, 4))


def test_python_counter_of_a_submodule_is_right_or_refused() -> None:
    model = Around(Body(global_counter))
    net = rg.trace(model, *pair())
    assert not hasattr(model.middle, "calls")
    with torch.no_grad():
        net(*pair())
        net(*pair())
    assert model.middle.calls == 2


def test_attribute_left_by_a_submodule_is_the_real_one() -> None:
    """Attention maps and losses that a module leaves behind for its user must not be traced proxies."""

    def leaves_behind(net: Any, x: Tensor) -> Tensor:
        net.last = x * 2
        return net.last + 1

    model = Around(Body(leaves_behind))
    net = rg.trace(model, *pair())
    assert not hasattr(model.middle, "last")
    with torch.no_grad():
        net(*pair())
    assert isinstance(model.middle.last, Tensor)
    assert type(model.middle.last) is Tensor


def test_attribute_left_by_the_root_is_the_real_one_or_refused() -> None:
    def leaves_behind(net: Any, x: Tensor) -> Tensor:
        net.last = x * 2
        return net.last + 1

    model = Body(leaves_behind)
    try:
        net = rg.trace(model, randn(3, 4))
    except rg.TraceError:
        return
    assert not hasattr(model, "last")
    with torch.no_grad():
        net(randn(3, 4))
    assert type(getattr(net, "last", getattr(model, "last", None))) is Tensor


@dataclasses.dataclass
class Output:
    last: Tensor
    hidden: Any = None
    name: str = "out"


class Dictionary(OrderedDict):
    """A model's output that is a dictionary with attributes, as transformers' are."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def dataclass_out(net: Any, x: Tensor) -> Any:
    return Output(x * 2, (x * 3, [x.sin()])) if x.sum() > -1e9 else None


def nested_out(net: Any, x: Tensor) -> Any:
    return (x * 2, {"a": [x.sin(), None, 3]}, "text") if x.sum() > -1e9 else None


def attribute_dict_out(net: Any, x: Tensor) -> Any:
    return Dictionary(last=x * 2, hidden=(x.sin(),))


def none_out(net: Any, x: Tensor) -> Any:
    return (x * 2, None) if x.sum() > -1e9 else None


OUTS: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "dataclass": (dataclass_out, lambda out: out.last + out.hidden[0] * out.hidden[1][0]),
    "nested": (nested_out, lambda out: out[0] + out[1]["a"][0] * out[1]["a"][2]),
    "attributes of a dictionary": (attribute_dict_out, lambda out: out.last + out["hidden"][0]),
    "none": (none_out, lambda out: out[0] if out[1] is None else out[0] * 2),
}


@pytest.mark.parametrize("form", OUTS)
def test_results_of_opaque_modules_are_taken_apart(form: str) -> None:
    make, take = OUTS[form]

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.leaf, self.f, self.g = Body(make), mlp(), mlp(seed=4)

        def forward(self, x1: Tensor, x2: Tensor) -> Any:
            x1 = x1 + self.f(x2)
            y = take(self.leaf(x1))
            return y, x2 + self.g(y)

    agree(Net(), *pair(), couplings=3 if form == "nested" else 2)  # the items are added up there


@pytest.mark.parametrize("form", ["dataclass", "nested", "none"])
def test_results_of_opaque_modules_are_returned_whole(form: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.leaf, self.f = Body(OUTS[form][0]), mlp()

        def forward(self, x1: Tensor, x2: Tensor) -> Any:
            x1 = x1 + self.f(x2)
            return self.leaf(x1)

    model = Net()
    net = rg.trace(model, *pair())
    assert torch.equal(torch.get_rng_state(), torch.get_rng_state())
    equal_runs(net, model, *pair())


def test_data_dependent_output_shape_is_found_by_a_real_run() -> None:
    def picked(net: Any, x: Tensor) -> Tensor:
        return net.f(x[x[:, 0] > 0])

    model = Around(Body(lambda net, x: x[x[:, 0] > -99] * 2))
    agree(model, *pair(), couplings=2)

    class Picks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pick, self.tail = Body(picked, f=linear()), linear(seed=3)

        def forward(self, x: Tensor) -> Tensor:
            return self.tail(torch.tanh(self.pick(x)))

    net = agree(Picks(), randn(6, 4))
    equal_runs(net, Picks(), randn(6, 4, seed=4))


def test_lstm_leaf() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.f = nn.LSTM(4, 4, 2, batch_first=True).double(), mlp()
            self.gru = nn.GRU(4, 4).double()

        def forward(self, x1: Tensor, x2: Tensor) -> Any:
            x1 = x1 + self.f(x2)
            out, (h, c) = self.lstm(x1)
            again, _ = self.gru(out)
            x2 = x2 + self.f(again)
            return x2, h, c

    agree(Net(), randn(2, 3, 4), randn(2, 3, 4, seed=2), couplings=2)


def test_multihead_attention_leaf() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(4).double()
            self.attn, self.mlp = nn.MultiheadAttention(4, 2, batch_first=True).double(), mlp()
            self.scale = nn.Parameter(randn(4))

        def forward(self, x1: Tensor, x2: Tensor, mask: Tensor) -> Any:
            h = self.norm(x2)
            x1 = x1 + self.attn(h, h, h, attn_mask=mask, need_weights=False)[0] * self.scale
            x2 = x2 + self.mlp(x1)
            _, weights = self.attn(x1, x2, x2)
            return x1, x2, weights

    mask = torch.ones(3, 3).triu(1).bool()
    agree(Net(), randn(2, 3, 4), randn(2, 3, 4, seed=2), mask, couplings=2)
    agree(Net().eval(), randn(2, 3, 4), randn(2, 3, 4, seed=2), mask, couplings=2)


@pytest.mark.parametrize("training", [True, False])
def test_transformer_encoder_layer_leaf(training: bool) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.1, batch_first=True).double()
            self.g = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True).double()

        def forward(self, x1: Tensor, x2: Tensor) -> Any:
            x1 = x1 + self.f(x2)
            return x1, x2 + self.g(x1)

    agree(Net().train(training), randn(2, 3, 4), randn(2, 3, 4, seed=2), couplings=2)


def test_packed_sequence_inside_is_opaque() -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(4, 4, batch_first=True).double()

        def forward(self, x: Tensor) -> Tensor:
            packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([3, 2]), batch_first=True)
            out, _ = self.lstm(packed)
            return nn.utils.rnn.pad_packed_sequence(out, batch_first=True, total_length=3)[0]

    agree(Around(Packed()), randn(2, 3, 4), randn(2, 3, 4, seed=2), couplings=2)


def test_model_that_fails_on_its_example_is_a_trace_error() -> None:
    model = Around(linear(7, 7))
    with pytest.raises(rg.TraceError) as caught:
        rg.trace(model, *pair())
    text = str(caught.value)
    assert "Around" in text
    assert "middle" in text or "test_opaque.py" in text, text
    assert "cannot be traced" not in text, f"the model itself fails, untraced as well: {text}"


def test_example_without_tensors_is_a_trace_error() -> None:
    with pytest.raises(rg.TraceError, match="at least one tensor"):
        rg.trace(Body(lambda net, x: torch.ones(3) * x), 3)


def test_model_that_is_no_module_is_a_clear_error() -> None:
    with pytest.raises((TypeError, rg.TraceError), match="Module"):
        rg.trace(lambda x: x, randn(3))  # pyright: ignore


class Detached(nn.Module):
    """The gradient mode changes between half-steps."""

    def __init__(self) -> None:
        super().__init__()
        self.f = linear()

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            gate = torch.sigmoid(y)
        return y, x + self.f(y) * gate


@pytest.mark.slow
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad])
def test_no_grad_in_the_models_own_forward_is_seen_in_any_gradient_mode(mode: Any) -> None:
    model = Detached()
    with mode():
        net = rg.trace(model, *pair())
    equal_runs(net, model, *pair())


@pytest.mark.parametrize("how", ["view", "detach", "data", "other memory"])
def test_write_to_the_models_memory_in_its_own_forward_is_a_trace_error(how: str) -> None:
    class Moving(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = linear()
            self.mean = nn.Parameter(torch.zeros(4, dtype=torch.double), requires_grad=False)

        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            mean = y.detach().mean(0)
            if how == "view":
                self.mean[:2].add_(mean[:2])
            elif how == "detach":
                self.mean.detach().add_(mean)
            elif how == "data":
                self.mean.data.add_(mean)
            else:
                self.mean.data = mean
            return y, x + self.f(y)

    with pytest.raises(rg.TraceError, match=r"test_opaque.py.*(in place|is assigned)"):
        rg.trace(Moving(), *pair())
