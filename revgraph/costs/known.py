"""Known: what was recorded of nodes of torch's own layers and functions, kept from one trace to the next.

A course hangs on what runs, on the forms of what goes in, and on torch's global state. Of torch's own layers
and functions all of that can be told, so equal nodes of other models, and of the same one traced anew, do not
run again. Of the user's code it cannot: what that reads may have changed in between.
"""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from types import BuiltinFunctionType, FunctionType, MethodDescriptorType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from revgraph import looks
from revgraph.costs.isolating import Recorded
from revgraph.expressions import Call, Register, leaves
from revgraph.program import Operation
from revgraph.storages import memory_key
from revgraph.tracing.guards.torch_state import GETTERS, TORCH_STATE, call_text

MOST = 10_000
OWN = ("torch.", "revgraph.")
OPERATORS = ("torch", "_operator", "math", "builtins")
OPERANDS = (Register, int, float, complex, bool, str, type(None), Tensor, torch.Size)
OPERANDS += (torch.dtype, torch.device, torch.layout, torch.memory_format)
PLAIN = (*looks.PLAIN, bool)
TENSORS = ("_parameters", "_buffers")
HOOKS = tuple(name for name, value in nn.Module().__dict__.items() if "hooks" in name and not value)

_lock = threading.Lock()
_known: OrderedDict[Hashable, Recorded] = OrderedDict()


def state_now() -> Hashable | None:
    """Torch's global state, as far as courses may hang on it; None while someone watches what torch does."""
    if _get_current_dispatch_mode_stack() or torch._C._len_torch_function_stack():
        return None
    tables = vars(nn.modules.module).items()
    if any([table for name, table in tables if name.startswith("_global_") and "hooks" in name]):
        return None
    asked = sorted(set(GETTERS.values()))
    asked += [
        call_text(name, (kind,))
        for kind in ("cpu", "cuda")
        for name in ("is_autocast_enabled", "get_autocast_dtype")
    ]
    return tuple([repr(getattr(TORCH_STATE, each)) for each in asked])


def content_of(
    operation: Operation, modules: Sequence[nn.Module], values: Sequence[str], own: dict[int, bool]
) -> Hashable | None:
    """What a node is made of, besides its signature, where that is torch's and revgraph's alone; else None.

    `modules` are all that it runs, with what they contain, and `values` those of their attributes. `own`
    remembers of which modules that is so, by their ids.
    """
    for module in modules:
        if id(module) not in own:
            own[id(module)] = _is_own(module)
    law, undo = operation.law, operation.rearrangement
    if not all([own[id(module)] for module in modules]) or not all(
        map(_is_plain, operation.expression.calls)
    ):
        return None
    if any(type(each).__module__.partition(".")[0] != "revgraph" for each in (law, undo) if each is not None):
        return None
    forwards = tuple([type(module).forward for module in modules])
    numbers: dict[int, int] = {}
    tied = tuple([numbers.setdefault(memory_key(each), len(numbers)) for each in _tensors_of(modules)])
    made = operation.expression.outputs, len(operation.makes)
    return forwards, tuple(values), tied, made, repr(law), repr(undo)


def find(key: Hashable) -> Recorded | None:
    """What is known under a key."""
    with _lock:
        if key in _known:
            _known.move_to_end(key)
            return _known[key]
    return None


def remember(key: Hashable, recorded: Recorded) -> None:
    """Keep what was recorded; what was not asked for the longest time goes."""
    with _lock:
        _known[key] = recorded
        if len(_known) > MOST:
            _known.popitem(last=False)


def forget() -> None:
    """Know nothing any more."""
    with _lock:
        _known.clear()


def _is_own(module: nn.Module) -> bool:
    """Whether a module is torch's or revgraph's as it came: without hooks, and with plain attributes only."""
    kind, held = type(module), module.__dict__
    place: Any = sys.modules.get(kind.__module__)
    return (
        kind.__module__.startswith(OWN)
        and getattr(place, kind.__qualname__, None) is kind
        and not any([held.get(name) for name in (*HOOKS, "_compiled_call_impl")])
        and all([_is_own_tensor(each) for table in TENSORS for each in held[table].values()])
        and all([name in looks.TABLES or _is_value(value) for name, value in held.items()])
    )


def _tensors_of(modules: Sequence[nn.Module]) -> list[Tensor]:
    tables = [module.__dict__[name] for module in modules for name in TENSORS]
    return [each for table in tables for each in table.values() if each is not None]


def _is_own_tensor(tensor: Tensor | None) -> bool:
    return tensor is None or (type(tensor) in (Tensor, nn.Parameter) and not tensor.is_inference())


def _is_value(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_is_value, value))
    return isinstance(value, PLAIN)


def _is_plain(call: Call) -> bool:
    """Whether a call runs nothing of the user's: by itself, and by what it is given."""
    if not all([isinstance(leaf, OPERANDS) for leaf in leaves((call.args, call.kwargs))]):
        return False
    target: Any = call.target
    if call.kind != "function":
        return True
    if isinstance(target, (BuiltinFunctionType, MethodDescriptorType)):
        return True
    name = getattr(target, "__module__", None) or ""
    return isinstance(target, FunctionType) and (name in OPERATORS or name.startswith(OWN))
