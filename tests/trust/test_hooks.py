"""Hooks of every kind see in a reversible net what they see in the plain one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from engine.samples import Chain, assert_close, batch, doubled, inverted, loss_of, normed
from torch import Tensor, nn

import revgraph as rg

pytestmark = pytest.mark.usefixtures("device")


class Notes:
    """What hooks on every module inside the blocks' functions, and on every parameter, were given."""

    def __init__(self, model: nn.Module) -> None:
        self.forward: list[tuple[str, Tensor]] = []
        self.backward: list[tuple[str, Tensor]] = []
        self.parameters: dict[str, list[Tensor]] = {}
        for name, module in model.named_modules():
            if ".f" in name or ".g" in name:
                self._watch(name, module)
        for name, parameter in model.named_parameters():
            parameter.register_hook(lambda grad, name=name: self._of_parameter(name, grad))

    def _watch(self, name: str, module: nn.Module) -> None:
        def forward(_: nn.Module, args: Any, out: Tensor) -> None:
            self.forward += [(f"{name} in", args[0].detach()), (f"{name} out", out.detach())]

        def pre_backward(_: nn.Module, out: Any) -> None:
            self.backward.append((f"{name} pre", out[0].detach()))

        def backward(_: nn.Module, into: Any, out: Any) -> None:
            self.backward += [(f"{name} in", into[0].detach()), (f"{name} out", out[0].detach())]

        module.register_forward_hook(forward)
        module.register_full_backward_pre_hook(pre_backward)
        module.register_full_backward_hook(backward)

    def _of_parameter(self, name: str, grad: Tensor) -> None:
        self.parameters.setdefault(name, []).append(grad.detach())


def assert_same(found: list[tuple[str, Tensor]], expected: list[tuple[str, Tensor]]) -> None:
    assert [name for name, _ in found] == [name for name, _ in expected]
    assert_close([value for _, value in found], [value for _, value in expected])


@pytest.mark.parametrize("choice", ["invert", "recompute", "keep"])
def test_hooks_see_what_they_see_in_the_plain_net(choice: str) -> None:
    model, plain = doubled(lambda: Chain(3, normed))
    x = batch()
    net = rg.trace(model, x)
    net.plan = rg.decide(net.graph, {name: choice for name in net.plan.decisions})
    notes, plain_notes = Notes(model), Notes(plain)
    loss = loss_of(net(x))
    assert_same(notes.forward, plain_notes.forward or _forward_of(plain, x, plain_notes))
    first = len(notes.forward)
    loss.backward()
    x.grad = None
    loss_of(plain(x)).backward()
    assert_same(notes.backward, plain_notes.backward)
    assert set(notes.parameters) == set(plain_notes.parameters)
    for name, grads in notes.parameters.items():
        assert len(grads) == 1
        assert_close(grads, plain_notes.parameters[name])
    # What runs again is shown to forward hooks again, with the values of the first time.
    again = dict(notes.forward[first:])
    assert bool(again) == (choice != "keep")
    for name, value in again.items():
        assert_close([value], [dict(notes.forward[:first])[name]])


def _forward_of(plain: nn.Module, x: Tensor, notes: Notes) -> list[tuple[str, Tensor]]:
    """What a forward of the plain net shows, from the same buffers as a second one."""
    state = {name: each.clone() for name, each in plain.state_dict().items()}
    plain(x)
    plain.load_state_dict(state)
    return notes.forward


def test_hooks_that_are_removed_are_not_called_at_the_replay() -> None:
    model, _ = doubled(Chain)
    x = batch()
    net = inverted(model, x)
    seen: list[int] = []
    handle = model.blocks[0].f.register_forward_hook(lambda *_: seen.append(1))
    loss = loss_of(net(x))
    handle.remove()
    loss.backward()
    assert seen == [1]


def test_hooks_on_every_module_of_the_process_fire_once_backward() -> None:
    model, plain = doubled(lambda: Chain(2))
    x = batch()
    net = inverted(model, x)
    counts: list[int] = []
    for run in (net, plain):
        seen: list[str] = []
        handle = nn.modules.module.register_module_full_backward_hook(
            lambda module, into, out, seen=seen: seen.append(type(module).__name__)
        )
        try:
            loss_of(run(x)).backward()
        finally:
            handle.remove()
        counts.append(seen.count("Linear"))
    assert counts == [8, 8]


def test_gradients_changed_by_hooks_are_changed_alike() -> None:
    found: list[list[Tensor]] = []
    model, plain = doubled(Chain)
    x = batch()
    for run, leaves in ((inverted(model, x), model), (plain, plain)):
        leaves.blocks[1].g.register_full_backward_pre_hook(lambda _, out: (out[0] * 2,))
        leaves.blocks[0].f[2].weight.register_hook(lambda grad: grad.clamp(-0.1, 0.1))
        found.append(list(torch.autograd.grad(loss_of(run(x)), [x, *leaves.parameters()])))
    assert_close(*found)
