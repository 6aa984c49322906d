"""Forms: the shapes, dtypes and flags of tensors that an exported graph has constants of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from revgraph.looks import form_of


@dataclass(frozen=True)
class Forms:
    """The forms of a call's inputs, by name, and of a model's parameters and buffers.

    With them and the gradient mode, and without autocast, all that code can ask of a tensor but its numbers
    is as it was.
    """

    inputs: dict[str, Any]
    owners: tuple[nn.Module, ...]
    own: tuple[tuple[Any, ...], ...]

    @classmethod
    def of(cls, given: Mapping[str, Any], modules: Iterable[nn.Module]) -> Forms:
        """The forms that these inputs and the modules' tensors have."""
        owners = tuple(each for each in modules if each._parameters or each._buffers)
        return cls({name: form_of(each) for name, each in given.items()}, owners, tuple(map(_own, owners)))

    def hold(self) -> bool:
        """Whether the model's tensors have these forms."""
        return all(_own(owner) == form for owner, form in zip(self.owners, self.own, strict=True))

    def fit(self, given: Mapping[str, Any]) -> bool:
        """Whether inputs have these forms, and autocast is off."""
        if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
            return False
        return all(name in given and form_of(given[name]) == form for name, form in self.inputs.items())


def _own(module: nn.Module) -> tuple[Any, ...]:
    tables = (module._parameters, module._buffers)
    return tuple(_form(each) for table in tables for each in table.values())


def _form(tensor: Tensor | None) -> Any:
    if tensor is None or is_lazy(tensor):
        return None
    return form_of(tensor)
