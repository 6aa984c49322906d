"""What surrounds a trace: the random state and the modes that a graph does not record."""

from __future__ import annotations

import random
from typing import Any

import torch


def random_state() -> tuple[Any, ...]:
    """The state of every generator that the user's code may draw from."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    return (
        random.getstate(),
        torch.default_generator.get_state().numpy().tobytes(),
        *(torch.cuda.get_rng_state(device).numpy().tobytes() for device in devices),
    )


def modes() -> tuple[Any, ...]:
    """Whether gradients, inference mode and autocast are on."""
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        *(torch.is_autocast_enabled(device) for device in ("cpu", "cuda")),
    )
