"""Parts taken out of a tensor, gathered into one call where they partition it.

`x[:, :3]` alone forgets the rest and cannot be undone; together with `x[:, 3:]` it is a split. So the parts
of one tensor that a module takes are looked at together: those that cover it, each element once, become the
items of one call of `cut`, which is wiring. An index tensor that holds each place once, a checkerboard of
strided slices and the items of an unpacked tensor are such parts as well.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensor

from revgraph.expressions import map_leaves
from revgraph.rearrangements import Joined, Owned, Placed, Rearrangement, Reshaped, Stacked
from revgraph.tracing.proxies import TRACE_AGAIN, OtherForm
from revgraph.tracing.tracer import Tracer

# The indices along each dimension that a part takes: it is their product.
Box: TypeAlias = tuple[Sequence[int], ...]
# Parts beyond these are left alone, for each is compared with all others.
MOST_PARTS, MOST_INDICES = 256, 2**16
TAKEN = {"narrow", torch.narrow, "select", torch.select, "index_select", torch.index_select}


def cut(x: Tensor, *keys: Any) -> tuple[Tensor, ...]:
    """The parts of a tensor at these keys."""
    return tuple([x[key] for key in keys])


def cut_up(x: Tensor, *keys: Any) -> tuple[Tensor, ...]:
    """As `cut`, where the graph relies on it that the parts leave nothing out.

    Raises:
        OtherForm: they do, at the size of this input.
    """
    parts = cut(x, *keys)
    if sum([part.numel() for part in parts]) != x.numel():
        raise OtherForm(
            f"the parts that the model takes of a tensor of shape {list(x.shape)} do not cover it, and those "
            f"of the example's did, so the traced graph is not right for it. {TRACE_AGAIN}",
            "the size of a tensor that is cut into parts",
        )
    return parts


@dataclass(frozen=True)
class _Part:
    """A part as the trace recorded it: its node, its key with traced leaves, and what it takes."""

    node: fx.Node
    key: tuple[Any, ...]
    box: Box

    @property
    def count(self) -> int:
        return math.prod(map(len, self.box))


def gather_slices(tracer: Tracer, graph: fx.Graph) -> None:
    """Put one `cut` in the place of parts that partition a tensor."""
    order = {node: index for index, node in enumerate(graph.nodes)}
    scopes: dict[fx.Node, list[int]] = {}
    for index, scope in enumerate(tracer.scopes):
        for node in scope.nodes:
            scopes.setdefault(node, []).append(index)
    for source in list(graph.nodes):
        fake = tracer.fakes.get(source)
        if not isinstance(fake, Tensor) or fake.layout is not torch.strided:
            continue
        groups: dict[tuple[int, ...], list[_Part]] = {}
        for user in sorted(source.users, key=order.__getitem__):
            part = _part(user, source, tracer.fakes, tracer.buffers)
            if part is not None:
                groups.setdefault(tuple(scopes.get(user, ())), []).append(part)
        for parts in groups.values():
            once = _without_copies(tracer, graph, parts)
            for chosen in _partitions(once, fake.numel()):
                _gather(tracer, graph, source, chosen, order, scopes)


def rearrangement_of_cut(
    node: fx.Node, fakes: Mapping[fx.Node, Any], buffers: Mapping[str, Tensor]
) -> Rearrangement:
    """How a call of `cut` is undone."""
    source: Any = node.args[0]
    keys: Any = node.args[1:]
    shape = fakes[source].shape
    found = [_box(key, shape, fakes, buffers) for key in keys]
    boxes = [box for box in found if box is not None]
    return _along_one(keys, boxes, shape) or Placed(tuple([_placed(key, fakes, buffers) for key in keys]))


def _part(
    node: fx.Node, source: fx.Node, fakes: Mapping[fx.Node, Any], buffers: Mapping[str, Tensor]
) -> _Part | None:
    if node.op not in ("call_function", "call_method") or not node.args or node.args[0] is not source:
        return None
    if not isinstance(fakes.get(node), Tensor):
        return None
    if node.target is operator.getitem:
        key: Any = node.args[1]
    else:
        key = _key_of_taking(node, fakes[source].ndim) if node.target in TAKEN else source
    if key is source:
        return None
    key = key if isinstance(key, tuple) else (key,)
    box = _box(key, fakes[source].shape, fakes, buffers)
    return None if box is None else _Part(node, key, box)


def _key_of_taking(node: fx.Node, ndim: int) -> Any:
    """`narrow`, `select` and `index_select` as the key that gives the same; else the source."""
    given: list[Any] = [*node.args[1:], *node.kwargs.values()]
    if len(given) < 2 or not isinstance(given[0], int):
        return node.args[0]
    what = given[1]
    if getattr(node.target, "__name__", node.target) == "narrow":
        if len(given) != 3 or not all(isinstance(each, int) for each in given) or what < 0:
            return node.args[0]
        what = slice(what, what + given[2])
    return (*[slice(None)] * (given[0] % ndim), what)


def _box(
    key: Any, shape: torch.Size, fakes: Mapping[fx.Node, Any], buffers: Mapping[str, Tensor]
) -> Box | None:
    """What a key takes of a tensor of this shape; None where that is no product of indices, each once."""
    found: list[Sequence[int]] = []
    consumed = sum(each is not None and each is not Ellipsis for each in key)
    if consumed > len(shape) or sum(each is Ellipsis for each in key) > 1:
        return None
    for each in key:
        if each is None:
            continue
        if each is Ellipsis:
            skipped = len(shape) - consumed
            found += [range(size) for size in shape[len(found) : len(found) + skipped]]
            continue
        indices = _indices(each, shape[len(found)], fakes, buffers)
        if indices is None:
            return None
        found.append(indices)
    found += [range(size) for size in shape[len(found) :]]
    # Several index tensors are matched with each other: no product.
    return None if sum(isinstance(each, tuple) for each in found) > 1 else tuple(found)


def _indices(
    what: Any, size: int, fakes: Mapping[fx.Node, Any], buffers: Mapping[str, Tensor]
) -> Sequence[int] | None:
    """The indices that a part of a key takes along a dimension of this size."""
    if isinstance(what, slice):
        parts = [_number(each, fakes) for each in (what.start, what.stop, what.step)]
        if any(part is ... for part in parts) or parts[2] == 0:
            return None
        return range(*slice(*parts).indices(size))
    index = _index_of(what, fakes, buffers)
    if index is None:
        number = _number(what, fakes)
        return range(number % size, number % size + 1) if isinstance(number, int) else None
    if max(size, len(index)) > MOST_INDICES or not all(-size <= each < size for each in index):
        return None
    indices = tuple([each % size for each in index])
    return indices if len(set(indices)) == len(indices) else None


def _number(what: Any, fakes: Mapping[fx.Node, Any]) -> Any:
    """A whole number or None, as it was for the example; an ellipsis for anything else."""
    number = fakes.get(what) if isinstance(what, fx.Node) else what
    return number if number is None or type(number) is int else ...


def _index_of(
    what: Any, fakes: Mapping[fx.Node, Any], buffers: Mapping[str, Tensor]
) -> tuple[int, ...] | None:
    """The indices in a list, a constant tensor or one of the model's buffers; None where it is none."""
    if isinstance(what, list):
        return tuple(what) if all(type(each) is int for each in what) else None
    if isinstance(what, fx.Node):
        what = buffers.get(str(what.target)) if what.op == "get_attr" else None
    if not isinstance(what, Tensor) or isinstance(what, FakeTensor) or what.ndim != 1 or what.is_meta:
        return None
    if what.dtype == torch.bool:
        what = what.nonzero().flatten()
    if what.dtype not in (torch.int64, torch.int32) or len(what) > MOST_INDICES:
        return None
    return tuple(what.tolist())


