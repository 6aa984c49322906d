"""The two ways to a reversible module: a traced model, and a declared one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from revgraph.costs import with_costs
from revgraph.errors import SpecError, TraceError
from revgraph.runtime.module import ReversibleModule
from revgraph.specs import build, traced_inputs
from revgraph.tracing import trace as trace_program


def trace(model: nn.Module, *example_inputs: Any, **example_kwargs: Any) -> ReversibleModule:
    """A reversible module that computes what `model` does, traced with example inputs.

    Couplings are found in its code: coupling modules, and additions `x1 + f(x2)` whose target can be given
    back. What cannot be traced stays one opaque node. The model shares its parameters with the result and
    is left as it was.

    Raises:
        TraceError: the model fails on the example, or its own forward cannot be traced.

    Example:
        >>> import torch, revgraph as rg
        >>> class Block(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.f, self.g = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
        ...     def forward(self, x1, x2):
        ...         y1 = x1 + self.f(x2)
        ...         return y1, x2 + self.g(y1)
        >>> net = rg.trace(Block(), torch.zeros(2, 4), torch.zeros(2, 4))
        >>> [node.name for node in net.graph.nodes if node.kind == "coupling"]
        ['f', 'g']
    """
    return _net(model, example_inputs, example_kwargs, type(model).__name__)


def load(
    source: str | Path | Mapping[str, Any], batch: int | None = None, **parameters: Any
) -> ReversibleModule:
    """A reversible module from a spec: a shipped name, a YAML file, or a mapping.

    `batch` is the batch size to plan for; `parameters` override the spec's own (`classes=100`).

    Raises:
        SpecError: the spec is wrong; the text says where.
    """
    built = build(source, batch=batch, **parameters)
    try:
        return _net(built.module, traced_inputs(built), {}, built.name)
    except TraceError as error:
        cause = error.__cause__ or error
        places = [note.split("declared at ")[-1] for note in getattr(cause, "__notes__", ())]
        raise SpecError(
            f"{places[0] if places else built.name}: the layers do not fit together: {cause}"
        ) from error


def _net(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> ReversibleModule:
    program = trace_program(model, args, kwargs, name)
    return ReversibleModule(model, replace(program, graph=with_costs(program, model)))
