"""Recognising wiring among traced calls, and how each is undone."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from revgraph.program import Joined, Parted, Rearrangement, Reshaped, Shuffled, Transposed
from revgraph.wiring import Wiring

SPLITS = {torch.chunk, torch.split, torch.tensor_split, "chunk", "split", "tensor_split"}
JOINS = {torch.cat, torch.concat, torch.concatenate}
RESHAPES = {
    torch.reshape, torch.flatten, torch.unflatten, torch.squeeze, torch.unsqueeze,
    "view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "contiguous",
}  # fmt: skip
TRANSPOSES = {torch.permute, torch.transpose, torch.swapaxes, "permute", "transpose", "swapaxes"}
SHUFFLES = {
    functional.pixel_unshuffle: True,
    torch.pixel_unshuffle: True,
    functional.pixel_shuffle: False,
    torch.pixel_shuffle: False,
}
MODULES = (nn.Flatten, nn.Unflatten, nn.Identity, nn.PixelShuffle, nn.PixelUnshuffle)


def is_wiring(node: fx.Node, root: nn.Module) -> bool:
    """Whether a traced call, or the one it takes an item of, only rearranges tensors."""
    if node.op == "call_module":
        return isinstance(root.get_submodule(str(node.target)), (Wiring, *MODULES))
    if node.op == "call_function" and node.target is operator.getitem:
        source = node.args[0]
        return isinstance(source, fx.Node) and is_wiring(source, root)
    return node.op in ("call_function", "call_method") and (
        node.target in SPLITS
        or node.target in JOINS
        or node.target in RESHAPES
        or node.target in TRANSPOSES
        or node.target in SHUFFLES
    )


def rearrangement(
    node: fx.Node, shadows: Mapping[fx.Node, Any], modules: Mapping[str, nn.Module]
) -> Rearrangement | None:
    """How this traced call is undone; None where it is no wiring."""
    if node.op == "call_module":
        return _of_module(modules[str(node.target)], len(node.args))
    if node.op not in ("call_function", "call_method"):
        return None
    tensors = [other for other in node.all_input_nodes if isinstance(shadows.get(other), Tensor)]
    if node.target in JOINS:
        joined = node.args[0] if node.args else node.kwargs.get("tensors")
        if isinstance(joined, (list, tuple)) and len(set(joined)) == len(joined) == len(tensors):
            return Parted(_dimension(node, 1))
        return None
    if len(tensors) != 1:
        return None
    if node.target in SPLITS:
        return Joined(_dimension(node, 2))
    if node.target in RESHAPES:
        return Reshaped()
    if node.target in TRANSPOSES:
        return _transposed(node, shadows[tensors[0]].ndim)
    if node.target in SHUFFLES:
        factor = node.args[1] if len(node.args) > 1 else next(iter(node.kwargs.values()), None)
        return Shuffled(factor, SHUFFLES[node.target]) if isinstance(factor, int) else None
    return None


def _of_module(module: nn.Module, arguments: int) -> Rearrangement | None:
    if type(module) not in MODULES or arguments != 1:
        return None
    if isinstance(module, nn.PixelShuffle):
        return Shuffled(module.upscale_factor, unshuffled=False)
    if isinstance(module, nn.PixelUnshuffle):
        return Shuffled(module.downscale_factor, unshuffled=True)
    return Reshaped()


def _dimension(node: fx.Node, position: int) -> int:
    dim: Any = node.args[position] if len(node.args) > position else node.kwargs.get("dim", 0)
    return dim if isinstance(dim, int) else 0


def _transposed(node: fx.Node, ndim: int) -> Rearrangement | None:
    dims: Any = node.args[1:] or tuple(node.kwargs.values())
    if len(dims) == 1 and isinstance(dims[0], (tuple, list)):
        dims = tuple(dims[0])
    if not all(isinstance(dim, int) for dim in dims):
        return None
    if node.target in (torch.permute, "permute"):
        return Transposed(tuple(dim % ndim for dim in dims))
    order = list(range(ndim))
    one, two = dims[0] % ndim, dims[1] % ndim
    order[one], order[two] = two, one
    return Transposed(tuple(order))
