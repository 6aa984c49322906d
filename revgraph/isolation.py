"""Isolation: running a model's code without leaving a mark on the model or the random state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode


@contextmanager
def untouched(model: nn.Module, faked: bool = True) -> Iterator[None]:
    """Run with copies of all buffers (fake ones if `faked`); modules and random state end as they began."""
    fake_mode = FakeTensorMode(allow_non_fake_inputs=True) if faked else None
    modules = list(model.modules())
    attributes = [dict(module.__dict__) for module in modules]
    tables = [(dict(module._parameters), dict(module._buffers), dict(module._modules)) for module in modules]
    copies: dict[int, Tensor] = {}
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        try:
            for module in modules:
                for key, buffer in module._buffers.items():
                    if buffer is not None:
                        if id(buffer) not in copies:
                            copies[id(buffer)] = _copy(buffer, fake_mode)
                        module._buffers[key] = copies[id(buffer)]
            yield
        finally:
            for module, saved, (parameters, buffers, children) in zip(
                modules, attributes, tables, strict=True
            ):
                module.__dict__.clear()
                module.__dict__.update(saved)
                contents: list[tuple[Any, Any]] = [
                    (module._parameters, parameters),
                    (module._buffers, buffers),
                    (module._modules, children),
                ]
                for table, content in contents:
                    table.clear()
                    table.update(content)


def _copy(buffer: Tensor, fake_mode: FakeTensorMode | None) -> Tensor:
    return buffer.detach().clone() if fake_mode is None else fake_mode.from_tensor(buffer, static_shapes=True)
