"""Partial, repeated and second gradients; several losses through one graph."""

from __future__ import annotations

import pytest
import torch
from engine.samples import Chain, Pair, assert_close, batch, doubled, drawn, dropping, inverted, loss_of, mlp
from torch import Tensor, nn

pytestmark = pytest.mark.usefixtures("device")


@pytest.mark.slow
@pytest.mark.parametrize("subset", ["inputs", "first", "last", "middle", "one bias", "reversed"])
def test_grad_for_a_subset(subset: str) -> None:
    model, plain = doubled(lambda: nn.Sequential(nn.Linear(8, 8), Chain(4), nn.Linear(8, 2)))
    x = batch()
    net = inverted(model, x)
    results = []
    for run, leaves in ((net, model), (plain, plain)):
        named = dict(leaves.named_parameters())
        chosen = {
            "inputs": [x],
            "first": [named["0.weight"]],
            "last": [named["2.bias"], named["2.weight"]],
            "middle": [named["1.blocks.2.g.0.weight"]],
            "one bias": [named["1.blocks.0.f.0.bias"]],
            "reversed": list(named.values())[::-1],
        }[subset]
        results.append(torch.autograd.grad(loss_of(run(x)), chosen))
    assert_close(*results)


def test_backward_with_inputs_leaves_other_gradients_alone() -> None:
    model, plain = doubled(Chain)
    x = batch()
    net = inverted(model, x)
    for run, leaves in ((net, model), (plain, plain)):
        loss_of(run(x)).backward(inputs=[leaves.blocks[1].f[0].weight])
    assert [p.grad is None for p in model.parameters()] == [p.grad is None for p in plain.parameters()]
    assert_close([model.blocks[1].f[0].weight.grad], [plain.blocks[1].f[0].weight.grad])


def test_backward_twice_with_retain_graph() -> None:
    model, plain = doubled(lambda: Chain(f=dropping))
    x = batch()
    net = inverted(model, x)
    results = []
    for run, leaves in ((net, model), (plain, plain)):
        torch.manual_seed(0)
        loss = loss_of(run(x))
        grads = []
        for retain in (True, True, False):
            grads += torch.autograd.grad(loss, [x, *leaves.parameters()], retain_graph=retain)
        results.append(grads)
    assert_close(*results)


def test_backward_twice_without_retain_graph_is_refused_as_by_autograd() -> None:
    model, _ = doubled(Chain)
    x = batch()
    loss = loss_of(inverted(model, x)(x))
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


class Way(nn.Module):
    """Returns values on the way besides its end."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.middle, self.head = Pair(), Pair(), mlp(), mlp()

    def forward(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, ...]:
        a, b = self.one(x1, x2)
        c, d = self.two(a, torch.tanh(self.middle(b)))
        return a, b, c, d, self.head(c * d)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(5))
@pytest.mark.parametrize("second", range(5))
def test_two_losses_with_backward_calls_of_their_own(first: int, second: int) -> None:
    model, plain = doubled(Way)
    x1, x2 = batch(3, 4, seed=1), batch(3, 4, seed=2)
    net = inverted(model, x1, x2)
    results = []
    for run, leaves in ((net, model), (plain, plain)):
        outputs = run(x1, x2)
        wanted = [x1, x2, *leaves.parameters()]
        grads = list(
            torch.autograd.grad(loss_of(outputs[first]), wanted, retain_graph=True, allow_unused=True)
        )
        grads += torch.autograd.grad(loss_of(outputs[second]), wanted, allow_unused=True)
        results.append(grads)
    assert_close(*results)


def test_two_branches_freed_one_after_the_other() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk, self.left, self.right = Pair(), Pair(), Pair()
            self.trunk.requires_grad_(False)

        def forward(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, ...]:
            a, b = self.trunk(x1, x2)
            return *self.left(a, b), *self.right(a, b)

    model, plain = doubled(Branches)
    x1, x2 = batch(3, 4, seed=1, grad=False), batch(3, 4, seed=2, grad=False)
    net = inverted(model, x1, x2)
    results = []
    for run, leaves in ((net, model), (plain, plain)):
        outputs = run(x1, x2)
        grads = []
        for side, pair in ((outputs[:2], leaves.left), (outputs[2:], leaves.right)):
            grads += torch.autograd.grad(loss_of(side), list(pair.parameters()))
        results.append(grads)
    assert_close(*results)


def test_hessian_vector_products() -> None:
    model, plain = doubled(Chain)
    x = batch()
    net = inverted(model, x)
    results = []
    for run, leaves in ((net, model), (plain, plain)):
        wanted = [x, *leaves.parameters()]
        first = torch.autograd.grad(loss_of(run(x)), wanted, create_graph=True)
        along = sum((g * drawn(*g.shape, dtype=g.dtype, seed=seed)).sum() for seed, g in enumerate(first))
        results.append(torch.autograd.grad(along, wanted, allow_unused=True))
    assert_close(*results, tolerance=1e-10)


def test_gradient_penalty_added_to_the_loss() -> None:
    model, plain = doubled(Chain)
    x = batch()
    net = inverted(model, x)
    for run in (net, plain):
        output = run(x)
        (slope,) = torch.autograd.grad(output.sum(), x, create_graph=True)
        (loss_of(output) + ((slope.norm(dim=1) - 1) ** 2).sum()).backward()
    assert_close(
        [parameter.grad for parameter in model.parameters()],
        [parameter.grad for parameter in plain.parameters()],
        tolerance=1e-10,
    )


def test_gradcheck_and_gradgradcheck() -> None:
    model, _ = doubled(lambda: Chain(depth=2, width=2))
    x = batch(2, 4)
    net = inverted(model, x)
    assert torch.autograd.gradcheck(net, (x,))
    assert torch.autograd.gradgradcheck(net, (x,))


def test_saved_tensors_may_be_read_outside_of_a_backward() -> None:
    model, plain = doubled(lambda: Chain(depth=1))
    x = batch()
    net = inverted(model, x)
    saved = []
    for run in (net, plain):
        pending, found, seen = [run(x).grad_fn], [], set()
        while pending:
            node = pending.pop()
            if node is not None and node not in seen:
                seen.add(node)
                if hasattr(node, "_saved_mat1"):
                    found.append(node._saved_mat1)
                pending += [each for each, _ in node.next_functions]
        saved.append(found)
    assert len(saved[0]) == 4
    assert_close(*saved)
