"""What a replay must find as the forward found it: random numbers, autocast, flags, buffers, parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from revgraph.errors import ReplayError
from revgraph.runtime.sharding import NO_SHARDS, Shards, shard_versions
from revgraph.runtime.turns import has_company

DEVICES = ("cpu", "cuda")
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


# States of generators are tensors to torch, but not to those who watch or fake what a node does.
unseen: Callable[[], AbstractContextManager[None]] = torch._C._DisableTorchDispatch

HALF = (torch.float16, torch.bfloat16)
Autocast = tuple[torch.dtype | None, ...]
NO_AUTOCAST: Autocast = (None,) * len(DEVICES)


def autocast_state() -> Autocast:
    """Autocast's precision for each kind of device, None where it is off."""
    return tuple(
        [torch.get_autocast_dtype(each) if torch.is_autocast_enabled(each) else None for each in DEVICES]
    )


def widened(value: Any) -> Any:
    """A stream's first value in float32, where autocast made it in half precision."""
    if isinstance(value, Tensor) and value.dtype in HALF and torch.is_autocast_enabled(value.device.type):
        return value.float()
    return value


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


def devices_of(tensors: Sequence[Any]) -> list[int]:
    """The GPUs that these tensors are on."""
    return sorted(
        {tensor.device.index for tensor in tensors if isinstance(tensor, Tensor) and tensor.is_cuda}
    )


class RandomStream:
    """The state of the random generators between nodes, read again only where it may have moved."""

    __slots__ = ("devices", "state")

    def __init__(self, tensors: Sequence[Any]) -> None:
        self.devices = devices_of(tensors)
        self.state: tuple[bytes, ...] | None = None

    def read(self) -> tuple[bytes, ...]:
        with unseen():
            cpu = torch.default_generator.get_state().numpy().tobytes()
            if not self.devices:
                return (cpu,)
            return (cpu, *(torch.cuda.get_rng_state(index).numpy().tobytes() for index in self.devices))

    def before(self) -> tuple[bytes, ...]:
        if self.state is None or has_company():
            self.state = self.read()
        return self.state

    def drawn_since(self, before: tuple[bytes, ...]) -> bool:
        self.state = self.read()
        return self.state != before


@contextmanager
def random_restored(state: tuple[bytes, ...], devices: list[int]) -> Iterator[None]:
    """Run with the generators as they were; afterwards they are as before."""
    with unseen():
        fork = torch.random.fork_rng(devices)
        fork.__enter__()
        torch.default_generator.set_state(_tensor(state[0]))
        for index, part in zip(devices, state[1:], strict=True):
            torch.cuda.set_rng_state(_tensor(part), index)
    try:
        yield
    finally:
        with unseen():
            fork.__exit__(None, None, None)


def _tensor(state: bytes) -> Tensor:
    return torch.frombuffer(bytearray(state), dtype=torch.uint8)


class ModuleState:
    """Training flags, parameter versions and buffers of a node's modules, taken before its forward.

    Buffers that the forward changes are held as they were, except those of torch's own batch normalization in
    training, which writes its running statistics without reading them.
    """

    __slots__ = ("_copies", "_flags", "_modules", "_shards", "_versions")

    def __init__(
        self, modules: list[nn.Module], every_buffer: bool = False, shards: Shards = NO_SHARDS
    ) -> None:
        """With `every_buffer` a run is shielded from all of them, whether or not a forward changed any.

        Parameters among the `shards` are told by these.
        """
        self._modules = modules
        self._flags = [module.training for module in modules]
        self._shards = _own(modules, shards) if shards else NO_SHARDS
        self._versions = _parameter_versions(modules, self._shards)
        self._copies: list[_Copy] = []
        for module in modules:
            if module._buffers:
                disposable = every_buffer or (type(module) in BATCH_NORMS and module.training)
                for name, buffer in module._buffers.items():
                    if buffer is not None:
                        self._copies.append(_Copy(module, name, buffer, disposable))

    def after_forward(self) -> None:
        """Let go of the copies of buffers that did not change."""
        for copy in self._copies:
            copy.after_forward()
        if self._shards:  # FSDP lays out its shards anew in the first forward
            self._versions = _parameter_versions(self._modules, self._shards)

    def unread_storages(self) -> set[int]:
        """The storages of buffers that the forward writes without reading them."""
        return {copy.storage for copy in self._copies if copy.changed} if self._copies else set()

    def check(self, node: str) -> None:
        """Refuse a replay on parameters or buffers that changed since the forward.

        Raises:
            ReplayError: one did.
        """
        if _parameter_versions(self._modules, self._shards) != self._versions or any(
            copy.is_stale() for copy in self._copies
        ):
            raise ReplayError(
                f"a parameter or buffer of node {node!r} was changed or replaced between forward and "
                "backward "
                "(by an optimizer step, for example), so its replay would not repeat the forward. Run "
                f"backward before the change, or keep the node: decisions {{{node!r}: 'keep'}}."
            )

    def differs(self) -> bool:
        """Whether there is anything to restore."""
        return [module.training for module in self._modules] != self._flags or any(
            copy.changed for copy in self._copies
        )

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Run with flags and buffers as the forward found them; what the run writes to buffers is dropped."""
        flags = [module.training for module in self._modules]
        changed = [copy for copy in self._copies if copy.changed]
        now = [copy.module._buffers[copy.name] for copy in changed]
        try:
            for module, flag in zip(self._modules, self._flags, strict=True):
                module.training = flag
            for copy, buffer in zip(changed, now, strict=True):
                copy.module._buffers[copy.name] = copy.for_replay(buffer)
            yield
        finally:
            for module, flag in zip(self._modules, flags, strict=True):
                module.training = flag
            for copy, buffer in zip(changed, now, strict=True):
                copy.module._buffers[copy.name] = buffer


class _Copy:
    """A buffer before a forward; `changed` says, after it, whether the forward changed it."""

    __slots__ = ("_version", "before", "changed", "module", "name", "storage")

    def __init__(self, module: nn.Module, name: str, buffer: Tensor, disposable: bool) -> None:
        self.module = module
        self.name = name
        self.before = None if disposable else buffer.clone()
        self.changed = disposable
        self.storage = buffer.untyped_storage()._cdata
        self._version = (id(buffer), buffer._version)

    def after_forward(self) -> None:
        if not self.changed:
            self.changed = self._now() != self._version
            if not self.changed:
                self.before = None

    def is_stale(self) -> bool:
        """Whether a buffer that the forward left alone has changed since."""
        return not self.changed and self._now() != self._version

    def for_replay(self, now: Tensor | None) -> Tensor | None:
        source = now if self.before is None else self.before
        return None if source is None else source.clone()

    def _now(self) -> tuple[int, int]:
        buffer = self.module._buffers[self.name]
        return id(buffer), -1 if buffer is None else buffer._version


def _parameter_versions(modules: Sequence[nn.Module], shards: Shards) -> list[tuple[int, int, int]]:
    """What changes when a parameter is edited, given other memory (`.data = ...`) or replaced."""
    versions = shard_versions(shards) if shards else []
    return versions + [
        (id(parameter), parameter._version, parameter.untyped_storage()._cdata)
        for module in modules
        if module._parameters
        for name, parameter in module._parameters.items()
        if parameter is not None and not (shards and (module, name) in shards)
    ]


def _own(modules: Sequence[nn.Module], shards: Shards) -> Shards:
    return {
        (module, name): shards[module, name]
        for module in modules
        for name in module._parameters
        if (module, name) in shards
    }
