"""Weights and optimizer states through `torch.distributed.checkpoint`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as checkpoint
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict


def momentum(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)


def save(folder: Path, net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Each process writes the shards that it has."""
    with alone_or_not():
        checkpoint.save(_states(net, optimizer), checkpoint_id=folder)


def load(folder: Path, net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Each process reads the shards that it needs."""
    states = _states(net, optimizer)
    with alone_or_not():
        checkpoint.load(states, checkpoint_id=folder)
    set_state_dict(net, optimizer, model_state_dict=states["net"], optim_state_dict=states["optimizer"])


def whole(net: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """All weights and momenta in one piece, by name."""
    states = _states(net, optimizer, StateDictOptions(full_state_dict=True))
    momenta = {
        f"{name} momentum": state["momentum_buffer"] for name, state in states["optimizer"]["state"].items()
    }
    return {**states["net"], **momenta}


def _states(
    net: nn.Module, optimizer: torch.optim.Optimizer, options: StateDictOptions | None = None
) -> dict[str, Any]:
    weights, states = get_state_dict(net, optimizer, options=options)
    return {"net": weights, "optimizer": states}


@contextmanager
def alone_or_not() -> Iterator[None]:
    """torch warns where a checkpoint is one process's own, as it is meant to be here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield
