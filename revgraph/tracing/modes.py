"""Gradient mode, inference mode and autocast: the modes around a call, which a graph does not record."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch


class GradientMode:
    """The gradient mode as an attribute, for code that reads it to be held to."""

    @property
    def is_enabled(self) -> bool:
        return torch.is_grad_enabled()


GRADIENT_MODE = GradientMode()


def modes() -> tuple[Any, ...]:
    """Whether gradients, inference mode and autocast are on."""
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        *(torch.is_autocast_enabled(device) for device in ("cpu", "cuda")),
    )


_LEFT = ContextVar("autocast was left", default=False)


@contextmanager
def without_autocast() -> Iterator[None]:
    """A block in full precision, whatever is around it."""
    left = _LEFT.set(is_autocast_around())
    try:
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            yield
    finally:
        _LEFT.reset(left)


def is_autocast_around() -> bool:
    """Whether autocast is on, or was before it was left for this block."""
    return _LEFT.get() or any(map(torch.is_autocast_enabled, ("cpu", "cuda")))
