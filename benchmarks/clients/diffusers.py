"""diffusers' denoising networks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.clients.client import Client, Example
from benchmarks.clients.torchvision_operators import import_torchvision


def _unet(size: int, batch: int, **changes: Any) -> Example:
    import_torchvision()  # which it finds, and imports with transformers
    from diffusers import UNet2DModel

    model = UNet2DModel(sample_size=size, in_channels=3, out_channels=3, **changes)
    return Example(model, (torch.randn(batch, 3, size, size), torch.arange(batch)))


def _dit(batch: int, **changes: Any) -> Example:
    import_torchvision()  # which it finds, and imports with transformers
    from diffusers import DiTTransformer2DModel

    model = DiTTransformer2DModel(**changes)
    size = model.config["sample_size"]
    noise = torch.randn(batch, model.config["in_channels"], size, size)
    return Example(model, (noise,), {"timestep": torch.arange(batch), "class_labels": torch.arange(batch)})


def _loss(outputs: Any) -> Tensor:
    return outputs.sample.pow(2).mean()


CLIENTS = (
    Client(
        "UNet2D",
        "diffusers",
        lambda: _unet(
            16,
            2,
            block_out_channels=(8, 16, 16),
            layers_per_block=1,
            norm_num_groups=4,
            attention_head_dim=4,
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        ),
        lambda: _unet(64, 8),
        _loss,
        lambda model: model.enable_gradient_checkpointing(),
    ),
    Client(
        "DiT",
        "diffusers",
        lambda: _dit(2, num_attention_heads=2, attention_head_dim=8, num_layers=3, sample_size=8),
        lambda: _dit(32, num_attention_heads=16, attention_head_dim=72, num_layers=28, out_channels=8),
        _loss,
        lambda model: model.enable_gradient_checkpointing(),
    ),
)
