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
    """Whether gradients, inference mode and autocast are on, and the default dtype."""
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        *(torch.is_autocast_enabled(device) for device in ("cpu", "cuda")),
        torch.get_default_dtype(),
    )


DEVICES = ("cpu", "cuda")
_LEFT: ContextVar[tuple[str, ...]] = ContextVar("the devices for which autocast was left", default=())


@contextmanager
def without_autocast() -> Iterator[None]:
    """A block in full precision, whatever is around it."""
    left = _LEFT.set(
        tuple(each for each in DEVICES if each in _LEFT.get() or torch.is_autocast_enabled(each))
    )
    try:
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            yield
    finally:
        _LEFT.reset(left)


@contextmanager
def autocast_around() -> Iterator[None]:
    """A block to ask for autocast in: as it was before it was left."""
    left = [each for each in _LEFT.get() if not torch.is_autocast_enabled(each)]
    for device in left:
        torch.set_autocast_enabled(device, True)
    try:
        yield
    finally:
        for device in left:
            torch.set_autocast_enabled(device, False)


def is_autocast_around() -> bool:
    """Whether autocast is on, or was before it was left for this block."""
    return bool(_LEFT.get()) or any(map(torch.is_autocast_enabled, DEVICES))
