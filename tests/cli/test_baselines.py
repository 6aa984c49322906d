"""torch's checkpoint around each block: what is predicted is what a step with it really takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import revgraph as rg
from revgraph.cli.baselines import block_of, checkpoint_blocks
from revgraph.storages import StorageTracker

CHANNELS, BATCH, SIDE = 8, 8, 12
STREAM_BYTES = 4 * BATCH * CHANNELS * SIDE * SIDE


def function() -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(CHANNELS), nn.ReLU(), nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1))


class Chain(nn.Module):
    def __init__(self, depth: int, checkpointed: bool) -> None:
        super().__init__()
        self.checkpointed = checkpointed
        self.stem = nn.Conv2d(3, 2 * CHANNELS, 3, padding=1)
        self.blocks = nn.ModuleList(rg.Additive(function(), function()) for _ in range(depth))
        self.head = nn.Linear(2 * CHANNELS, 10)

    def forward(self, images: Tensor) -> Tensor:
        streams: Any = self.stem(images).chunk(2, dim=1)
        for block in self.blocks:
            if self.checkpointed:
                streams = checkpoint(block, *streams, use_reentrant=False, preserve_rng_state=False)
            else:
                streams = block(*streams)
        return self.head(torch.cat(streams, dim=1).mean(dim=(2, 3)))


def measured(model: nn.Module, images: Tensor) -> tuple[int, int, int]:
    """Peak and held activation bytes of a step of a plain model, and its FLOPs."""
    with StorageTracker([images, *model.parameters(), *model.buffers()]) as tracker:
        loss = model(images).pow(2).mean()
        turn = tracker.now
        loss.backward()
    gradients = [each.grad for each in model.parameters() if each.grad is not None]
    peak, held = tracker.peak(without=gradients), tracker.live(turn)
    with FlopCounterMode(display=False) as counter:
        model(images).pow(2).mean().backward()
    return peak, held, counter.get_total_flops()


@pytest.mark.slow
@pytest.mark.parametrize("depth", [1, 2, 5])
def test_prediction_is_what_torch_takes(depth: int) -> None:
    """Held bytes and FLOPs are equal.

    The peak is within one stream: the two let go of a block's values in a different order.
    """
    images = torch.randn(BATCH, 3, SIDE, SIDE)
    plan = checkpoint_blocks(rg.trace(Chain(depth, checkpointed=False), images).graph)
    peak, held, flops = measured(Chain(depth, checkpointed=True), images)
    *_, plain = measured(Chain(depth, checkpointed=False), images)
    assert plan.held_bytes == held
    assert plan.flops_ratio == pytest.approx(flops / plain, rel=1e-12)
    assert abs(plan.peak_bytes - peak) <= STREAM_BYTES


@pytest.mark.slow
def test_blocks_of_shipped_networks() -> None:
    graph = rg.load("revnet-38", batch=2).graph
    blocks = {node.name: block_of(node) for node in graph.planned}
    assert blocks["stem"] == blocks["head"] == ""
    assert blocks["stage1.unit0"] == "stage1.unit0"
    assert blocks["stage2.unit1.f"] == blocks["stage2.unit1.g"] == "stage2.unit1"
    plan = checkpoint_blocks(graph)
    assert plan.decisions["stem"] == plan.decisions["head"] == "keep"
    assert plan.decisions["stage2.unit1.f"] == "recompute"
    assert plan.holds["stage2.unit1.f"] == "stage2.unit1.g"
    assert plan.held_bytes < rg.keep_all(graph).held_bytes


@pytest.mark.parametrize(
    ("name", "kind", "block"),
    [
        ("layers.3.mlp.0", "boundary", "layers.3"),
        ("layer1.0.conv1", "boundary", "layer1.0"),
        ("blocks.2.f", "coupling", "blocks.2"),
        ("f.0", "coupling", "f"),
        ("7", "coupling", "7"),
        ("stage1.unit0", "boundary", "stage1.unit0"),
        ("head", "boundary", ""),
    ],
)
def test_block_of_a_node(name: str, kind: Any, block: str) -> None:
    assert block_of(rg.Node(name, kind, (), ())) == block
