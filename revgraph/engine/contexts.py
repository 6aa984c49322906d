"""Contexts: what a forward runs in besides its inputs, and what puts that back for a replay.

`Ambient` notes, once a forward, autocast, function modes (a default device is one), the default dtype, and
the kernels and algorithms that torch may take. Dispatch modes observe, as a rule: they are not entered
again, and where the backward runs under others, replays are tried without these, too (`BackwardPass.run`).
Here, too, is how code that runs knows of the compiler, of exports and of transforms around it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from revgraph.engine import _torch
from revgraph.errors import ReplayError
from revgraph.turns import traced_elsewhere

DEVICES = ("cpu", "cuda")
HALF = (torch.float16, torch.bfloat16)
NOTHING: AbstractContextManager[None] = nullcontext()
is_exporting: Callable[[], bool] = getattr(torch.compiler, "is_exporting", lambda: False)  # from torch 2.7 on

Autocast = tuple[torch.dtype | None, ...]
NO_AUTOCAST: Autocast = (None,) * len(DEVICES)


def compiles() -> bool:
    """Whether the compiler reads this code now, or would compile the functions that are called from here."""
    return torch.compiler.is_compiling() or _torch.frame_callback() is not None


def compiler_name() -> str:
    """The name of the backend that torch.compile reads this code for; "" for one without a name."""
    return _torch.compiler_name()


# torch.compile calls it while it reads, and takes its result for a constant.
compiler_name._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]


@_torch.disable_dynamo
def uncompiled(run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What `run` returns: the engine's own code runs as it is, also where torch.compile is at work around it.

    To be called where `compiles()`; elsewhere call `run` itself.
    """
    return run(*args, **kwargs)


def is_exported() -> bool:
    """Whether a program is made here that runs elsewhere, by `torch.export` or `torch.jit.trace`."""
    exported = is_exporting() or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
    return exported and (torch.compiler.is_dynamo_compiling() or not traced_elsewhere())


def is_transformed() -> bool:
    """Whether a transform of torch.func is running, or a forward-mode derivative.

    Under the one autograd takes no hooks for saved tensors, and with the other it saves those of tangents.
    """
    return _torch.interpreter_stack() is not None or forward_ad._current_level >= 0


class Ambient:
    """The contexts that a forward runs in."""

    __slots__ = ("autocast", "default_dtype", "dispatch_modes", "function_modes", "switches")

    def __init__(self) -> None:
        self.autocast = autocast_state()
        self.function_modes = [
            _torch.function_mode_at(index) for index in range(_torch.function_mode_count())
        ]
        self.dispatch_modes = dispatch_modes()
        self.default_dtype = torch.get_default_dtype()
        self.switches = switches_now()

    @property
    def is_plain(self) -> bool:
        """Whether functions that read nothing but their inputs compute as they do without any context."""
        return self.autocast == NO_AUTOCAST and not self.function_modes

    @property
    def is_in_force(self) -> bool:
        """Whether the contexts of now are the same."""
        return (
            self.autocast == autocast_state()
            and not self.function_modes
            and not _torch.function_mode_count()
            and self.default_dtype == torch.get_default_dtype()
            and self.switches == switches_now()
        )

    def restored(self) -> AbstractContextManager[Any]:
        """A block under these contexts, as far as they differ from today's."""
        stack = None
        if self.autocast != autocast_state():
            stack = ExitStack()
            stack.enter_context(_autocast_restored(self.autocast))
        if self.function_modes or _torch.function_mode_count():
            stack = stack or ExitStack()
            stack.enter_context(_function_modes_restored(self.function_modes))
        if self.default_dtype != torch.get_default_dtype() or self.switches != switches_now():
            stack = stack or ExitStack()
            stack.enter_context(_defaults_restored(self.default_dtype, self.switches))
        return stack or NOTHING


def dispatch_modes() -> list[Any]:
    """The dispatch modes in force, outermost first."""
    return [_torch.dispatch_mode_at(index) for index in range(_torch.dispatch_mode_count())]


def autocast_state() -> Autocast:
    """Autocast's precision for each kind of device, None where it is off."""
    if not _torch.autocast_is_on():
        return NO_AUTOCAST
    return tuple(
        [torch.get_autocast_dtype(each) if torch.is_autocast_enabled(each) else None for each in DEVICES]
    )


def switches_now() -> tuple[Any, ...]:
    """Which kernels and algorithms torch may take, such as those of attention, or only deterministic ones."""
    return tuple([get() for get, _ in _torch.switches])


def _set_switches(to: tuple[Any, ...]) -> None:
    for (get, put), value in zip(_torch.switches, to, strict=True):
        if get() != value:
            put(value)


def refuse_unrestorable() -> None:
    """Refuse a forward in a context that no replay could be put into.

    Raises:
        ReplayError: Transformer Engine's FP8 autocast is on, whose scaling factors move with every call.
    """
    for name in ("transformer_engine.pytorch.fp8", "transformer_engine.pytorch.quantization"):
        manager = getattr(sys.modules.get(name), "FP8GlobalStateManager", None)
        if manager is not None and manager.is_fp8_enabled():
            raise ReplayError(
                "the forward runs under fp8_autocast of transformer_engine, whose scaling factors a second "
                "run would move again. Leave that context around the net, or keep every node: "
                "net.plan = revgraph.keep_all(net.graph)."
            )


def widened(value: Any) -> Any:
    """A stream's first value in float32, where autocast made it in half precision."""
    if isinstance(value, Tensor) and value.dtype in HALF and torch.is_autocast_enabled(value.device.type):
        return value.float()
    return value


@contextmanager
def _autocast_restored(state: Autocast) -> Iterator[None]:
    """Run with autocast on or off as it was; casts of parameters are not shared with what runs around."""
    with ExitStack() as stack:
        for device, dtype in zip(DEVICES, state, strict=True):
            if dtype is not None or torch.is_autocast_enabled(device):
                stack.enter_context(
                    torch.autocast(device, dtype, enabled=dtype is not None, cache_enabled=False)
                )
        yield


@contextmanager
def _function_modes_restored(modes: Sequence[Any]) -> Iterator[None]:
    """Run with these function modes in place of those that are in force."""
    now = [_torch.pop_function_mode() for _ in range(_torch.function_mode_count())]
    for mode in modes:
        _torch.push_function_mode(mode)
    try:
        yield
    finally:
        for _ in modes:
            _torch.pop_function_mode()
        for mode in reversed(now):
            _torch.push_function_mode(mode)


@contextmanager
def _defaults_restored(dtype: torch.dtype, switches: tuple[Any, ...]) -> Iterator[None]:
    now = torch.get_default_dtype(), switches_now()
    torch.set_default_dtype(dtype)
    _set_switches(switches)
    try:
        yield
    finally:
        torch.set_default_dtype(now[0])
        _set_switches(now[1])
