"""Isolation: running a model's code without leaving a mark on the model or the random state."""

from __future__ import annotations

import copy
import random
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

MODULE_TABLES = frozenset(nn.Module().__dict__)


@contextmanager
def untouched(model: nn.Module, faked: bool = True) -> Iterator[None]:
    """Run with copies of all buffers (fake ones if `faked`); modules and random state end as they began."""
    fake_mode = FakeTensorMode(allow_non_fake_inputs=True) if faked else None
    modules = list(model.modules())
    attributes = [dict(module.__dict__) for module in modules]
    tables = [(dict(module._parameters), dict(module._buffers), dict(module._modules)) for module in modules]
    copies: dict[int, Tensor] = {}
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices), _random_kept(), _autocast_cache_off(), _contents_kept(attributes):
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


@contextmanager
def _random_kept() -> Iterator[None]:
    """Python's and numpy's random states end as they began."""
    state = random.getstate()
    numpy_random = getattr(sys.modules.get("numpy"), "random", None)
    numpy_state = numpy_random.get_state() if numpy_random is not None else None
    try:
        yield
    finally:
        random.setstate(state)
        if numpy_random is not None:
            numpy_random.set_state(numpy_state)


@contextmanager
def _autocast_cache_off() -> Iterator[None]:
    """Casts of parameters made meanwhile (of fake ones, perhaps) are not kept for later."""
    enabled = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(enabled)


@contextmanager
def _contents_kept(attributes: list[dict[str, Any]]) -> Iterator[None]:
    """Lists, dictionaries and the like that modules hold as attributes end with what they held."""
    held: dict[int, tuple[Any, Any]] = {}
    for own in attributes:
        for name, value in own.items():
            if name not in MODULE_TABLES:
                _hold_contents(value, held)
    try:
        yield
    finally:
        for value, content in held.values():
            value.clear()
            value.extend(content) if isinstance(value, (list, deque)) else value.update(content)


def _hold_contents(value: Any, held: dict[int, tuple[Any, Any]]) -> None:
    if isinstance(value, (list, dict, set, deque)) and id(value) not in held:
        held[id(value)] = (value, copy.copy(value))
        for item in value.values() if isinstance(value, dict) else value:
            _hold_contents(item, held)


def _copy(buffer: Tensor, fake_mode: FakeTensorMode | None) -> Tensor:
    return buffer.detach().clone() if fake_mode is None else fake_mode.from_tensor(buffer, static_shapes=True)
