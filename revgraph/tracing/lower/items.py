"""The tensors taken out of what a call returns, where that is a container."""

from __future__ import annotations

import operator
from collections.abc import Mapping, MutableMapping
from typing import Any, cast

import torch
from torch import Tensor, fx

from revgraph.tracing.proxies import holds_tensors

PLAIN = (Tensor, int, float, bool, str, type(None), torch.dtype, torch.device, torch.Size, slice)


def items_of(node: fx.Node, fakes: Mapping[fx.Node, Any]) -> tuple[fx.Node, ...]:
    """The node itself, or the items that are read of it where it is a container of tensors."""
    if not is_container(fakes.get(node)):
        return (node,)
    taken = [user for user in node.users if user.target is operator.getitem or user.target is getattr]
    found = [item for user in taken for item in items_of(user, fakes)]
    return tuple(dict.fromkeys(found)) or (node,)


def take_all(node: fx.Node, graph: fx.Graph, fakes: MutableMapping[fx.Node, Any]) -> tuple[fx.Node, ...]:
    """Every item of a tuple of tensors in its order; those that nothing reads are added to the graph."""
    fake = fakes[node]
    taken = {cast("int", user.args[1]): user for user in node.users if user.target is operator.getitem}
    for index in range(len(fake)):
        if index not in taken:
            with graph.inserting_after(node):
                taken[index] = graph.call_function(operator.getitem, (node, index))
            fakes[taken[index]] = fake[index]
    return tuple(taken[index] for index in range(len(fake)))


def path_to(item: fx.Node, node: fx.Node) -> list[fx.Node]:
    """The calls that lead from a node to an item of it."""
    path: list[fx.Node] = []
    while item is not node:
        path.insert(0, item)
        item = cast("fx.Node", item.args[0])
    return path


def is_container(fake: Any) -> bool:
    """Whether a result is a container of tensors, or an object that may carry some."""
    return holds_tensors(fake) or not (isinstance(fake, PLAIN) or not hasattr(fake, "__dict__"))
