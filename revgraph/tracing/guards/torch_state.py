"""Torch's global state (default dtype, autocast, switches of backends) as attributes that code is held to.

Code asks for it by functions of torch's. What such a call gave is a read like others (`fixed_values.Read`) of
`TORCH_STATE`, under a name that is the call itself: `"is_autocast_enabled('cpu')"`.

Traces are made without autocast, for its casts come again where the graph runs. Code that asks for autocast
is told what is around the call for which the trace is made (`modes.autocast_around`).
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch

from revgraph.tracing.modes import autocast_around

# Asked with a device, or of one.
AUTOCAST = ("is_autocast_enabled", "is_autocast_cpu_enabled", "get_autocast_dtype")
AUTOCAST += ("get_autocast_cpu_dtype", "get_autocast_gpu_dtype", "is_autocast_cache_enabled")
SWITCHES = ("benchmark", "deterministic", "cudnn", "mkldnn", "sdp", "tf32", "float32", "cublas", "nnpack")
MAKERS = ("arange", "as_tensor", "empty", "eye", "full", "linspace", "logspace", "ones", "rand", "randn")
MAKERS += ("scalar_tensor", "tensor", "zeros")
DEFAULT_DTYPE = "get_default_dtype()"


class TorchState:
    """Torch's global state; an attribute is what the call of its name gives now."""

    def __getattr__(self, name: str) -> Any:
        if not name.endswith(")"):
            raise AttributeError(name)
        function, args = _call_of(name)
        with autocast_around():
            return function(*args)


TORCH_STATE = TorchState()


def call_text(function: str, args: tuple[Any, ...] = ()) -> str:
    """The name under which a call's result is held."""
    return f"{function}({', '.join(map(repr, args))})"


@lru_cache(maxsize=256)
def _call_of(text: str) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    name, _, rest = text.partition("(")
    args = ast.literal_eval(f"({rest[:-1]},)") if rest != ")" else ()
    return getattr(torch._C, name), args


def _functions() -> dict[Any, str]:
    """The functions of torch's without arguments that tell of its state, with the calls of them."""
    names = ["get_default_dtype", "get_num_threads", "get_num_interop_threads"]
    switches = [each for each in dir(torch._C) if each.startswith("_get_") and not each.endswith("_size")]
    names += [each for each in switches if any(map(each.__contains__, SWITCHES))]
    return {getattr(torch._C, each): call_text(each) for each in names if hasattr(torch._C, each)}


GETTERS = _functions()
GETTERS |= {getattr(torch, name): DEFAULT_DTYPE for name in MAKERS}
ASKS_AUTOCAST = {getattr(torch._C, name): name for name in AUTOCAST if hasattr(torch._C, name)}
