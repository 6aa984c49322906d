"""Autograd's graph, read without running any of it: its nodes, and what stands there for saved tensors.

What is kept true: nothing is unpacked. Where hooks for saved tensors stand in (a reversible net, a
checkpoint, an offloader), asking for the tensor would replay or load it, so only what the hooks left in its
place is looked at. The graph and the random state stay as they are.

How a node is read: its saved tensors are `SavedTensor` objects (`_raw_saved_*`), of which torch 2.10 and
later tell `data` and `unpack_hook`. Before that, nothing says whether hooks are there. So those are unpacked
with a trap for Python calls, which stops a hook before its first line and looks at its arguments
(`_trapped`). Registering hooks of one's own would tell too, but for good: they cannot be taken off again.

What hooks hold besides is found by following the attributes and closures of the hook and of what it packed,
but within the hook's own package only: a hook may know its trainer, and that one the data set. An object on
the way that has `held_for_backward` answers for all that is behind it.
"""

from __future__ import annotations

import re
import sys
import types
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache, partial
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from revgraph.uncollected import uncollected

Node = Any  # torch.autograd.graph.Node, which does not declare what is read here
# Not public: torch's own name for what a node saves. There is no public way to it but to unpack.
SavedTensor: Any = torch._C._autograd.SavedTensor  # pyright: ignore[reportAttributeAccessIssue]
TELLS_DATA = hasattr(SavedTensor, "data")
PRESENT = "_raw_saved_"


class Holder(Protocol):
    """What packs saved tensors and makes them again in backward, as far as it tells what it holds for that.

    It is reached from the unpack hook, or from what was packed, by attributes. If it has a `plan`, the plan's
    `held_bytes` are told beside its own, and values of the names of the graph's inputs count as inputs.
    """

    def held_for_backward(self) -> Iterable[tuple[str, Tensor]]:
        """The tensors that it holds now, with their names; none that was released."""
        ...


@dataclass(frozen=True, slots=True)
class Hook:
    """An unpack hook: what tells it from others, the module it is from, and where what it holds is found."""

    key: tuple[int, ...]
    module: str
    roots: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Saved:
    """What stands in a node for a saved tensor, under the operator's own name for it.

    Behind a hook, `tensors` are those that were packed as they are or in plain containers.
    """

    field: str
    tensors: tuple[Tensor, ...]
    hook: Hook | None = None
    packed: Any = None


@dataclass(frozen=True, slots=True)
class Content:
    """What a node saved. It `is_freed` if a backward has run through it, and `is_unseen` if there may be more
    that Python cannot see."""

    saved: tuple[Saved, ...] = ()
    is_freed: bool = False
    is_unseen: bool = False


def graph_of(roots: Iterable[Node], seen: Iterable[Node] = ()) -> list[Node]:
    """The nodes behind some nodes, in the order of the forward, and those of leaves after them all."""
    found, pending, new = set(seen), list(roots), []
    while pending:
        node = pending.pop()
        if node not in found:
            found.add(node)
            new.append(node)
            pending += [source for source, _ in node.next_functions if source is not None]
    return sorted(new, key=lambda node: node._sequence_nr())


def leaf_of(node: Node) -> Tensor | None:
    """The tensor whose gradient a node accumulates, if it is a node of that kind."""
    return node.variable if type(node).__name__ == "AccumulateGrad" else None


def operator_of(node: Node) -> str:
    """A node's operator as aten spells it, or a Function's name: `layer_norm` of NativeLayerNormBackward0."""
    name = re.sub(r"^Native|Backwards?\d*$", "", node.name().rpartition("::")[2])
    if isinstance(node, torch._C._FunctionBase):
        return name
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def content_of(node: Node) -> Content:
    """What a node saved."""
    # The operator behind an in-place edit of a view, and Functions of C++, are hidden inside their nodes.
    if type(node).__name__ == "CopySlices" or node.name().startswith("torch::autograd::CppNode"):
        return Content(is_unseen=True)
    saved: list[Saved] = []
    is_freed = is_unseen = False
    for name in _saved_names(type(node)):
        try:
            values = _values(node, name)
        except RuntimeError as error:
            was_edited = "inplace" in str(error)  # before 2.10 such a tensor cannot be read
            is_freed, is_unseen = is_freed or not was_edited, is_unseen or was_edited
            continue
        field = name.removeprefix(PRESENT).rstrip("_")
        for value, hook in values:
            saved.append(Saved(field, tuple(tensors_in(value)), hook, None if hook is None else value))
    if isinstance(node, torch._C._FunctionBase):
        # What a Function puts on its ctx without save_for_backward; a backward does not free that.
        saved += [Saved(name, tuple(tensors_in(value))) for name, value in vars(node).items()]
    present = tuple(each for each in saved if each.tensors or each.hook is not None)
    return Content(present, is_freed, is_unseen)


