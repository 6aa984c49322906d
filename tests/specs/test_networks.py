"""The built module behaves as any module of torch."""

from __future__ import annotations

import copy
import gc
import inspect
import io
import pickle
import weakref

import pytest
import torch
from torch import Tensor, fx, nn

from revgraph import specs
from revgraph.blocks import Sum
from revgraph.couplings import Boundary, Coupling
from revgraph.specs import Network
from revgraph.wiring import Wiring

TEXT = """
name: small
description: Two half-steps between a boundary and a sum.
batch: 3
inputs:
  x: [4]
  scale: {shape: [2], batched: false, fill: 2}
layers:
  - start: {Linear: [4, 4]}
  - streams: {Split: 2, out: [x1, x2]}
  - grown: {Sum: , in: [x2, scale]}
  - unit: {Additive: {f: {Bilinear: [2, 2, 2]}}, target: x1, others: [x2, grown]}
  - end: {Concatenate: , in: [x1, x2]}
"""


def small() -> tuple[Network, tuple[Tensor, ...]]:
    built = specs.build(TEXT)
    return built.module, specs.example_inputs(built)


def test_built_says_what_the_specification_declares() -> None:
    built = specs.build(TEXT)
    assert (built.name, built.description) == ("small", "Two half-steps between a boundary and a sum.")
    x, scale = built.inputs
    assert (x.name, x.shape, x.dtype) == ("x", (3, 4), torch.float32)
    assert (scale.name, scale.shape) == ("scale", (2,))
    assert torch.equal(specs.example_inputs(built)[1], torch.full((2,), 2.0))
    assert specs.build(TEXT, batch=7).inputs[0].shape == (7, 4)


def test_pickle_and_deepcopy_give_equal_networks_apart() -> None:
    net, inputs = small()
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert type(twin) is type(net)
        torch.testing.assert_close(twin(*inputs), net(*inputs), rtol=0, atol=0)
        with torch.no_grad():
            twin.get_submodule("start").weight.zero_()
        assert net.get_submodule("start").weight.any()


def test_state_dict_goes_through_a_weights_only_file() -> None:
    net, inputs = small()
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    other, _ = small()
    other.load_state_dict(torch.load(file, weights_only=True))
    torch.testing.assert_close(other(*inputs), net(*inputs), rtol=0, atol=0)


def test_signature_names_the_inputs() -> None:
    net, (x, scale) = small()
    assert list(inspect.signature(net.forward).parameters) == ["x", "scale"]
    torch.testing.assert_close(net(scale=scale, x=x), net(x, scale))
    with pytest.raises(TypeError, match="the inputs are x, scale, but 1 were given"):
        net(x)
    with pytest.raises(TypeError, match="but 1 were given and y by name"):
        net(x, y=scale)


class Leaves(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (Boundary, Coupling, Wiring, Sum)) or super().is_leaf_module(
            m, module_qualified_name
        )


@pytest.mark.parametrize("name", ["small", "revnet-38"])
def test_torch_fx_traces_it_into_single_calls(name: str) -> None:
    built = specs.build(TEXT if name == "small" else name, batch=2)
    net, inputs = built.module.eval(), specs.example_inputs(built)
    traced = fx.GraphModule(net, Leaves().trace(net))
    torch.testing.assert_close(traced(*inputs), net(*inputs), rtol=0, atol=0)
    calls = [node.target for node in traced.graph.nodes if node.op == "call_module"]
    assert calls == [step.module for step in net.steps]


def test_an_error_in_a_layer_names_the_layer_and_its_line() -> None:
    net, (x, scale) = small()
    with pytest.raises(RuntimeError, match="mat1 and mat2") as caught:
        net(x[:, :3], scale)
    assert caught.value.__notes__ == ["in layer 'start', declared at text:9"]


def test_a_module_that_returns_another_number_of_values_is_an_error_naming_out() -> None:
    text = "inputs: {x: [3, 4]}\nlayers:\n  - a: {MultiheadAttention: [4, 1], in: [x, x, x]}\n"
    built = specs.build(text)
    with pytest.raises(
        TypeError, match=r"'a' returned 2 values, but 1 are named: name them all with `out`, at text:3"
    ):
        built.module(*specs.example_inputs(built))


class Watch(nn.Module):
    """Remembers its results weakly, and how many are alive when it runs again."""

    def __init__(self) -> None:
        super().__init__()
        self.results: list[weakref.ref[Tensor]] = []
        self.most = 0

    def forward(self, x: Tensor) -> Tensor:
        self.most = max(self.most, sum(result() is not None for result in self.results))
        y = x + 1
        self.results.append(weakref.ref(y))
        return y


def test_values_are_let_go_after_their_last_use() -> None:
    specs.register("Watch", Watch)
    text = "inputs: {x: [4]}\nlayers:\n  - a: Watch\n  - again: {use: a, repeat: 20}\n"
    built = specs.build(text)
    gc.disable()
    try:
        built.module(torch.zeros(2, 4))
    finally:
        gc.enable()
    watch = built.module.get_submodule("a")
    assert isinstance(watch, Watch)
    # The value that is read, and at most the one before it.
    assert watch.most <= 2
    assert len(watch.results) == 21


def test_examples_do_not_depend_on_the_random_state_and_fit_their_dtypes() -> None:
    built = specs.build("""
inputs:
  x: [3]
  half: {shape: [2, 2], dtype: bfloat16}
  tokens: {shape: [5], dtype: int64}
  mask: {shape: [5], dtype: bool, fill: true, batched: false}
layers:
  - all: {Sum: , in: [x, half, tokens, mask]}
""")
    x, half, tokens, mask = specs.example_inputs(built)
    torch.rand(3)
    assert torch.equal(specs.example_inputs(built)[0], x)
    assert (half.dtype, tokens.dtype, mask.dtype) == (torch.bfloat16, torch.int64, torch.bool)
    assert tokens.shape == (2, 5) and not tokens.any()
    assert mask.shape == (5,) and mask.all()
    assert len(set(x.flatten().tolist())) == 6
