"""A second device for machines with a CPU only: it computes on the CPU, and autograd takes it for another.

Its tensors lie in the CPU's memory and run the CPU's kernels, and say that they are on `second:0`. Autograd
runs the backward of what is on a device other than the CPU in a thread of its own, and so it does here.

`install` is for the whole process and for good, and must come before its first backward. Tensors of the
device cannot be pickled or deep-copied, and there are no convolutions.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_map_only

NAME = "second"

_C: Any = torch._C
_acc: Any = getattr(_C, "_acc", None)
_aten: Any = torch.ops.aten
_libraries: list[torch.library.Library] = []


def what_is_missing() -> str:
    """Why this build of torch cannot have such a device, or ""."""
    if any(not hasattr(_acc, name) for name in ("PrivateUse1Hooks", "DeviceGuard", "create_empty_tensor")):
        return f"torch {torch.__version__} has no backends that are written in Python"
    if not hasattr(_C, "_construct_storage_from_data_pointer"):
        return f"torch {torch.__version__} makes no storage over memory that is given"
    return ""


def install() -> torch.device:
    """Register the device."""

    class Hooks(_acc.PrivateUse1Hooks):
        def is_available(self) -> bool:
            return True

        def is_built(self) -> bool:
            return True

        def has_primary_context(self, index: int) -> bool:
            return True

    class Guard(_acc.DeviceGuard):
        def type_(self) -> Any:
            return _C._autograd.DeviceType.PrivateUse1

    torch.utils.rename_privateuse1_backend(NAME)
    torch._register_device_module(NAME, _Module())
    _acc.register_python_privateuseone_hook(Hooks())
    _acc.register_python_privateuseone_device_guard(Guard())
    every, aten = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    _libraries.extend((every, aten))
    every.fallback(_computed, "PrivateUse1")
    every.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    kernels = {
        name: _by_the_cpu(getattr(_aten, name).default) for name in ("as_strided", "view", "_reshape_alias")
    }
    kernels |= {"empty.memory_format": _empty, "empty_strided": _empty_strided, "_copy_from": _copy_from}
    for name, kernel in kernels.items():
        aten.impl(name, _plainly(kernel), "PrivateUse1")
    return torch.device(NAME, 0)


def in_thread_of(device: torch.device, run: Callable[[], Any]) -> Any:
    """What `run` returns in the thread in which autograd runs the backward of what is on a device."""
    found: list[Any] = []
    there = torch.zeros((), requires_grad=True).to(device) + 1
    there.register_hook(lambda _: found.append(run()))
    there.cpu().backward()
    return found[0]


def keep_errors(errors: list[Exception]) -> None:
    """What hooks for saved tensors raise in the device's thread goes to a list, and autograd gets zeros.

    Raised there, it would end the process: autograd's way out of the node leads through the device's guard,
    and one that is written in Python cannot be called while an error is pending.
    """
    thread = in_thread_of(torch.device(NAME, 0), threading.get_ident)
    begin = saved_tensors_hooks.__init__

    def init(self: saved_tensors_hooks, pack: Callable[..., Any], unpack: Callable[..., Any]) -> None:
        def packed(tensor: Tensor) -> Any:
            return pack(tensor), (tensor.shape, tensor.dtype, tensor.device)

        def unpacked(both: Any) -> Tensor:
            held, (shape, dtype, device) = both
            try:
                return unpack(held)
            except Exception as error:
                if threading.get_ident() != thread:
                    raise
                errors.append(error)
                return torch.zeros(shape, dtype=dtype, device=device)

        begin(self, packed, unpacked)

    saved_tensors_hooks.__init__ = init


class _Module:
    """What torch looks for in `torch.second`."""

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        """Nothing: the CPU's generator draws for this device too."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]


def _plainly(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """A kernel beyond the reach of modes."""

    def run(*args: Any, **kwargs: Any) -> Any:
        with _C.DisableTorchFunction():
            return kernel(*args, **kwargs)

    return run


def _by_the_cpu(operator: Any) -> Callable[..., Any]:
    """The CPU's kernel of an operator, on tensors of any device: for those that do not touch elements."""

    def run(*args: Any, **kwargs: Any) -> Any:
        return operator._op_dk(_C.DispatchKey.CPU, *args, **kwargs)

    return run


_set = _by_the_cpu(_aten.set_.source_Storage_storage_offset)


def _computed(operator: Any, *args: Any, **kwargs: Any) -> Any:
    """Any other operator: run on the CPU's tensors over the same memory."""
    with _C.DisableTorchFunction():
        taken: dict[int, tuple[Tensor, Tensor]] = {}

        def lowered(tensor: Tensor) -> Tensor:
            low = _lowered(tensor)
            taken[id(low)] = (low, tensor)
            return low

        args, kwargs = tree_map_only(Tensor, lowered, (args, kwargs))
        if kwargs.get("device") is not None and torch.device(kwargs["device"]).type == NAME:
            kwargs["device"] = torch.device("cpu")
        results = operator(*args, **kwargs)
        for low, tensor in taken.values():
            if low.shape != tensor.shape:  # an `out` that took the shape of the result
                _lay(tensor, low)
        return tree_map_only(
            Tensor, lambda low: taken[id(low)][1] if id(low) in taken else _raised(low), results
        )


def _lowered(tensor: Tensor) -> Tensor:
    if tensor.device.type != NAME:
        return tensor
    memory: Any = tensor.untyped_storage()
    low = torch.empty(0, dtype=tensor.dtype, device="cpu")
    return low.set_(memory.below, tensor.storage_offset(), tensor.size(), tensor.stride())


def _raised(low: Tensor) -> Tensor:
    return _lay(_acc.create_empty_tensor((0,), low.dtype), low)


def _lay(tensor: Tensor, low: Tensor) -> Tensor:
    """Lay a tensor of the device over the memory of one of the CPU's, which it keeps alive."""
    below = low.untyped_storage()
    memory = _C._construct_storage_from_data_pointer(below.data_ptr(), torch.device(NAME, 0), below.nbytes())
    memory.below = below
    return _set(tensor, memory, low.storage_offset(), list(low.size()), list(low.stride()))


def _empty(
    size: Any, *, dtype: torch.dtype | None = None, memory_format: torch.memory_format | None = None, **_: Any
) -> Tensor:
    form = memory_format or torch.contiguous_format
    return _raised(torch.empty(size, dtype=dtype, memory_format=form, device="cpu"))


def _empty_strided(size: Any, stride: Any, *, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    return _raised(torch.empty_strided(size, stride, dtype=dtype, device="cpu"))


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    _lowered(target).copy_(_lowered(source))
    return target
