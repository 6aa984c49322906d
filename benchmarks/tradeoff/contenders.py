"""What torch offers itself: ordinary autograd, checkpoints, and the compiler's partitioner with a budget."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter
from torch.utils.checkpoint import checkpoint

from benchmarks.tradeoff.networks import Fold, several

Run = Callable[..., Any]


def checkpointed(model: Fold, parts: int) -> Run:
    """The blocks in `parts` stretches of about equal length, each under torch's checkpoint."""
    bounds = [round(index * len(model) / parts) for index in range(parts + 1)]
    stretches = [list(model)[first:last] for first, last in pairwise(bounds)]

    def run(*values: Tensor) -> Any:
        for stretch in stretches:
            values = several(checkpoint(_in_turn(stretch), *values, use_reentrant=False))
        return values[0] if len(values) == 1 else values

    return run


def per_block(model: Fold) -> Run:
    return checkpointed(model, len(model))


def every_root(model: Fold) -> Run:
    """As many stretches as the root of the number of blocks."""
    return checkpointed(model, max(1, math.isqrt(len(model))))


def partitioned(model: nn.Module, budget: float) -> Run:
    """The graphs that the compiler's partitioner makes under a memory budget from 0 to 1, run as they are.

    The partitioner is the one of `torch.compile`; no code is generated, so the figures are the partition's.
    Each graph frees what it is given and what it made after its last use. BatchNorm keeps no running averages
    here: the graphs save them for the backward pass, which then fails because the forward pass updates them.
    """
    from functorch.compile import aot_module, min_cut_rematerialization_partition
    from torch._functorch import config

    compiled = aot_module(
        _without_averages(model),
        fw_compiler=_interpreted,
        bw_compiler=_interpreted,
        partition_fn=min_cut_rematerialization_partition,
    )

    def run(*values: Tensor) -> Any:
        with config.patch(activation_memory_budget=float(budget)):
            return compiled(*values)

    return run


def _without_averages(model: nn.Module) -> nn.Module:
    """A copy on the same parameters whose BatchNorms have no running averages."""
    copied = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
    for module in copied.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
    return copied


def _in_turn(blocks: Sequence[nn.Module]) -> Run:
    def run(*values: Tensor) -> tuple[Any, ...]:
        for block in blocks:
            values = several(block(*values))
        return values

    return run


def _interpreted(graph: GraphModule, example: Sequence[Any]) -> Any:
    def run(arguments: list[Any]) -> Any:
        with torch.no_grad():
            return Interpreter(graph).boxed_run(arguments)

    run._boxed_call = True  # the arguments are the callee's, to free
    return run
