"""Recursive checkpointing with `torch.utils.checkpoint`: halves of halves, down to single blocks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from benchmarks.tradeoff.contenders import Run
from benchmarks.tradeoff.networks import Fold, several


def recursive(model: Fold) -> Run:
    """The blocks under checkpoints that nest as often as their number can be halved (Chen et al. 2016).

    At any time a checkpoint a level is held, and the internals of one block: O(log L) bytes, and every level
    computes the forward once more: O(L log L).
    """

    def run(*values: Tensor) -> Any:
        result = _halved(list(model), *values)
        return result[0] if len(result) == 1 else result

    return run


def _halved(blocks: Sequence[nn.Module], *values: Any) -> tuple[Any, ...]:
    if len(blocks) == 1:
        return several(blocks[0](*values))
    middle = len(blocks) // 2
    for half in (blocks[:middle], blocks[middle:]):
        values = several(checkpoint(partial(_halved, half), *values, use_reentrant=False))
    return values