def tensors_in(tree: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists, sets, dictionaries and dataclasses."""
    if isinstance(tree, Tensor):
        if not _is_number(tree):
            yield tree
    elif isinstance(tree, Mapping):
        for each in tree.values():
            yield from tensors_in(each)
    elif isinstance(tree, (tuple, list, set, frozenset)):
        for each in tree:
            yield from tensors_in(each)
    elif is_dataclass(tree) and not isinstance(tree, type):
        for each in fields(tree):
            yield from tensors_in(getattr(tree, each.name, None))


def behind(
    hook: Hook, packed: Iterable[Any], seen: set[Node], known: dict[int, Any]
) -> Iterator[Holder | Tensor]:
    """The tensors and holders that are reached from a hook and from what it packed.

    A tensor holds its graph: what nodes saved that are not among those `seen` is given too. Objects that
    are `known`, by their identity, are not looked at again; the nodes and objects met are added to both.
    """
    package = hook.module.split(".")[0]
    pending: list[Any] = [*packed, *hook.roots]
    while pending:
        each = pending.pop()
        if id(each) in known:
            continue
        known[id(each)] = each
        if isinstance(each, Tensor):
            yield each
            if each.grad_fn is not None:
                for node in graph_of([each.grad_fn], seen):
                    seen.add(node)
                    for saved in content_of(node).saved:
                        pending += (saved.tensors, saved.packed, saved.hook and saved.hook.roots)
        elif hasattr(type(each), "held_for_backward"):
            yield cast("Holder", each)
        else:
            pending += _parts(each, package)


def _parts(each: Any, package: str) -> Iterable[Any]:
    """What an object refers to, as far as it is looked into."""
    if isinstance(each, (list, tuple, set, frozenset, deque)):
        return each
    if isinstance(each, dict):
        return each.values()
    if isinstance(each, SavedTensor):
        return (getattr(each, "data", None), getattr(each, "unpack_hook", None))
    if isinstance(each, types.MethodType):
        return (each.__self__, each.__func__)
    if isinstance(each, partial):
        return (each.func, each.args, each.keywords)
    if isinstance(each, (nn.Module, torch.optim.Optimizer, type, types.ModuleType, weakref.ref)):
        return ()
    is_function = isinstance(each, types.FunctionType)
    if ((each if is_function else type(each)).__module__ or "").split(".")[0] != package:
        return ()
    if is_function:
        return [_in_cell(cell) for cell in each.__closure__ or ()]
    slots = [name for kind in type(each).__mro__ for name in _slots(kind)]
    return [*getattr(each, "__dict__", {}).values(), *(getattr(each, name, None) for name in slots)]


def _in_cell(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # its variable is not assigned yet
        return None


def _slots(kind: type) -> Iterable[str]:
    slots = kind.__dict__.get("__slots__", ())
    return (slots,) if isinstance(slots, str) else slots


NARROW = {torch.float64: torch.float32, torch.complex128: torch.complex64, torch.int64: torch.int8}


def _is_number(tensor: Tensor) -> bool:
    """Whether a tensor is a number of Python's, as in `x * 0.5`: that does not widen another's type."""
    narrow = NARROW.get(tensor.dtype) if type(tensor) is Tensor and tensor.dim() == 0 else None
    return (
        narrow is not None
        and torch.result_type(tensor, torch.empty((), dtype=narrow, device="cpu")) is narrow
    )


@cache
def _saved_names(kind: type) -> tuple[str, ...]:
    return tuple(name for name in dir(kind) if name.startswith(PRESENT))


def _values(node: Node, name: str) -> list[tuple[Any, Hook | None]]:
    """What each saved tensor of an attribute is: itself, or what a hook has packed; None where there is none.

    Raises:
        RuntimeError: they are freed.
    """
    raw = getattr(node, name)  # a list of freed tensors raises here already, and so does a freed Function
    each = raw if isinstance(raw, tuple) else (raw,)
    unpacked = name.removeprefix("_raw_" if isinstance(node, torch._C._FunctionBase) else "_raw")
    if not TELLS_DATA:
        return _trapped(node, unpacked, len(each))
    values = [(one.data, _hook(one.unpack_hook)) for one in each]
    if raw is not each and values[0][0] is None and values[0][1] is None:
        getattr(node, unpacked)  # raises if it is freed, and is None if there never was one; there is no hook
    return values


def _hook(unpack: Any) -> Hook | None:
    if unpack is None:
        return None
    method = unpack if isinstance(unpack, types.MethodType) else None
    function = unpack if method is None else method.__func__
    while isinstance(function, partial):
        function = function.func
    module = getattr(function, "__module__", None) or type(function).__module__
    key = (id(unpack),) if method is None else (id(function), id(method.__self__))
    return Hook(key, module, (unpack,))


# Subclasses of tensors are unpacked with calls of Python that are no hooks.
DISPATCHING = ("find_torch_dispatch_rule", "__torch_dispatch__")


def _trapped(node: Node, name: str, count: int) -> list[tuple[Any, Hook | None]]:
    """What `_values` gives, for torch before 2.10: unpacked, unless that calls a hook.

    A profiling function sees the call of the hook before it runs, with its arguments and what its closure
    holds, and ends it by an exception. What the hook packed is its last argument. Of several tensors only
    the first is known then. A hook that is written in C runs.
    """
    found: list[tuple[Any, Hook | None]] = []

    def trap(frame: types.FrameType, event: str, _: Any) -> None:
        code, caller = frame.f_code, frame.f_back and frame.f_back.f_code
        if event == "call" and caller is _trapped.__code__ and code.co_name not in DISPATCHING:
            local = dict(frame.f_locals)
            names = code.co_varnames[: code.co_argcount]
            packed = local.pop(names[-1], None) if names else None
            key = (id(code), *map(id, local.values()))
            found.append((packed, Hook(key, frame.f_globals.get("__name__", ""), tuple(local.values()))))
            raise _Stopped

    before = sys.getprofile()
    with uncollected():  # the collector's callbacks, and finalizers, would be trapped as well
        sys.setprofile(trap)
        try:
            values = getattr(node, name)
        except _Stopped:
            return found + [(None, found[0][1])] * (count - 1)
        finally:
            sys.setprofile(before)
    return [(value, None) for value in (values if isinstance(values, tuple) else (values,))]


class _Stopped(Exception):
    """Ends a hook before it begins."""
