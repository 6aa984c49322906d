"""In-place calls on traced values, and the out-of-place ones that say the same.

A graph has values that never change. So `x += y` becomes `x = x + y`: the proxy that the code knows as x
stands for the new node from then on, and code that reads x later reads that. Other names for the same memory
(views, aliases) keep their old nodes, which hold what was there before. Where the model would read the
changed numbers by such a name, the graph would read the old ones: `OverwrittenMemory` refuses these reads.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from revgraph.expressions import map_leaves
from revgraph.storages import memory_key
from revgraph.tracing.proxies import FakeProxy, Untraceable, is_proxy, is_tensor

OPERATORS: dict[Any, Any] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    operator.ifloordiv: operator.floordiv,
    operator.imod: operator.mod,
    operator.ipow: operator.pow,
    operator.iand: operator.and_,
    operator.ior: operator.or_,
    operator.ixor: operator.xor,
}
# Factories by those that leave memory as it is; while code is traced, torch's names stand for others.
EMPTY = torch.empty
FILLED: dict[Any, Any] = {
    EMPTY: torch.zeros,
    torch.empty_like: torch.zeros_like,
    "new_empty": "new_zeros",
}


@dataclass(frozen=True, slots=True)
class InPlace:
    """A function whose result is put in the place of its first argument."""

    function: Callable[..., Any]


def out_of_place(
    kind: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, tuple[Any, ...], dict[str, Any], FakeProxy | None]:
    """A call in its out-of-place form, and the proxy whose tensor it would have edited (None: no such).

    Raises:
        Untraceable: it edits in place and has no such form.
    """
    if target is operator.setitem:
        if not stands_for_tensor(args[0]):
            raise Untraceable("items of a traced object are assigned")
        return with_items, args, kwargs, args[0]
    if type(target) is InPlace:
        if not stands_for_tensor(args[0]) or args[0].node.op == "get_attr":
            raise Untraceable(f"{getattr(target.function, '__name__', 'it')} edits a tensor in place")
        return target.function, args, kwargs, args[0]
    if kind == "call_function" and target in OPERATORS:
        return OPERATORS[target], args, kwargs, args[0] if stands_for_tensor(args[0]) else None
    if kind == "call_method" and target.endswith("_") and not target.endswith("__"):
        if (
            not stands_for_tensor(args[0])
            or args[0].node.op == "get_attr"
            or not callable(getattr(Tensor, target[:-1], None))
        ):
            raise Untraceable(f"{target} edits a tensor in place")
        return target[:-1], args, kwargs, args[0]
    if kind == "call_function" and (twin := _twin(target)) and stands_for_tensor(args[0]):
        return twin, args, kwargs, args[0]
    if kind == "call_function" and kwargs.get("inplace"):
        return target, args, {**kwargs, "inplace": False}, args[0]
    return target, args, kwargs, None


def initialized(target: Any, kwargs: Mapping[str, Any]) -> Any:
    """A factory whose result has numbers, in the place of one whose result has any that lie in memory.

    Code fills such a tensor in parts. Run again it would begin with others, which comparisons take for the
    work of a function that does not do the same each time.
    """
    if target is EMPTY and "memory_format" in kwargs:  # which zeros do not take
        return target
    return FILLED.get(target, target)


def with_items(x: Tensor, key: Any, value: Any) -> Tensor:
    """A copy of a tensor with other numbers at a key: what `x[key] = value` makes of x."""
    result = x.clone()
    result[key] = value
    return result


def replaced(tree: Any, old: FakeProxy, new: FakeProxy) -> Any:
    """Arguments with one proxy in place of another."""
    return map_leaves(lambda leaf: new if leaf is old else leaf, tree)


def is_same_view(one: Tensor, two: Tensor) -> bool:
    """Whether two tensors are the same elements of one memory."""
    return is_same(one, two) and (
        (one.stride(), one.storage_offset()) == (two.stride(), two.storage_offset())
    )


def is_same(one: Tensor, two: Tensor) -> bool:
    """Whether two tensors are the same whole memory."""
    return one.shape == two.shape and memory_key(one) == memory_key(two)


def stands_for_tensor(arg: Any) -> bool:
    """Whether an argument is a proxy for a tensor."""
    return is_proxy(arg) and is_tensor(arg.fake)


def _twin(function: Any) -> Any:
    """The function of the same name without the underscore behind it, where there is one."""
    name = getattr(function, "__name__", "")
    if not name.endswith("_") or name.endswith("__"):
        return None
    return getattr(torch, name[:-1], None) or getattr(nn.functional, name[:-1], None)


class OverwrittenMemory:
    """Tensors whose numbers were changed, as they were: nothing that shares memory with them may be read."""

    def __init__(self) -> None:
        self._gone: list[tuple[int, Tensor]] = []  # in order, with where they lie
        self._at = defaultdict[int, list[Tensor]](list)  # the same by where they lie, which is asked often

    def add(self, before: Tensor) -> None:
        place = memory_key(before)
        self._gone.append((place, before))
        self._at[place].append(before)

    def check_read(self, fake: Any) -> None:
        """Refuse to read a tensor that shares memory with one that was changed."""
        if not is_tensor(fake) or not self._gone:
            return
        if any(_overlaps(fake, gone) for gone in self._at.get(memory_key(fake), ())):
            raise Untraceable("a tensor is read after memory that it shares was changed in place")

    def has(self, fake: Tensor) -> bool:
        """Whether a tensor's memory, or a part of it, was changed."""
        place = memory_key(fake)
        return any(place == key for key, _ in self._gone)

    def renew(self, view: Any) -> None:
        """This part of a tensor is about to be assigned, so what was changed there is not read any more.

        As in `x[0] += 1`, which changes a view and then assigns it.
        """
        if is_tensor(view) and any(is_same_view(each, view) for each in self._at.get(memory_key(view), ())):
            self._set([each for each in self._gone if not is_same_view(each[1], view)])

    def mark(self) -> int:
        """A point to go back to."""
        return len(self._gone)

    def forget(self, mark: int) -> None:
        """Drop what was changed since: the code was not traced after all."""
        if mark < len(self._gone):
            self._set(self._gone[:mark])

    def _set(self, gone: list[tuple[int, Tensor]]) -> None:
        self._gone = gone
        self._at.clear()
        for place, tensor in gone:
            self._at[place].append(tensor)


def _overlaps(one: Tensor, two: Tensor) -> bool:
    """Whether two tensors may share memory. Slices of one tensor along one dimension are told apart."""
    if memory_key(one) != memory_key(two):
        return False
    if one.layout is not torch.strided or two.layout is not torch.strided or one.stride() != two.stride():
        return True
    first, second = (one, two) if one.storage_offset() <= two.storage_offset() else (two, one)
    gap = second.storage_offset() - first.storage_offset()
    for stride, size in zip(first.stride(), first.shape, strict=True):
        larger = min((other for other in first.stride() if other > stride), default=None)
        if stride and gap >= stride * size and gap % stride == 0 and (larger is None or gap < larger):
            return False
    return True