def _without_copies(tracer: Tracer, graph: fx.Graph, parts: list[_Part]) -> list[_Part]:
    """The parts, each once: what reads the same part again reads the first one."""
    found: dict[tuple[Box, torch.Size], _Part] = {}
    for part in parts:
        first = found.setdefault((part.box, tracer.fakes[part.node].shape), part).node
        if first is part.node:
            continue

        def renamed(leaf: Any, old: fx.Node = part.node, new: fx.Node = first) -> Any:
            return new if leaf is old else leaf

        part.node.replace_all_uses_with(first)
        graph.erase_node(part.node)
        for scope in tracer.scopes:
            scope.args, scope.kwargs = map_leaves(renamed, scope.args), map_leaves(renamed, scope.kwargs)
            scope.result = map_leaves(renamed, scope.result)
            scope.nodes = [node for node in scope.nodes if node is not part.node]
    return list(found.values())


def _partitions(parts: list[_Part], total: int) -> Iterable[list[_Part]]:
    """Sets of parts that each cover the whole, every element once."""
    rest: list[_Part] = []
    for part in parts:
        if part.count == total:
            yield [part]
        elif len(rest) < MOST_PARTS and all(_are_disjoint(part.box, other.box) for other in rest):
            rest.append(part)
    if rest and sum(part.count for part in rest) == total:
        yield sorted(rest, key=lambda part: [_ends(each)[0] for each in part.box])


