"""What is asked of a client: a trace, right gradients and training, bytes and FLOPs, a plan at full size.

Right is what ordinary autograd gives for a deep copy of the model in float64 with the same random numbers.
"""

from __future__ import annotations

import copy
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import revgraph as rg
from benchmarks.clients.client import Client, Example
from benchmarks.clients.weighing import Weight, weigh
from benchmarks.shared import cpu_seconds
from revgraph.expressions import map_leaves

STEPS = 10
# What rounding in float64 may make of gradients and losses.
LIMIT = 1e-8
# A gradient that is zero but for rounding (a bias in front of a normalization) is compared at this share of
# the model's largest.
ZERO = 1e-6
# What FLOPs ratios of equal plans may differ by.
ROUNDING = 1e-6

Tell = Callable[[dict[str, Any]], None]


def trial(client: Client, tell: Tell) -> None:
    """Put a client through every stage, and tell what each found, or why it failed, as it ends."""
    plans: list[rg.Plan] = []  # of the float64 net, to be searched for once
    stages: dict[str, Callable[[], dict[str, Any]]] = {
        "trace": lambda: _found(_net_of(_made(client.tiny))),
        "gradients": lambda: _gradients(client, plans),
        "training": lambda: _training(client, plans),
        "bytes": lambda: _bytes(client),
    }
    if client.full is not None:
        stages["full"] = lambda: _full(client)
    for stage, run in stages.items():
        try:
            tell({stage: run()})
        except Exception as error:
            traceback.print_exc()
            tell({stage: {"problem": f"{type(error).__name__}: {error}"}})
            if stage == "trace":  # the others would fail in the same way
                return


def _made(make: Callable[[], Example], dtype: torch.dtype | None = None) -> Example:
    """An example, with the same numbers each time; in another precision if one is given."""
    torch.manual_seed(0)
    example = make()
    example.model.train()
    if dtype is None:
        return example

    def cast(leaf: Any) -> Any:
        is_float = isinstance(leaf, Tensor) and leaf.is_floating_point()
        return leaf.detach().to(dtype).requires_grad_(leaf.requires_grad) if is_float else leaf

    return Example(example.model.to(dtype), map_leaves(cast, example.args), map_leaves(cast, example.kwargs))


def _net_of(example: Example) -> rg.ReversibleModule:
    return rg.trace(example.model, *example.args, **example.kwargs)


def _found(net: rg.ReversibleModule) -> dict[str, Any]:
    planned = [node for node in net.graph.nodes if node.kind in ("coupling", "boundary")]
    return {"nodes": len(planned), "couplings": sum(node.kind == "coupling" for node in planned)}


def _pair(client: Client) -> tuple[Example, Example]:
    """The model under ordinary autograd, and a net of an equal one, both in float64."""
    ours = _made(client.tiny, torch.float64)
    plain = copy.deepcopy(ours)
    client.plain(plain.model)
    return plain, Example(_net_of(ours), ours.args, ours.kwargs)


def _step(client: Client, example: Example, seed: int) -> Tensor:
    torch.manual_seed(seed)
    loss = client.loss(example.model(*example.args, **example.kwargs))
    loss.backward()
    return loss.detach()


def _gradients(client: Client, plans: list[rg.Plan]) -> dict[str, Any]:
    """The largest error of a gradient, under the default plan and that of the least peak.

    Raises:
        AssertionError: it is too large, or other parameters have gradients.
    """
    plain, ours = _pair(client)
    net = ours.model
    assert isinstance(net, rg.ReversibleModule)
    buffers = {name: value.clone() for name, value in net.named_buffers()}
    plans.append(net.plan)
    _step(client, plain, 1)
    wanted = _named_gradients(plain)
    errors: dict[str, float] = {}
    for name, plan in (("default", net.plan), ("least", rg.plan(net.graph, budget="least"))):
        net.plan = plan
        for buffer_name, value in net.named_buffers():
            value.copy_(buffers[buffer_name])
        net.zero_grad(set_to_none=True)
        _step(client, ours, 1)
        found = _named_gradients(ours)
        differing = wanted.keys() ^ found.keys()
        assert not differing, f"gradients of {sorted(differing)} are there in one of the two"
        errors[name] = _largest_error(found, wanted)
    error = max(errors.values())
    assert error <= LIMIT, f"gradients are wrong by {error:.2g} of the largest element"
    return {"error": error}


def _named_gradients(example: Example) -> dict[str, Tensor]:
    return {name: each.grad for name, each in example.model.named_parameters() if each.grad is not None}


