"""What a replay must find as the forward found it: random numbers, autocast, flags, buffers, parameters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from revgraph.errors import ReplayError

DEVICES = ("cpu", "cuda")


Autocast = tuple[torch.dtype | None, ...]
NO_AUTOCAST: Autocast = (None,) * len(DEVICES)


def autocast_state() -> Autocast:
    """Autocast's precision for each kind of device, None where it is off."""
    return tuple(
        [torch.get_autocast_dtype(each) if torch.is_autocast_enabled(each) else None for each in DEVICES]
    )


@contextmanager
def autocast_restored(state: Autocast) -> Iterator[None]:
    """Run with autocast on or off as it was; casts of parameters are not shared with what runs around."""
    with ExitStack() as stack:
        for device, dtype in zip(DEVICES, state, strict=True):
            if dtype is not None or torch.is_autocast_enabled(device):
                stack.enter_context(
                    torch.autocast(device, dtype, enabled=dtype is not None, cache_enabled=False)
                )
        yield


class RandomStream:
    """The state of the random generators between nodes, read again only where it may have moved."""

    __slots__ = ("devices", "state")

    def __init__(self, tensors: Sequence[Any]) -> None:
        self.devices = sorted(
            {tensor.device.index for tensor in tensors if isinstance(tensor, Tensor) and tensor.is_cuda}
        )
        self.state: tuple[bytes, ...] | None = None

    def read(self) -> tuple[bytes, ...]:
        cpu = torch.default_generator.get_state().numpy().tobytes()
        if not self.devices:
            return (cpu,)
        return (cpu, *(torch.cuda.get_rng_state(index).numpy().tobytes() for index in self.devices))

    def before(self) -> tuple[bytes, ...]:
        if self.state is None:
            self.state = self.read()
        return self.state

    def drawn_since(self, before: tuple[bytes, ...]) -> bool:
        self.state = self.read()
        return self.state != before


@contextmanager
def random_restored(state: tuple[bytes, ...] | None, devices: list[int]) -> Iterator[None]:
    """Run with the generators as they were; afterwards they are as before."""
    if state is None:
        yield
        return
    with torch.random.fork_rng(devices):
        torch.default_generator.set_state(_tensor(state[0]))
        for index, part in zip(devices, state[1:], strict=True):
            torch.cuda.set_rng_state(_tensor(part), index)
        yield


def _tensor(state: bytes) -> Tensor:
    return torch.frombuffer(bytearray(state), dtype=torch.uint8)


class ModuleState:
    """Training flags, parameter versions and buffers of a node's modules, taken before its forward.

    Buffers that the forward changes are held as they were, except those of batch normalization in training,
    which writes its running statistics without reading them.
    """

    __slots__ = ("_before", "_held", "flags", "versions")

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.flags = [module.training for module in modules]
        self.versions: list[int] = []
        self._held: dict[tuple[int, str], Tensor | None] = {}
        self._before: list[tuple[tuple[int, str], Tensor, int]] = []
        for index, module in enumerate(modules):
            if module._buffers:
                disposable = isinstance(module, _BatchNorm) and module.training
                for key, buffer in module._buffers.items():
                    if buffer is not None:
                        self._before.append(((index, key), buffer, buffer._version))
                        self._held[index, key] = None if disposable else buffer.clone()

    def after_forward(self, modules: Sequence[nn.Module]) -> None:
        """Keep only the copies of buffers that changed, and remember the versions of what should not."""
        for place, buffer, version in self._before:
            unchanged = modules[place[0]]._buffers[place[1]] is buffer and buffer._version == version
            if unchanged and self._held[place] is not None:
                del self._held[place]
        self._before.clear()
        self.versions = self._versions(modules)

    def _versions(self, modules: Sequence[nn.Module]) -> list[int]:
        versions = []
        for index, module in enumerate(modules):
            for parameter in module._parameters.values():
                if parameter is not None:
                    versions.append(parameter._version)
            for key, buffer in module._buffers.items():
                if buffer is not None and (index, key) not in self._held:
                    versions.append(buffer._version)
        return versions

    def check(self, modules: Sequence[nn.Module], node: str) -> None:
        """Refuse a replay on parameters or buffers that changed since the forward.

        Raises:
            ReplayError: one did.
        """
        if self._versions(modules) != self.versions:
            raise ReplayError(
                f"a parameter or buffer of node {node!r} was changed between forward and backward (by an "
                "optimizer step, for example), so its replay would not repeat the forward. Run backward "
                f"before the change, or keep the node: decisions {{{node!r}: 'keep'}}."
            )

    def differs(self, modules: Sequence[nn.Module]) -> bool:
        """Whether there is anything to restore."""
        return bool(self._held) or [module.training for module in modules] != self.flags

    @contextmanager
    def restored(self, modules: Sequence[nn.Module]) -> Iterator[None]:
        """Run with flags and buffers as the forward found them; what the run writes to buffers is dropped."""
        flags = [module.training for module in modules]
        buffers: list[tuple[nn.Module, str, Tensor]] = []
        try:
            if flags != self.flags:
                _set_flags(modules, self.flags)
            for (index, key), held in self._held.items():
                module = modules[index]
                current = module._buffers[key]
                assert current is not None
                buffers.append((module, key, current))
                module._buffers[key] = (current if held is None else held).clone()
            yield
        finally:
            if flags != self.flags:
                _set_flags(modules, flags)
            for module, key, current in reversed(buffers):
                module._buffers[key] = current


def _set_flags(modules: Sequence[nn.Module], flags: list[bool]) -> None:
    for module, flag in zip(modules, flags, strict=True):
        module.training = flag