def _are_disjoint(one: Box, two: Box) -> bool:
    return any(_share_nothing(mine, other) for mine, other in zip(one, two, strict=True))


def _share_nothing(one: Sequence[int], two: Sequence[int]) -> bool:
    """Whether no index is in both; told by their ends where that is enough, for they may be very many."""
    if one == two:
        return False
    (low, high), (least, most) = _ends(one), _ends(two)
    return high < least or most < low or set(one).isdisjoint(two)


def _ends(indices: Sequence[int]) -> tuple[int, int]:
    """The least and the largest index; (0, 0) of none."""
    if not indices:
        return 0, 0
    ends = (indices[0], indices[-1]) if isinstance(indices, range) else indices
    return min(ends), max(ends)


def _gather(
    tracer: Tracer,
    graph: fx.Graph,
    source: fx.Node,
    parts: list[_Part],
    order: dict[fx.Node, int],
    scopes: dict[fx.Node, list[int]],
) -> None:
    """The parts become items of one call of `cut`, before the first of them, in the scopes that it is in."""
    first = min((part.node for part in parts), key=order.__getitem__)
    nodes = [part.node for part in parts]
    numbers = sorted(_numbers_before(nodes, order[first], order), key=order.__getitem__)
    for number in numbers:
        first.prepend(number)
    with graph.inserting_before(first):
        call = graph.call_function(cut, (source, *(part.key for part in parts)))
    order[call] = order[first]
    tracer.fakes[call] = tuple(tracer.fakes[node] for node in nodes)
    tracer.where[call] = tracer.where.get(first, "")
    tracer.scope_of[call] = tracer.scope_of.get(first, "")
    moved = set(numbers)
    scopes[call] = scopes.get(first, [])
    for scope in [tracer.scopes[index] for index in scopes[call]]:
        rest = [node for node in scope.nodes if node not in moved] if moved else scope.nodes
        place = rest.index(first)
        before = [node for node in scope.nodes if node in moved] if moved else []
        scope.nodes = [*rest[:place], *before, call, *rest[place:]]
    for place, node in enumerate(nodes):
        node.op, node.target = "call_function", operator.getitem
        node.args, node.kwargs = (call, place), {}


def _numbers_before(nodes: list[fx.Node], start: int, order: Mapping[fx.Node, int]) -> set[fx.Node]:
    """What the keys of parts are computed from after the first part was taken: numbers, of shapes."""
    found: set[fx.Node] = set()
    pending = [each for node in nodes for each in node.all_input_nodes]
    while pending:
        node = pending.pop()
        if order[node] > start and node not in found:
            found.add(node)
            pending += node.all_input_nodes
    return found


def _along_one(keys: Sequence[Any], boxes: list[Box], shape: torch.Size) -> Rearrangement | None:
    """How parts are joined that lie one after the other along one dimension, whatever the sizes."""
    if any(isinstance(indices, tuple) for box in boxes for indices in box):
        return None
    if len(keys) == 1:
        return Reshaped()
    whole = [range(size) for size in shape]
    cuts = [dim for dim, every in enumerate(whole) if any(box[dim] != every for box in boxes)]
    if len(cuts) != 1 or any(each is None for key in keys for each in key):
        return None
    (dim,) = cuts
    if [index for box in boxes for index in box[dim]] != list(whole[dim]):
        return None
    dropped = {sum(each is not Ellipsis and not isinstance(each, slice) for each in key) for key in keys}
    if dropped == {0}:
        return Joined(dim)
    return Stacked(dim) if dropped == {1} and all(len(box[dim]) == 1 for box in boxes) else None


def _placed(key: tuple[Any, ...], fakes: Mapping[fx.Node, Any], buffers: Mapping[str, Tensor]) -> Any:
    """A key without traced leaves: numbers as they were, buffers by their paths."""

    def settled(leaf: Any) -> Any:
        if isinstance(leaf, fx.Node):
            return Owned(str(leaf.target)) if leaf.op == "get_attr" else fakes[leaf]
        return list(_index_of(leaf, fakes, buffers) or ()) if isinstance(leaf, Tensor) else leaf

    return map_leaves(settled, key)
