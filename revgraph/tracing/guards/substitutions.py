"""Modules that are called while they hold something else than their own, as in `torch.func.functional_call`.

A call of a module in a graph computes with what the module holds when the graph runs. Where the code around
it puts other tensors or settings into it for the call, that would be another call.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from revgraph.isolation import MODULE_TABLES
from revgraph.tracing.guards.fixed_values import MISSING, same


class OwnState:
    """What modules hold of their own: parameters, buffers and plain attributes."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._own = {id(each): _state_of(each) for each in modules if not _is_compiled(each)}

    def renew(self, module: nn.Module) -> None:
        """A call of the module has run: what it left is its own."""
        self._own.update((id(each), _state_of(each)) for each in module.modules() if id(each) in self._own)

    def substituted(self, module: nn.Module, path: str, tensors_only: bool = False) -> str:
        """What a module, or one in it, holds instead of its own, as the name of the place; "" for nothing.

        With `tensors_only`, attributes do not count: those of opened code are seen where it reads them.
        """
        for name, each in module.named_modules(prefix=path):
            if id(each) not in self._own:
                continue
            (tensors, plain), (own_tensors, own_plain) = _state_of(each), self._own[id(each)]
            pairs = [(tensors, own_tensors)] if tensors_only else [(tensors, own_tensors), (plain, own_plain)]
            for now, own in pairs:
                for key in dict.fromkeys((*own, *now)):
                    if not _is_same(own.get(key, MISSING), now.get(key, MISSING)):
                        return f"{name}.{key}" if name else key
        return ""


def _state_of(module: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters and buffers, and attributes."""
    held = module.__dict__
    plain = {name: each for name, each in held.items() if name not in MODULE_TABLES and name != "forward"}
    return {**module._parameters, **module._buffers}, plain


def _is_same(own: Any, now: Any) -> bool:
    """Whether an attribute is its own still; a lazy parameter that takes its form is."""
    return same(own, now) or is_lazy(own)


def _is_compiled(module: nn.Module) -> bool:
    return isinstance(module, torch.jit.ScriptModule)
