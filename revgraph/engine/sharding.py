"""Sharding: under FSDP2 (`fully_shard`) a module shows its parameters now whole, now as shards.

A module gathers its parameters before its forward and before its backward, and gives them up in between, so
that the two find other objects in the same place. The shards stay: an optimizer changes them, and their
versions tell whether it did.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed
from torch import nn

Shards = Mapping[tuple[nn.Module, str], Any]
NO_SHARDS: Shards = {}


def shards_of(net: nn.Module) -> Shards:
    """What keeps the shards of each sharded parameter, by the modules and names that show the parameter."""
    found: dict[tuple[nn.Module, str], Any] = {}
    for module in sharded_modules(net.modules()):
        for group in _groups(module):
            for kept in group.fsdp_params:
                info = kept._module_info
                found[info.module, info.param_name] = kept
                for shown in zip(info.shared_modules, info.shared_param_names, strict=True):
                    found[shown] = kept
    return found


def sharded_modules(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """Those to which `fully_shard` was applied."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return []
    from torch.distributed.fsdp import FSDPModule

    return [module for module in modules if isinstance(module, FSDPModule)]


def is_sharded(net: nn.Module) -> bool:
    """Whether the net or a module in it is sharded; also through another face of the net.

    `fully_shard` marks the object that it is given by its class, and registers hooks, which all faces share.
    """
    owners = (getattr(hook, "__self__", None) for hook in net._forward_pre_hooks.values())
    return bool(sharded_modules(net.modules())) or any(type(each).__name__ == "FSDPState" for each in owners)


def shard_versions(shards: Shards) -> list[tuple[int, int, int]]:
    """What changes when a shard is edited or replaced."""
    found = []
    for kept in shards.values():
        shard = kept.sharded_param
        found.append((id(shard), shard._version, shard._local_tensor._version))
    return found


@contextmanager
def resharded(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Modules that are in shards before the block are in shards after it.

    In a backward pass FSDP leaves that to the module's own backward, which may be over already.
    """
    found: list[Any] = [each for each in sharded_modules(modules) if any(map(_is_sharded, _groups(each)))]
    try:
        yield
    finally:
        for module in found:
            module.reshard()


def advice_on_shards(net: nn.Module, called: Iterable[str]) -> str:
    """What to do about sharded modules whose own forward no node calls, so that they never gather; or ""."""
    reached = tuple(called)
    names = {module: name for name, module in net.named_modules()}
    idle = [
        name
        for name in (names[module] for module in sharded_modules(net.modules()) if _has_parameters(module))
        if name and not any(name == path or name.startswith(f"{path}.") for path in reached)
    ]
    if not idle:
        return ""
    return (
        f"fully_shard was applied to {idle[0]!r}, whose own forward does not run: the graph has its nodes in "
        "its place. Apply it to modules that nodes call (see net.graph), and to the whole net."
    )


def _groups(module: Any) -> list[Any]:
    """A sharded module's groups of parameters; in earlier versions of torch it has at most one."""
    state = module._get_fsdp_state()
    groups = getattr(state, "_fsdp_param_groups", None)
    return [group for group in ([state._fsdp_param_group] if groups is None else groups) if group is not None]


def _has_parameters(module: Any) -> bool:
    return any(group.fsdp_params for group in _groups(module))


def _is_sharded(group: Any) -> bool:
    return not group.is_unsharded
