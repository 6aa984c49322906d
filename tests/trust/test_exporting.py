"""Programs that run without revgraph (exported, traced as scripts, quantized copies) are the model's."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from engine.samples import Chain, assert_close, batch, doubled, normed
from torch import Tensor, nn

import revgraph as rg

# Script tracing and torch's own quantization are deprecated, and use what is.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning",
    "ignore::FutureWarning",
    "ignore::torch.jit.TracerWarning",
    "ignore:torch.quantize_per_tensor:UserWarning",
)


def traced() -> tuple[rg.ReversibleModule, nn.Module, Tensor]:
    model, plain = doubled(lambda: Chain(2, normed))
    x = batch().detach()
    net = rg.trace(model, x)
    net.plan = rg.decide(net.graph, {})
    return net, plain, x


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("strict", [False, True])
def test_exported_program_is_the_models(strict: bool, training: bool) -> None:
    net, plain, x = traced()
    net.train(training)
    plain.train(training)
    dynamic = {"x": {0: torch.export.Dim("n", min=2, max=64)}}
    ours = torch.export.export(net, (x,), dynamic_shapes=dynamic, strict=strict)
    theirs = torch.export.export(plain, (x,), dynamic_shapes=dynamic, strict=strict)
    operators = [
        [node.target for node in each.graph.nodes if node.op == "call_function"] for each in (ours, theirs)
    ]
    assert operators[0] == operators[1]
    assert ours.state_dict.keys() == theirs.state_dict.keys()
    file = io.BytesIO()
    torch.export.save(ours, file)
    file.seek(0)
    again: Any = torch.export.load(file).module()
    other = torch.cat([x, x * 2])
    assert_close(again(other), plain(other))
    assert_close(net(other), plain(other))


def test_a_traced_script_is_the_models() -> None:
    net, plain, x = traced()
    script = torch.jit.trace(net.eval(), x)
    plain.eval()
    assert_close(script(x * 2), plain(x * 2))


@pytest.mark.slow
def test_a_dynamically_quantized_copy_is_the_models() -> None:
    net, plain, x = traced()
    found, wanted = [
        torch.ao.quantization.quantize_dynamic(each.float().eval(), {nn.Linear}, dtype=torch.qint8)
        for each in (net, plain)
    ]
    assert isinstance(found, rg.ReversibleModule)
    with torch.no_grad():
        assert torch.equal(found(x.float()), wanted(x.float()))
        assert not torch.equal(found(x.float()), net(x.float()))


@pytest.mark.slow
def test_a_net_that_computes_otherwise_than_its_model_is_exported_as_it_computes() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(8, 8).double() for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = x + torch.tanh(block(x))
            return x

    torch.manual_seed(0)
    x = torch.randn(4, 8, dtype=torch.double)
    converted = rg.dual_residual(Residual(), x, alpha=0.8, beta=0.3)
    exact = rg.trace(Chain(2).double(), batch().detach(), exact=2.0**-5)
    for net, given in ((converted, x), (exact, batch().detach())):
        net.eval()
        with torch.no_grad():
            program: Any = torch.export.export(copy.deepcopy(net), (given,)).module()
            assert_close(program(given), net(given))
            assert not torch.allclose(net(given), net._model(given), rtol=1e-6)
