"""timm's image networks."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.clients.client import Client, Example
from benchmarks.clients.torchvision_operators import import_torchvision

SMALL, LARGE, BATCH = 64, 224, 32


def _model(name: str, size: int, batch: int, **changes: Any) -> Example:
    import_torchvision()
    import timm

    return Example(timm.create_model(name, **changes), (torch.randn(batch, 3, size, size),))


def _client(name: str, full: str, tiny: str = "", **changes: Any) -> Client:
    """The full-size model of a name, and the tiny one of another name or with changes."""

    def small() -> Example:
        return _model(tiny or full, SMALL, 2, num_classes=10, **changes)

    return Client(
        name,
        "timm",
        small,
        lambda: _model(full, LARGE, BATCH),
        checkpoint=lambda model: model.set_grad_checkpointing(),
    )


CLIENTS = (
    _client("resnet50", "resnet50", layers=(2, 2, 1, 1), channels=(8, 16, 24, 32), stem_width=8),
    _client("convnext", "convnext_tiny", depths=(2, 2, 2, 1), dims=(8, 16, 24, 32), drop_path_rate=0.1),
    _client("efficientnet", "efficientnet_b0", "test_efficientnet"),
    _client("mobilenetv3", "mobilenetv3_large_100", "mobilenetv3_small_050"),
    _client("regnet", "regnety_032", "regnety_002"),
    _client(
        "swin",
        "swin_tiny_patch4_window7_224",
        img_size=SMALL,
        window_size=4,
        embed_dim=16,
        depths=(2, 2),
        num_heads=(2, 4),
        drop_path_rate=0.1,
    ),
    _client(
        "vit", "vit_small_patch16_224", img_size=SMALL, embed_dim=32, depth=3, num_heads=2, drop_path_rate=0.1
    ),
    _client("maxvit", "maxvit_tiny_tf_224", img_size=SMALL, embed_dim=(32, 64), depths=(1, 1), stem_width=16),
)
