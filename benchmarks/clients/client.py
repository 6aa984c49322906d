"""What a client is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from revgraph.trials import loss_of


@dataclass(frozen=True, slots=True)
class Example:
    """A model in training mode, and the arguments of a call."""

    model: nn.Module
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Client:
    """A model of a library's.

    `tiny` is to run on a CPU, in well under a second a step; `full` is called on the meta device, and only
    planned. `loss` is of what the model returns. `checkpoint` turns the library's own checkpointing on, in
    place; None where it has none. `plain` switches off, in place, what the library itself does to save
    memory, so that ordinary autograd is left to compare with. `obstacle` says why a client is not expected
    to go in: then it is a row, and no failure.
    """

    name: str
    library: str
    tiny: Callable[[], Example]
    full: Callable[[], Example] | None = None
    loss: Callable[[Any], Tensor] = loss_of
    checkpoint: Callable[[nn.Module], object] | None = None
    plain: Callable[[nn.Module], object] = lambda model: None
    obstacle: str = ""
