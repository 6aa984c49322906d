"""An oracle for traced nets: the untraced model itself, run by plain autograd on a copy."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import revgraph as rg

EXACT = dict(rtol=1e-12, atol=1e-12)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.double) -> Tensor:
    """A tensor from a stream of random numbers of its own."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def linear(width: int = 4, out: int | None = None, seed: int = 0) -> nn.Linear:
    """A float64 linear layer with weights of its own seed."""
    layer = nn.Linear(width, out or width).double()
    with torch.no_grad():
        layer.weight.copy_(randn(out or width, width, seed=seed + 100) * 0.5)
        layer.bias.copy_(randn(out or width, seed=seed + 200) * 0.5)
    return layer


def mlp(width: int = 4, seed: int = 0) -> nn.Sequential:
    return nn.Sequential(linear(width, 6, seed), nn.Tanh(), linear(6, width, seed + 1))


class Net(nn.Module):
    """A forward written as a function of the module and its inputs."""

    def __init__(self, body: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        self.body = body
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.body(self, *args, **kwargs)


def agree(model: nn.Module, *args: Any, couplings: int | None = None, **kwargs: Any) -> rg.ReversibleModule:
    """The traced net, all couplings inverted, once it gave what the model gives; the trace left no mark."""
    reference = copy.deepcopy(model)
    before, random = marks(model), torch.get_rng_state()
    net = rg.trace(model, *args, **kwargs)
    assert torch.equal(random, torch.get_rng_state()), "the trace moved the global random state"
    same_marks(before, marks(model))
    net.plan = rg.decide(net.graph, {})
    if couplings is not None:
        found = [node.expression for node in net.graph.nodes if node.kind == "coupling"]
        assert len(found) == couplings, f"{len(found)} couplings: {found}"
    equal_runs(net, reference, *args, **kwargs)
    return net


def equal_runs(net: nn.Module, reference: nn.Module, *args: Any, **kwargs: Any) -> None:
    """Bitwise equal results, gradients off and on; equal gradients, buffers and random state."""
    with torch.no_grad():
        torch.manual_seed(5)
        ours = net(*args, **kwargs)
        torch.manual_seed(5)
        theirs = reference(*args, **kwargs)
    equal_trees(ours, theirs)
    found = [_step(module, args, kwargs) for module in (net, reference)]
    equal_trees(found[0][0], found[1][0])
    assert torch.equal(found[0][2], found[1][2]), "the random state afterwards differs"
    assert found[0][1].keys() == found[1][1].keys()
    for name, one in found[0][1].items():
        two = found[1][1][name]
        assert (one is None) == (two is None), f"gradient of {name}: {one} for {two}"
        if one is not None:
            torch.testing.assert_close(
                one, two, msg=lambda text, name=name: f"gradient of {name}: {text}", **EXACT
            )
    for (name, one), two in zip(net.state_dict().items(), reference.state_dict().values(), strict=True):
        assert torch.equal(one, two), f"{name} differs after the step"


def _step(module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, dict[str, Tensor | None], Tensor]:
    leaves: dict[str, Tensor] = {}

    def leaf(thing: Any) -> Any:
        if isinstance(thing, Tensor) and (thing.is_floating_point() or thing.is_complex()):
            leaves[f"input {len(leaves)}"] = thing = thing.detach().clone().requires_grad_()
        return thing

    args, kwargs = pytree.tree_map(leaf, (args, kwargs))
    leaves.update((name, each) for name, each in module.named_parameters() if each.requires_grad)
    torch.manual_seed(7)
    out = module(*args, **kwargs)
    losses = [
        (each.abs().square() * (index + 1) + each.abs().sin()).sum()
        for index, each in enumerate(tensors(out))
        if each.requires_grad
    ]
    if not losses:
        return out, dict.fromkeys(leaves), torch.get_rng_state()
    found = torch.autograd.grad(sum(losses), list(leaves.values()), allow_unused=True)  # pyright: ignore
    return out, dict(zip(leaves, found, strict=True)), torch.get_rng_state()


def tensors(tree: Any) -> list[Tensor]:
    return [each for each in pytree.tree_leaves(_plain(tree)) if isinstance(each, Tensor)]


def equal_trees(ours: Any, theirs: Any) -> None:
    """The same containers with bitwise equal tensors and equal constants."""
    one, two = pytree.tree_flatten(_plain(ours)), pytree.tree_flatten(_plain(theirs))
    assert one[1] == two[1], f"the results' form differs: {one[1]} for {two[1]}"
    for mine, other in zip(one[0], two[0], strict=True):
        assert type(mine) is type(other) or isinstance(mine, Tensor), f"{type(mine)} for {type(other)}"
        if isinstance(other, Tensor):
            torch.testing.assert_close(mine, other, rtol=0, atol=0, equal_nan=True)
        else:
            assert mine == other


def _plain(tree: Any) -> Any:
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        return (
            type(tree).__name__,
            {each.name: getattr(tree, each.name) for each in dataclasses.fields(tree)},
        )
    return tree


def marks(model: nn.Module) -> dict[str, Any]:
    """Everything of a model that a trace could change."""
    found: dict[str, Any] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for key, value in module.__dict__.items():
            if key in ("_parameters", "_buffers", "_modules"):
                found[f"{path}:{key}"] = {name: id(each) for name, each in value.items()}
            elif isinstance(value, (list, dict, set)):
                found[f"{path}:{key}"] = copy.copy(value)
            else:
                found[f"{path}:{key}"] = value
    for name, each in [*model.named_parameters(), *model.named_buffers()]:
        found[f"tensor {name}"] = (
            each.detach().clone(), each.requires_grad, each.grad, each._version, each.is_leaf
        )  # fmt: skip
    return found


def same_marks(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert before.keys() == after.keys(), f"attributes differ: {before.keys() ^ after.keys()}"
    for key, one in before.items():
        two = after[key]
        if key.startswith("tensor "):
            same = one[0].is_meta or torch.equal(one[0], two[0])
            assert same, f"{key} changed"
            assert one[1:] == two[1:] or one[2] is not None, f"{key} changed its flags: {one[1:]} {two[1:]}"
        else:
            assert one is two or _equal(one, two), f"{key} changed from {one!r} to {two!r}"


def _equal(one: Any, two: Any) -> bool:
    try:
        return bool(one == two)
    except (RuntimeError, ValueError):
        return False
