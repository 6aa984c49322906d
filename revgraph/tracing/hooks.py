"""Forward hooks of modules that a trace opens: calls of their own, which read values and make none.

A hook that only looks leaves the module open. Whether it does shows when it first runs: one that returns
something else than it was given changes the module's result, and such a module stays one node (`CHANGING`).
"""

from __future__ import annotations

from typing import Any
from weakref import WeakSet

from torch import nn

from revgraph.errors import TraceError

# Hooks that were seen to change what their module is given, or returns.
CHANGING: WeakSet[Any] = WeakSet()


class HookChanges(TraceError):
    """A hook of an opened module changes what the module is given or returns."""


def stays_open(module: nn.Module) -> bool:
    """Whether a module's hooks allow to trace into it."""
    if module._backward_hooks or module._backward_pre_hooks:
        return False
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return all(_of(hook) not in CHANGING for hook in hooks)


def call_pre_hooks(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Call a module's forward pre-hooks with what it is given."""
    for key, hook in [*module._forward_pre_hooks.items()]:
        with_kwargs = key in module._forward_pre_hooks_with_kwargs
        given = (args, kwargs) if with_kwargs else (args,)
        changed = hook(module, *given)
        if with_kwargs and isinstance(changed, tuple):
            same = len(changed) == 2 and _is_same(changed[0], args) and _is_same(changed[1], kwargs)
        else:
            same = changed is None or _is_same(changed, args) or (len(args) == 1 and changed is args[0])
        _hold_to_looking(hook, same)


def call_hooks(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
    """Call a module's forward hooks with what it was given, and what it returns."""
    for key, hook in [*module._forward_hooks.items()]:
        given = (args, kwargs) if key in module._forward_hooks_with_kwargs else (args,)
        changed = hook(module, *given, result)
        _hold_to_looking(hook, changed is None or _is_same(changed, result))


def _is_same(one: Any, two: Any) -> bool:
    if isinstance(one, (tuple, list)) and type(one) is type(two):
        return len(one) == len(two) and all(map(_is_same, one, two))
    if isinstance(one, dict) and isinstance(two, dict):
        return one.keys() == two.keys() and all(_is_same(one[key], two[key]) for key in one)
    return one is two


def _hold_to_looking(hook: Any, same: bool) -> None:
    if not same:
        CHANGING.add(_of(hook))
        raise HookChanges(
            f"the forward hook {getattr(hook, '__name__', hook)!r} changes what its module is given or "
            "returns. Call the net again: the module is one node from now on."
        )


def _of(hook: Any) -> Any:
    """A hook's function, which stays the same object."""
    return getattr(hook, "__func__", hook)
