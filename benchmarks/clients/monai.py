"""MONAI's networks for images in three dimensions. They have no checkpointing of their own."""

from __future__ import annotations

import torch

from benchmarks.clients.client import Client, Example


def _unet(size: int, batch: int, channels: tuple[int, ...]) -> Example:
    from monai.networks.nets import UNet

    strides = (2,) * (len(channels) - 1)
    model = UNet(3, 1, 2, channels, strides, num_res_units=2, dropout=0.1)
    return Example(model, (torch.randn(batch, 1, size, size, size),))


def _segresnet(size: int, batch: int, width: int) -> Example:
    from monai.networks.nets import SegResNet

    model = SegResNet(3, width, in_channels=1, out_channels=2, dropout_prob=0.1)
    return Example(model, (torch.randn(batch, 1, size, size, size),))


CLIENTS = (
    Client(
        "UNet",
        "monai",
        lambda: _unet(16, 2, (4, 8, 16)),
        lambda: _unet(96, 2, (32, 64, 128, 256, 512)),
    ),
    Client("SegResNet", "monai", lambda: _segresnet(16, 2, 8), lambda: _segresnet(96, 2, 32)),
)
