"""What the engine takes from torch that is not public: here alone, each with its reason.

| name | why | the public way |
|---|---|---|
| push_hooks, pop_hooks | hooks for saved tensors around single nodes | `saved_tensors_hooks`, a context manager in Python |
| current_graph_task | tells backward passes apart | none |
| keeps_graph | whether this pass frees the graph | none |
| current_operator | the operator whose backward runs, and so asks for saved tensors | none |
| queue_callback | to end a pass with its graph task | none |
| set_grad_enabled | gradient mode around single nodes | `torch.set_grad_enabled`, a context manager in Python |
| unseen | reads of generators and buffers that no dispatch mode is to see | none |
| below_autograd | what runs below autograd and still counts versions | none |
| the stack of function modes | to put back default devices and other modes | `torch.overrides`, without taking off |
| autocast_is_on | one look at all devices | `torch.is_autocast_enabled`, one device at a time |
| interpreter_stack, forward_level | whether a transform of `torch.func` runs | none |
| frame_callback, disable_dynamo | whether `torch.compile` would read this code | `torch.compiler.disable`, which imports the compiler |
| compiler_name | whether `torch.compile(net, backend="revgraph")` reads the net | none |
| without_overrides | reads of parameters that no function mode is to see | none |
| without_dispatch_modes | to try a replay without a mode around the backward | none |
| has_global_hooks | hooks on all modules, which no compiled step calls | none |
| switches | which kernels and algorithms are allowed | `torch.backends` and others, one call each |
"""
# ruff: noqa: E501  (a table)

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.nn.modules import module as _modules
from torch.utils import _python_dispatch

_C: Any = torch._C

push_hooks: Callable[[Callable[[Any], Any], Callable[[Any], Any]], None] = (
    _C._autograd._push_saved_tensors_default_hooks
)
pop_hooks: Callable[[], None] = _C._autograd._pop_saved_tensors_default_hooks
current_graph_task: Callable[[], int] = _C._current_graph_task_id
has_global_hooks: Callable[[], object] = _modules._has_any_global_hook
keeps_graph: Callable[[], bool] = _C._autograd._get_current_graph_task_keep_graph
current_operator: Callable[[], Any] = _C._current_autograd_node
queue_callback: Callable[[Callable[[], None]], None] = (
    torch.autograd.Variable._execution_engine.queue_callback
)
set_grad_enabled: Callable[[bool], None] = _C._set_grad_enabled

unseen: Callable[[], AbstractContextManager[None]] = _C._DisableTorchDispatch
exclude_keys: Any = _C._SetExcludeDispatchKeyGuard
in_place_or_view: Any = _C.DispatchKey.ADInplaceOrView

autocast_is_on: Callable[[], bool] = getattr(
    _C, "_is_any_autocast_enabled", lambda: torch.is_autocast_enabled() or torch.is_autocast_enabled("cpu")
)
dispatch_mode_count: Callable[[], int] = _C._len_torch_dispatch_stack
function_mode_count: Callable[[], int] = _C._len_torch_function_stack
pop_function_mode: Callable[[], Any] = _C._pop_torch_function_stack
push_function_mode: Callable[[Any], None] = _C._push_on_torch_function_stack
function_mode_at: Callable[[int], Any] = _C._get_function_stack_at
dispatch_mode_at: Callable[[int], Any] = _C._get_dispatch_stack_at

without_overrides: Callable[[], AbstractContextManager[None]] = _C.DisableTorchFunction
without_dispatch_modes: Callable[[], AbstractContextManager[Any]] = _python_dispatch._disable_current_modes

interpreter_stack: Callable[[], Any] = _C._functorch.peek_interpreter_stack

_frames: Any = _C._dynamo.eval_frame
frame_callback: Callable[[], Any] = getattr(_frames, "get_eval_frame_callback", lambda: None)
disable_dynamo: Any = torch._disable_dynamo  # pyright: ignore[reportPrivateImportUsage]


def compiler_name() -> str:
    """The name of the backend that torch.compile reads code for at the moment."""
    from torch._dynamo.symbolic_convert import InstructionTranslator  # is there when this is called

    try:
        compiler: Any = InstructionTranslator.current_tx().output.compiler_fn
    except AttributeError:  # it would compile what is called from here, and reads none of it now
        return ""
    return getattr(compiler, "compiler_name", None) or getattr(compiler, "__name__", "")


def _switch(get: str, put: str) -> list[tuple[Callable[[], Any], Callable[[Any], Any]]]:
    """What reads and what sets a switch, where this version of torch has it."""
    return [(getattr(_C, get), getattr(_C, put))] if hasattr(_C, get) and hasattr(_C, put) else []


def _set_deterministic(on: bool) -> None:
    _C._set_deterministic_algorithms(on, warn_only=_C._get_deterministic_algorithms_warn_only())


def _set_warn_only(on: bool) -> None:
    _C._set_deterministic_algorithms(_C._get_deterministic_algorithms(), warn_only=on)


def _matmul_precision() -> str | None:
    try:
        return _C._get_float32_matmul_precision()
    except RuntimeError:  # it was set for one backend by itself, of which the older name says nothing
        return None


def _set_matmul_precision(precision: str | None) -> None:
    if precision is not None:
        _C._set_float32_matmul_precision(precision)


switches = [
    *(
        switch
        for name in ("flash", "mem_efficient", "math", "cudnn", "overrideable")
        for switch in _switch(f"_get_{name}_sdp_enabled", f"_set_sdp_use_{name}")
    ),
    (_C._get_deterministic_algorithms, _set_deterministic),
    (_C._get_deterministic_algorithms_warn_only, _set_warn_only),
    (_matmul_precision, _set_matmul_precision),
    *_switch("_get_deterministic_fill_uninitialized_memory", "_set_deterministic_fill_uninitialized_memory"),
    *_switch("_get_mkldnn_enabled", "_set_mkldnn_enabled"),
    *_switch("_get_cudnn_enabled", "_set_cudnn_enabled"),
    *_switch("_get_cudnn_deterministic", "_set_cudnn_deterministic"),
    *_switch("_get_cudnn_benchmark", "_set_cudnn_benchmark"),
]
