"""The two ways to a reversible module: a traced model, and a declared one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from revgraph.costs import with_costs
from revgraph.engine.module import ReversibleModule
from revgraph.errors import SpecError, TraceError
from revgraph.gridding import on_grid
from revgraph.isolation import model_of, out_of_inference_mode
from revgraph.program import Program
from revgraph.progress import Progress
from revgraph.specs import build, traced_inputs
from revgraph.tracing import trace as trace_program
from revgraph.tracing.arguments import form_of
from revgraph.turns import TracingAlone

HALF = ("float16", "bfloat16")


def trace(
    model: nn.Module,
    *example_inputs: Any,
    exact: bool | float = False,
    half_streams: bool = False,
    **example_kwargs: Any,
) -> ReversibleModule:
    """A reversible module that computes what `model` does, traced with example inputs.

    Couplings are found in its code: coupling modules, and additions `x1 + f(x2)` whose target can be given
    back. What cannot be traced stays one opaque node. The model shares its parameters with the result and
    is left as it was.

    With `exact`, streams live on a fixed-point grid and inversion is exact: gradients are bit for bit those
    of stored activations, at any depth. True means steps of 2**-14 (numbers up to 1,024 in float32); a number
    is the step to use, a power of two. Numbers beyond the range raise a `DriftError` in the forward.

    Streams are to be float32 or float64; functions may run in low precision under autocast, which leaves the
    streams in float32. `half_streams` permits float16 and bfloat16, whose sums lose far more when undone.

    Of a net its model is traced, anew.

    Raises:
        TraceError: the model fails on the example, its own forward cannot be traced, a stream is in half
            precision, or exact mode meets couplings other than sums.

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
    if isinstance(model, ReversibleModule):
        model = model_of(model)
    return _net(model, example_inputs, example_kwargs, type(model).__name__, exact, half_streams)


def load(
    source: str | Path | Mapping[str, Any],
    batch: int | None = None,
    exact: bool | float | None = None,
    **parameters: Any,
) -> ReversibleModule:
    """A reversible module from a spec: a shipped name, a YAML file, or a mapping.

    `batch` is the batch size to plan for; `exact` as in `trace`, and as the spec says unless given;
    `parameters` override the spec's own (`classes=100`).

    Raises:
        SpecError: the spec is wrong; the text says where.
    """
    with out_of_inference_mode():  # or its parameters could not be trained
        built = build(source, batch=batch, **parameters)
        examples = traced_inputs(built)
    try:
        wanted = built.exact if exact is None else exact
        return _net(built.module, examples, {}, built.name, wanted)
    except TraceError as error:
        cause = error.__cause__ or error
        places = [note.split("declared at ")[-1] for note in getattr(cause, "__notes__", ())]
        raise SpecError(
            f"{places[0] if places else built.name}: the layers do not fit together: {cause}"
        ) from error


def _net(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    name: str,
    exact: bool | float,
    half_streams: bool = False,
) -> ReversibleModule:
    tracing = Tracing(name, exact, half_streams)
    return ReversibleModule(model, tracing(model, args, kwargs), None, tracing, is_model=exact is False)


@dataclass(frozen=True, slots=True)
class Tracing:
    """How a net was traced, for the other forms of call that come later."""

    name: str
    exact: bool | float
    half_streams: bool

    def __call__(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], gradients: bool = True
    ) -> Program:
        """The program of a call, with its costs; one thread at a time."""
        with TracingAlone(), Progress(f"tracing {self.name}", "reading its code") as progress:
            program = trace_program(
                model, args, kwargs, self.name, sums_only=self.exact is not False, gradients=gradients
            )
            if not self.half_streams:
                _refuse_half(program)
            if self.exact is not False:
                program = on_grid(program, model, self.exact)
            progress.phase = f"costs of {len(program.graph.planned)} nodes"
            _, named = form_of(model, args, kwargs)
            return replace(program, graph=with_costs(program, model, named))


def _refuse_half(program: Program) -> None:
    """Raise a `TraceError` where a stream is in half precision."""
    for operation in program.operations:
        target = program.graph.value.get(operation.target or "")
        if target is not None and target.dtype in HALF:
            raise TraceError(
                f"coupling {operation.node!r} changes {target.name!r}, which is {target.dtype}: a sum in "
                "half precision cannot be undone well. Keep the streams in float32 and run the functions "
                "under autocast, or permit it with half_streams=True."
            )
