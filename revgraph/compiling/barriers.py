"""Barriers: values that a compiler which fuses is to write to memory, whatever reads them.

Torch's compiler computes cheap pointwise work where it is read. Of a rebuilt stream, `y - F(x)`, it would
keep `y` and `F(x)` until the last reader has read both, where the plan counts one tensor.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

_library = torch.library.Library("revgraph", "FRAGMENT")
if not hasattr(torch.ops.revgraph, "in_memory"):  # a module that is imported anew finds it there
    _library.define("in_memory(Tensor x) -> Tensor")
    _library.impl("in_memory", lambda x: x.clone(), "CompositeExplicitAutograd")
    torch.library.register_fake(
        "revgraph::in_memory",
        lambda x: torch.empty_strided(x.size(), x.stride(), dtype=x.dtype, device=x.device),
        lib=_library,
    )
IN_MEMORY: Any = torch.ops.revgraph.in_memory.default


def in_memory(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """A node's value with a barrier behind it."""
    value = node.meta["val"]
    if not isinstance(value, Tensor):
        return node
    found = graph.call_function(IN_MEMORY, (node,))
    found.meta = {"val": value}
    return found
