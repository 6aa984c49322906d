"""Adapters by PEFT, put on the model before the trace or on the net after it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from clients.samples import Sentences, bert, gpt2, streams
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

import revgraph as rg

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:fan_in_fan_out"
)

# A model, whether it classifies (or None: it takes a plain tensor), and the modules that get adapters.
CASES: dict[str, tuple[Callable[[], Any], bool | None, list[str]]] = {
    "gpt2": (gpt2, False, ["c_attn", "c_proj"]),
    "bert": (bert, True, ["query", "value"]),
    "streams": (streams, None, ["f.0", "f.2", "head"]),
}


def inputs(classes: bool | None) -> dict[str, Tensor]:
    if classes is None:
        return {"x": torch.randn(4, 32, generator=torch.Generator().manual_seed(1))}
    return Sentences(classes).batch()


def adapted(model: nn.Module, modules: list[str]) -> Any:
    """The model with adapters that are not zero, equal at every call."""
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=modules, lora_dropout=0.1))  # pyright: ignore
    generator = torch.Generator().manual_seed(3)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return wrapped


def step(model: nn.Module, given: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    torch.manual_seed(5)
    result = model(**given)
    loss = result.square().mean() if isinstance(result, Tensor) else result.loss
    loss.backward()
    return loss.detach(), {
        name: each.grad for name, each in model.named_parameters() if each.grad is not None
    }


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_adapters_before_and_after_the_trace_take_the_same(case: str, tmp_path: Path) -> None:
    make, classes, modules = CASES[case]
    given = inputs(classes)
    plain = adapted(make(), modules)
    before = rg.trace(adapted(make(), modules), **given)
    after = adapted(rg.trace(make(), **given), modules)
    wanted = step(plain, given)
    assert all("lora_" in name for name in wanted[1])
    for each in (before, after):
        torch.testing.assert_close(step(each, given), wanted)
    inner: Any = after.base_model.model
    assert isinstance(inner, rg.ReversibleModule)
    nets = before, inner
    couplings = [sum(node.kind == "coupling" for node in net.graph.nodes) for net in nets]
    assert couplings == [6, 6] if classes is None else [0, 0]
    measured = [rg.measure(net, **given) for net in nets]
    assert measured[0].peak_bytes == measured[1].peak_bytes
    assert measured[0].held_bytes == measured[1].held_bytes
    assert measured[0].flops == measured[1].flops
    after.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make(), str(tmp_path))
    torch.testing.assert_close(loaded.state_dict(), after.state_dict())


@pytest.mark.slow
def test_merged_adapters_leave_a_net() -> None:
    given = inputs(True)
    wrapped = adapted(rg.trace(bert(), **given), ["query", "value"]).eval()
    with torch.no_grad():
        wanted = wrapped(**given).logits
        merged = copy.deepcopy(wrapped).merge_and_unload()
        assert isinstance(merged, rg.ReversibleModule)
        torch.testing.assert_close(merged(**given).logits, wanted)
    assert merged.state_dict().keys() == bert().state_dict().keys()
