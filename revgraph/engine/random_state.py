"""Random numbers: the generators' states that replays draw from again, and whose turn it is to draw.

Locks keep threads that train on the CPU from meeting in the middle of a replay, for generators and buffers
are everybody's.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from revgraph.engine import _torch

_NODES, _DRAWS = threading.RLock(), threading.RLock()
if hasattr(os, "register_at_fork"):
    for lock in (_NODES, _DRAWS):
        os.register_at_fork(after_in_child=lock._at_fork_reinit)  # pyright: ignore[reportAttributeAccessIssue]


def devices_of(tensors: Sequence[Any]) -> list[int]:
    """The GPUs that these tensors are on."""
    return sorted(
        {tensor.device.index for tensor in tensors if isinstance(tensor, Tensor) and tensor.is_cuda}
    )


class RandomStream:
    """The state of the random generators between nodes, read again only where it may have moved."""

    __slots__ = ("devices", "state")

    def __init__(self, devices: list[int]) -> None:
        self.devices = devices
        self.state: tuple[bytes, ...] | None = None

    def read(self) -> tuple[bytes, ...]:
        with _torch.unseen():
            cpu = torch.default_generator.get_state().numpy().tobytes()
            if not self.devices:
                return (cpu,)
            return (cpu, *(torch.cuda.get_rng_state(index).numpy().tobytes() for index in self.devices))

    def before(self) -> tuple[bytes, ...]:
        if self.state is None or threading.active_count() > 1:  # another thread may have drawn since
            self.state = self.read()
        return self.state

    def drawn_since(self, before: tuple[bytes, ...]) -> bool:
        if self.devices:
            self.state = self.read()
        else:
            with _torch.unseen():
                self.state = (torch.default_generator.get_state().numpy().tobytes(),)
        return self.state != before


@contextmanager
def random_restored(state: tuple[bytes, ...], devices: list[int]) -> Iterator[None]:
    """Run with the generators as they were; afterwards they are as before. One thread does so at a time."""
    with _DRAWS, _restored(state, devices):
        yield


@contextmanager
def _restored(state: tuple[bytes, ...], devices: list[int]) -> Iterator[None]:
    with _torch.unseen():
        fork = torch.random.fork_rng(devices)
        fork.__enter__()
        torch.default_generator.set_state(_tensor(state[0]))
        for index, part in zip(devices, state[1:], strict=True):
            torch.cuda.set_rng_state(_tensor(part), index)
    try:
        yield
    finally:
        with _torch.unseen():
            fork.__exit__(None, None, None)


def _tensor(state: bytes) -> Tensor:
    return torch.frombuffer(bytearray(state), dtype=torch.uint8)


def turn(values: Iterable[Any]) -> AbstractContextManager[Any]:
    """What to hold while a node of a net with these inputs runs.

    A replay puts the forward's random numbers and buffers back for a moment. Both belong to the whole
    process, so another thread's node must not run meanwhile: it would draw numbers that were drawn before,
    and update buffers that are thrown away. On other devices than the CPU it is nothing: there a backward
    pass runs in threads of its own, which a forward that differentiates may have to wait for.
    """
    on_cpu = all([value.device.type in ("cpu", "meta") for value in values if isinstance(value, Tensor)])
    return _NODES if on_cpu else nullcontext()
