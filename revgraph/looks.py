"""Looks: keys that are equal for modules and inputs that cost the same and give the same shapes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def look_of(module: nn.Module) -> Any:
    """A module's type, plain attributes and parameters' forms, and those of its children."""
    plain = tuple(
        (key, value)
        for key, value in module.__dict__.items()
        if isinstance(value, (int, float, str, tuple, type(None))) and not key.startswith("_")
    )
    own = tuple(
        (name, None if tensor is None else form_of(tensor))
        for table in (module._parameters, module._buffers)
        for name, tensor in table.items()
    )
    children = tuple((name, child and look_of(child)) for name, child in module._modules.items())
    return type(module), repr(plain), own, children


def form_of(value: Any) -> Any:
    """A tensor's form, in which operators choose their ways too by strides; for other things, what they
    print as."""
    if isinstance(value, Tensor):
        stride = value.stride() if value.layout is torch.strided and not value.is_nested else ()
        return tuple(value.shape), stride, value.dtype, value.layout, value.device, value.requires_grad
    return repr(value)
