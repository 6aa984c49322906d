"""Choices within a kept node: what of its operators is held for its backward, and what is computed again.

A compiler fuses pointwise work into whatever reads it. So a result of such work is not worth holding where
that it comes from is held anyway, or takes fewer bytes: it is computed again where the backward reads it.
Torch's own partitioner cuts a whole graph so; here each node is cut by itself, and what is held between nodes
is the plan's.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import fx

from revgraph.compiling.marking import MARK
from revgraph.compiling.regions import Reading, bytes_of, draws, writes

aten = torch.ops.aten
# Operators that touch no element, or each by itself, and do not say so.
ALSO_CHEAP = {
    aten.view, aten.reshape, aten.permute, aten.transpose, aten.t, aten.expand, aten.unsqueeze, aten.squeeze,
    aten.slice, aten.select, aten.detach, aten.alias, aten.clone, aten._unsafe_view,
    torch.ops.prims.convert_element_type,
}  # fmt: skip


def captured(reading: Reading, asked: Sequence[fx.Node], free: Collection[fx.Node]) -> list[fx.Node]:
    """What to hold of a node's region so that all that its backward asks for can be computed from it.

    What is `free` is held anyway.
    """
    found = {node for node in asked if node in free or not is_cheap(node)}
    for node in asked:
        if node not in found:
            sources = _sources(reading, node, found)
            more = sum(bytes_of(each) for each in sources if each not in found and each not in free)
            if more < bytes_of(node):
                found |= sources
            else:
                found.add(node)
    return sorted(found, key=reading.place.__getitem__)


def is_cheap(node: fx.Node) -> bool:
    """Whether an operator is pointwise, or makes a view."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or target is MARK or draws(node) or writes(node):
        return False
    return torch.Tag.pointwise in target.tags or target.overloadpacket in ALSO_CHEAP


def _sources(reading: Reading, node: fx.Node, held: Collection[fx.Node]) -> set[fx.Node]:
    """What a cheap operator's result is computed from, over other cheap ones that are not held."""
    found: set[fx.Node] = set()
    pending: list[Any] = [*node.all_input_nodes]
    seen: set[fx.Node] = set()
    while pending:
        each = pending.pop()
        if each in seen or each.op != "call_function" or each in reading.of_parameters:
            continue
        seen.add(each)
        if each in held or not is_cheap(each):
            found.add(each)
        else:
            pending += each.all_input_nodes
    return found
