"""timm's image networks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from benchmarks.clients.client import Client, Example
from benchmarks.clients.torchvision_operators import import_torchvision

BATCH, SIZE = 32, 224


def _model(name: str, size: int, batch: int, **changes: Any) -> Example:
    import_torchvision()
    import timm

    return Example(timm.create_model(name, **changes), (torch.randn(batch, 3, size, size),))


def _client(name: str, size: int, tiny: Mapping[str, Any], full: Mapping[str, Any] | None = None) -> Client:
    def small() -> Example:
        return _model(name, size, 2, num_classes=10, **tiny)

    def whole() -> Example:
        return _model(name, SIZE, BATCH, **(full or {}))

    return Client(name, "timm", small, whole, checkpoint=lambda model: model.set_grad_checkpointing())


CLIENTS = (
    _client("resnet50", 64, {"layers": (2, 2, 1, 1), "channels": (8, 16, 24, 32), "stem_width": 8}),
    _client("convnext_tiny", 64, {"depths": (2, 2, 2, 1), "dims": (8, 16, 24, 32), "drop_path_rate": 0.1}),
)
