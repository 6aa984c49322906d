"""The transforms of torch.func over a whole net, and forward-mode derivatives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from engine.samples import (
    Chain,
    assert_bitwise,
    assert_close,
    assert_same_buffers,
    batch,
    doubled,
    inverted,
    loss_of,
    normed,
    step,
)
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import revgraph as rg

# Forward-mode derivatives load decompositions by what torch itself calls deprecated.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
    pytest.mark.usefixtures("device"),
]


@pytest.fixture(params=["invert", "recompute", "keep"])
def nets(request: Any) -> tuple[rg.ReversibleModule, nn.Module]:
    model, plain = doubled(Chain)
    net = rg.trace(model, batch())
    net.plan = rg.decide(net.graph, {name: request.param for name in net.plan.decisions})
    return net, plain


def weights(net: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in net.named_parameters()}


def test_grad_of_functional_call(nets: Any) -> None:
    x = batch(grad=False)

    def gradients(run: nn.Module) -> list[Tensor]:
        def loss(given: dict[str, Tensor], x: Tensor) -> Tensor:
            return loss_of(functional_call(run, given, (x,)))

        of_weights, of_x = grad(loss, argnums=(0, 1))(weights(run), x)
        return [*of_weights.values(), of_x]

    assert_bitwise(*map(gradients, nets))


def test_functional_call_in_ordinary_autograd(nets: Any) -> None:
    """With the net's own weights under other names of tensors it is right; replays refuse foreign ones."""
    net, plain = nets
    x = batch()
    others = {name: each.clone().requires_grad_() for name, each in weights(plain).items()}
    leaves = [x, *others.values()]
    expected = torch.autograd.grad(loss_of(functional_call(plain, others, (x,))), leaves)
    loss = loss_of(functional_call(net, others, (x,)))
    if set(net.plan.decisions.values()) == {"keep"}:
        assert_close(torch.autograd.grad(loss, leaves), expected)
    else:
        with pytest.raises(rg.ReplayError, match="was changed or replaced between forward and backward"):
            torch.autograd.grad(loss, leaves)


def test_gradients_per_sample(nets: Any) -> None:
    x = batch(5, 8, grad=False)

    def gradients(run: nn.Module) -> list[Tensor]:
        def loss(given: dict[str, Tensor], one: Tensor) -> Tensor:
            return loss_of(functional_call(run, given, (one[None],)))

        return list(vmap(grad(loss), in_dims=(None, 0))(weights(run), x).values())

    found, expected = map(gradients, nets)
    assert_close(found, expected)
    assert all(each.shape[0] == 5 for each in found)


def test_vmap_then_ordinary_backward(nets: Any) -> None:
    x = batch(4, 3, 8)
    found, expected = (torch.autograd.grad(loss_of(vmap(run)(x)), [x, *run.parameters()]) for run in nets)
    assert_close(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("transform", [jacrev, jacfwd, lambda f: hessian(lambda x: loss_of(f(x)))])
def test_jacobians_and_hessians(nets: Any, transform: Any) -> None:
    x = batch(2, 8, grad=False)
    found, expected = (transform(run)(x) for run in nets)
    assert_close([found], [expected])


def test_vjp_and_jvp(nets: Any) -> None:
    x, direction = batch(grad=False), batch(seed=5, grad=False)
    pulled = [vjp(run, x)[1](direction)[0] for run in nets]
    pushed = [jvp(run, (x,), (direction,))[1] for run in nets]
    assert_close(pulled[:1] + pushed[:1], pulled[1:] + pushed[1:])


def test_batchnorm_under_a_transform_is_as_in_plain_torch() -> None:
    """torch.func refuses what edits buffers, and a refusal leaves the net as it was."""
    model, plain = doubled(lambda: Chain(f=normed))
    x = batch()
    net = inverted(model, x)
    for run in (net, plain):
        with pytest.raises(RuntimeError, match="mutate a captured Tensor"):
            vjp(run, x)
    assert_close(step(net, model, x), step(plain, plain, x))
    assert_same_buffers(model, plain)
    net.eval()
    plain.eval()
    assert_close([jacrev(net)(x)], [jacrev(plain)(x)])


def test_forward_mode_over_a_backward(nets: Any) -> None:
    """A Hessian-vector product."""
    x, direction = batch(grad=False), batch(seed=5, grad=False)
    products = []
    for run in nets:
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(x, direction).requires_grad_()
            (gradient,) = torch.autograd.grad(loss_of(run(dual)), dual)
            products.append(forward_ad.unpack_dual(gradient).tangent)
    assert products[1] is not None
    assert_close(products[:1], products[1:])


def test_batched_gradients_through_replays(nets: Any) -> None:
    x = batch()
    cotangents = torch.eye(x.numel(), dtype=x.dtype).reshape(-1, *x.shape)
    found, expected = (torch.autograd.grad(run(x), x, cotangents, is_grads_batched=True)[0] for run in nets)
    assert_close([found], [expected])
