"""Which traced calls only rearrange tensors, and how each is undone."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from revgraph.expressions import leaves, map_leaves
from revgraph.rearrangements import (
    Called,
    Joined,
    Parted,
    Rearrangement,
    Reshaped,
    Shuffled,
    Stacked,
    Transposed,
    Unstacked,
)
from revgraph.tracing.wiring.slices import cut, cut_up, rearrangement_of_cut
from revgraph.wiring import Wiring

SPLITS = {torch.chunk, torch.split, torch.tensor_split, "chunk", "split", "tensor_split"}
UNBINDS = {torch.unbind, "unbind"}
JOINS = {torch.cat, torch.concat, torch.concatenate}
# Splits and joins along the dimension that the name says, given the number of dimensions.
ALONG: dict[Any, Callable[[int], int]] = {
    torch.hsplit: lambda ndim: min(ndim - 1, 1),
    torch.vsplit: lambda ndim: 0,
    torch.dsplit: lambda ndim: 2,
    torch.hstack: lambda ndim: min(ndim - 1, 1),
    torch.vstack: lambda ndim: 0,
    torch.dstack: lambda ndim: 2,
}
ALONG |= {name: ALONG[getattr(torch, name)] for name in ("hsplit", "vsplit", "dsplit")}
STACKS: dict[Any, int] = {
    torch.hstack: 1,
    torch.vstack: 2,
    torch.dstack: 3,
}  # and the dimensions below which they add some
RESHAPES = {
    torch.reshape, torch.flatten, torch.unflatten, torch.squeeze, torch.unsqueeze, torch.ravel,
    "view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "contiguous", "ravel",
}  # fmt: skip
TRANSPOSES = {
    torch.permute, torch.transpose, torch.swapaxes, torch.swapdims, torch.t, torch.movedim, torch.moveaxis,
    "permute", "transpose", "swapaxes", "swapdims", "t", "movedim", "moveaxis",
}  # fmt: skip
SHUFFLES = {
    functional.pixel_unshuffle: True,
    torch.pixel_unshuffle: True,
    functional.pixel_shuffle: False,
    torch.pixel_shuffle: False,
}
# Turns of one tensor, and how their arguments make the way back.
FLIPS = {torch.flip, torch.fliplr, torch.flipud, "flip", "fliplr", "flipud"}
TURNS = {torch.roll, torch.rot90, "roll", "rot90"}
CHANNEL_SHUFFLES = {functional.channel_shuffle, torch.channel_shuffle}
COMPLEX: dict[Any, Callable[[Tensor], Tensor]] = {
    torch.view_as_real: torch.view_as_complex,
    torch.view_as_complex: torch.view_as_real,
}
MODULES = (nn.Flatten, nn.Unflatten, nn.Identity, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle)
FUNCTIONS: frozenset[Any] = frozenset(
    (*SPLITS, *UNBINDS, *JOINS, torch.stack, *ALONG, *RESHAPES, *TRANSPOSES, *SHUFFLES, *FLIPS, *TURNS,
     *CHANNEL_SHUFFLES, *COMPLEX, cut, cut_up)
)  # fmt: skip


def is_wiring(node: fx.Node, root: nn.Module) -> bool:
    """Whether a traced call, or the one it takes an item of, only rearranges tensors."""
    if node.op == "call_module":
        return isinstance(root.get_submodule(str(node.target)), (Wiring, *MODULES))
    if node.op == "call_function" and node.target is operator.getitem:
        source = node.args[0]
        return isinstance(source, fx.Node) and is_wiring(source, root)
    if node.target is getattr:
        return node.args[1] in ("T", "mT")
    return node.op in ("call_function", "call_method") and node.target in FUNCTIONS


def rearrangement(
    node: fx.Node,
    fakes: Mapping[fx.Node, Any],
    modules: Mapping[str, nn.Module],
    buffers: Mapping[str, Tensor],
) -> Rearrangement | None:
    """How this traced call is undone; None where it is no wiring."""
    if node.op not in ("call_function", "call_method", "call_module"):
        return None
    if node.target in (cut, cut_up):
        return rearrangement_of_cut(node, fakes, buffers)
    read = [fakes.get(other) for other in node.all_input_nodes]
    tensors = [fake for fake in read if isinstance(fake, Tensor)]
    made = fakes.get(node)
    dtypes = {each.dtype for each in (*tensors, *leaves(made)) if isinstance(each, Tensor)}
    if node.target in COMPLEX:
        return Called(COMPLEX[node.target])
    if len(dtypes) != 1:
        return None
    if node.op == "call_module":
        return _of_module(modules[str(node.target)], len(node.args), tensors[0])
    if node.target in JOINS or node.target is torch.stack or node.target in STACKS:
        return _joining(node, tensors, fakes)
    if len(tensors) != 1:
        return None
    (x,) = tensors
    given = [_settled(each, fakes) for each in (node.args[1:], dict(node.kwargs))]
    args, kwargs = tuple(given[0]), given[1]
    if node.target in ALONG:
        return Joined(ALONG[node.target](x.ndim))
    if node.target in SPLITS:
        return Joined(_dimension(args, kwargs, 1))
    if node.target in UNBINDS:
        return Stacked(_dimension(args, kwargs, 0))
    if node.target in RESHAPES:
        return Reshaped()
    if node.target in TRANSPOSES or node.target is getattr:
        return _transposed(node.target, x.ndim, args, kwargs)
    if node.target in SHUFFLES or node.target in CHANNEL_SHUFFLES:
        return _shuffled(node.target, x, next(iter((*args, *kwargs.values())), None))
    if node.target in FLIPS or node.target in TURNS:
        return _turned(getattr(node.target, "__name__", str(node.target)), *args, **kwargs)
    return None


def _settled(tree: Any, fakes: Mapping[fx.Node, Any]) -> Any:
    """Arguments with traced numbers as they were for the example."""
    return map_leaves(lambda leaf: fakes.get(leaf) if isinstance(leaf, fx.Node) else leaf, tree)


def _of_module(module: nn.Module, arguments: int, x: Tensor) -> Rearrangement | None:
    if type(module) not in MODULES or arguments != 1:
        return None
    if isinstance(module, nn.PixelShuffle):
        return Shuffled(module.upscale_factor, unshuffled=False)
    if isinstance(module, nn.PixelUnshuffle):
        return Shuffled(module.downscale_factor, unshuffled=True)
    if isinstance(module, nn.ChannelShuffle):
        return _shuffled(torch.channel_shuffle, x, module.groups)
    return Reshaped()


def _joining(node: fx.Node, tensors: Sequence[Tensor], fakes: Mapping[fx.Node, Any]) -> Rearrangement | None:
    """How tensors that were put together come apart: each of them is read once, and is no parameter."""
    joined: Any = node.args[0] if node.args else node.kwargs.get("tensors")
    if not isinstance(joined, (list, tuple)) or not len(set(joined)) == len(joined) == len(tensors):
        return None
    if not all(isinstance(each, fx.Node) and each.op != "get_attr" for each in joined):
        return None
    if node.target in STACKS:
        ndim = min(each.ndim for each in tensors)
        return Parted(ALONG[node.target](ndim)) if ndim >= STACKS[node.target] else None
    kwargs = _settled(dict(node.kwargs), fakes)
    dim = _dimension(_settled(node.args[1:], fakes), kwargs, 0)
    return Unstacked(dim) if node.target is torch.stack else Parted(dim)


def _dimension(args: tuple[Any, ...], kwargs: Mapping[str, Any], position: int) -> int:
    return args[position] if len(args) > position else kwargs.get("dim", kwargs.get("axis", 0))


def _transposed(target: Any, ndim: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Rearrangement:
    """The order that dimensions are put into, as a tensor whose sizes tell its dimensions apart shows it."""
    probe = torch.empty(tuple(range(1, ndim + 1)), device="meta")
    call = getattr(torch.Tensor, target) if isinstance(target, str) else target
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `x.T` of other than two dimensions: the model's own matter
        return Transposed(tuple(size - 1 for size in call(probe, *args, **kwargs).shape))


def _shuffled(target: Any, x: Tensor, factor: Any) -> Rearrangement | None:
    if not isinstance(factor, int):
        return None
    if target in SHUFFLES:
        return Shuffled(factor, SHUFFLES[target])
    return Called(torch.channel_shuffle, (x.shape[1] // factor,))


def _turned(name: str, *args: Any, **kwargs: Any) -> Rearrangement:
    """How flips, rolls and quarter turns are undone, from their arguments."""
    if name in ("fliplr", "flipud"):
        return Called(torch.flip, ((1 if name == "fliplr" else 0,),))
    if name == "flip":
        dims = kwargs.get("dims", args[0] if len(args) == 1 else args)
        return Called(torch.flip, (_tuple(dims),))
    if name == "roll":
        (shifts, dims), rest = (*args, None, None)[:2], dict(kwargs)
        shifts, dims = _tuple(rest.get("shifts", shifts)), rest.get("dims", dims)
        back = tuple(-shift for shift in shifts)
        return Called(torch.roll, (back, *(() if dims is None else (_tuple(dims),))))
    turns = args[0] if args else kwargs.get("k", 1)
    return Called(torch.rot90, (-turns, args[1] if len(args) > 1 else kwargs.get("dims", (0, 1))))


def _tuple(thing: Any) -> tuple[Any, ...]:
    return tuple(thing) if isinstance(thing, (tuple, list)) else (thing,)
