"""What torch's compiler calls in the place of its own partitioner; apart, for importing it takes seconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx
from torch._inductor.custom_graph_pass import CustomPartitionerFn
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.lowering import register_lowering

from revgraph.compiling import backend
from revgraph.compiling.barriers import IN_MEMORY


@register_lowering(IN_MEMORY, type_promotion_kind=None)
def _in_memory(x: Any) -> Any:
    x.realize()
    return x


class Partitioner(CustomPartitionerFn):
    """The partition of the form that is being compiled, with a key for the compiler's cache."""

    def __init__(self, key: str) -> None:
        self.key = key

    def __call__(
        self, gm: fx.GraphModule, joint_inputs: Sequence[object], **kwargs: Any
    ) -> tuple[fx.GraphModule, fx.GraphModule]:
        return backend.partition(gm, joint_inputs, decompositions=select_decomp_table(), **kwargs)

    def uuid(self) -> str:
        """Changes with the plan and with the code that lowers it."""
        return self.key