def _largest_error(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    scale = max(each.abs().max().item() for each in wanted.values() if each.numel())
    errors = [
        ((found[name] - each).abs().max() / each.abs().max().clamp(min=ZERO * scale)).item()
        for name, each in wanted.items()
        if each.numel()
    ]
    assert all(error == error for error in errors), "a gradient is not a number"
    return max(errors)


def _training(client: Client, plans: list[rg.Plan]) -> dict[str, Any]:
    """The largest difference of a loss over ten steps of AdamW, and of a weight or buffer after them.

    Raises:
        AssertionError: a difference is too large.
    """
    plain, ours = _pair(client)
    if plans and isinstance(ours.model, rg.ReversibleModule):
        with suppress(rg.PlanError):  # where the order of a library's nodes is another one each time
            ours.model.plan = plans[0]
    losses: list[list[float]] = []
    for example in (plain, ours):
        parameters = [each for each in example.model.parameters() if each.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=1e-3, eps=1e-4)
        losses.append([])
        for seed in range(STEPS):
            optimizer.zero_grad()
            losses[-1].append(_step(client, example, seed).item())
            optimizer.step()
    error = max(abs(found - wanted) / max(abs(wanted), 1e-12) for wanted, found in zip(*losses, strict=True))
    first, last = losses[1][0], losses[1][-1]
    wanted, found = plain.model.state_dict(), ours.model.state_dict()
    assert wanted.keys() == found.keys(), "the net has other weights than the model"
    for name, value in wanted.items():
        assert torch.allclose(found[name], value, rtol=1e-6, atol=1e-8), f"{name} was trained otherwise"
    assert error <= LIMIT, f"a loss is off by {error:.2g} of itself"
    return {"error": error, "first_loss": first, "last_loss": last}


def _bytes(client: Client) -> dict[str, Any]:
    """What a step takes under ordinary autograd, the library's own checkpointing, and plans.

    Beside the default plan there is the one of the least peak among those that compute no more than the
    library's checkpointing does, and the cheapest within its bytes.
    """
    example = _made(client.tiny)
    net = _net_of(example)
    ours = Example(net, example.args, example.kwargs)
    weights = _without_plans(client, lambda: _made(client.tiny))
    plans = {"default": net.plan}
    if "own" in weights:
        ratio = weights["own"].flops / weights["plain"].flops
        plans["equal_flops"] = _least_within(net.graph, ratio)
        with suppress(rg.BudgetError):
            plans["equal_bytes"] = rg.plan(net.graph, budget=weights["own"].peak_bytes)
    for name, plan in plans.items():
        net.plan = plan
        weights[name] = weigh(client, ours)
    return _told(weights)


def _without_plans(client: Client, make: Callable[[], Example]) -> dict[str, Weight]:
    """A step under ordinary autograd, and one with the library's own checkpointing, where it has one."""
    plain = make()
    client.plain(plain.model)
    weights = {"plain": weigh(client, plain)}
    if client.checkpoint is not None:
        own = make()
        client.checkpoint(own.model)
        weights["own"] = weigh(client, own)
    return weights


def _least_within(graph: rg.Graph, flops_ratio: float) -> rg.Plan:
    """The plan of the least peak among those that compute no more than so many times an ordinary step."""
    plans = rg.frontier(graph, points=60)
    return min(
        (each for each in plans if each.flops_ratio <= flops_ratio + ROUNDING),
        key=lambda each: each.peak_bytes,
    )


def _told(weights: dict[str, Weight]) -> dict[str, Any]:
    flops = weights["plain"].flops
    return {
        name: {**asdict(weight), "flops_ratio": weight.flops / flops if flops else 1.0}
        for name, weight in weights.items()
    }


def _on_cpu(example: Example) -> Example:
    """An example as if on the CPU, without memory: what operators do, and take, depends on the device."""
    others: dict[int, Any] = {}

    def faked(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if id(leaf) not in others:
            fake = torch.empty_like(leaf, device="cpu")
            is_parameter = isinstance(leaf, nn.Parameter)
            others[id(leaf)] = nn.Parameter(fake, leaf.requires_grad) if is_parameter else fake
        return others[id(leaf)]

    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in example.model.modules():
            for table in (module._parameters, module._buffers):
                table.update({name: faked(value) for name, value in table.items()})
        return Example(example.model, map_leaves(faked, example.args), map_leaves(faked, example.kwargs))


def _full(client: Client) -> dict[str, Any]:
    """What the full-size model is to a plan: CPU seconds to trace and to plan it, and bytes, as in `_bytes`.

    They are measured in steps on tensors without memory.
    """
    make = client.full
    assert make is not None

    def made() -> Example:
        with torch.device("meta"):  # not in a fake mode, in which constructors cannot ask for a number
            return _on_cpu(_made(make))

    example = made()
    began = cpu_seconds()
    net = _net_of(example)
    traced = cpu_seconds()
    plans = {"default": rg.plan(net.graph)}
    ended = cpu_seconds()
    weights = _without_plans(client, made)
    if "own" in weights:
        ratio = weights["own"].flops / weights["plain"].flops
        plans["equal_flops"] = _least_within(net.graph, ratio)
    for name, plan in plans.items():
        net.plan = plan
        weights[name] = weigh(client, Example(net, example.args, example.kwargs))
    return {
        **_found(net),
        "parameters": sum(each.numel() for each in example.model.parameters()),
        "trace_seconds": traced - began,
        "plan_seconds": ended - traced,
        "predicted_bytes": {name: plan.peak_bytes for name, plan in plans.items()},
        **_told(weights),
    }
