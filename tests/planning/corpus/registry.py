"""The registry of the corpus: small nets of foreign kinds, each with the inputs that it is called with."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import nn

Module = TypeVar("Module", bound=type[nn.Module])


@dataclass(frozen=True, slots=True)
class Entry:
    """A net of the corpus: `make` and `inputs` are called with the random state seeded.

    `options` are those of the trace. `float64` is whether a copy in float64 is worth comparing with plain
    autograd: not where the forward names a precision of its own. `untraced` is what the error says of a net
    that is not traced.
    """

    name: str
    kind: str
    make: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Any, ...]]
    options: Mapping[str, Any] = field(default_factory=dict)
    float64: bool = True
    untraced: str = ""


NETS: dict[str, Entry] = {}


def net(inputs: Callable[[], tuple[Any, ...]], **facts: Any) -> Callable[[Module], Module]:
    """Put the decorated class, made without arguments, into the corpus, under its own name."""

    def enter(module: Module) -> Module:
        kind = module.__module__.rpartition(".")[2]
        known = NETS.get(module.__name__)  # a collector of doctests imports the same file once more
        if known is not None:
            assert inspect.getfile(known.make) == inspect.getfile(module), f"two nets: {module.__name__}"
            return module
        NETS[module.__name__] = Entry(module.__name__, kind, module, inputs, **facts)
        return module

    return enter
