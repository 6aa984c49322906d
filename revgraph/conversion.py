"""Conversion: an ordinary, pretrained residual network as a dual-residual one, which can be inverted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from revgraph.blocks.units import ResidualUnit
from revgraph.coefficients import DualCoefficients
from revgraph.costs import with_costs
from revgraph.engine.module import ReversibleModule
from revgraph.errors import GraphError, TraceError
from revgraph.tracing import trace as trace_program
from revgraph.tracing.arguments import form_of
from revgraph.tracing.residual_blocks import SecondStreams

NAME = "dual_residual"


def dual_residual(
    model: nn.Module, *example_inputs: Any, alpha: float = 1.0, beta: float = 0.1, **example_kwargs: Any
) -> ReversibleModule:
    """A reversible module that nears `model` as beta nears 0, for finetuning a pretrained residual network.

    Its residual blocks `x' = H(x)`, found by tracing with example inputs, become those of a dual-residual
    network (Dr2Net; Zhao et al. 2024): `x' = H(x; alpha) + y`, `y' = beta * x`, where alpha multiplies the
    identity that H adds, and each run of blocks begins with y = 0. A block is an addition `x + F(x)` with
    what leads from it to the next one alone, such as a ReLU. Everything else stays as it is: blocks that
    change the shape, single ones between those, stem and head.

    The model shares its parameters with the result and is left as it was. The `state_dict` has the model's
    keys, and besides `dual_residual.alpha` and `dual_residual.beta`, which `rg.set_dual_residual` and
    `rg.DualResidualSchedule` move. Undoing a block divides by beta, which grows errors of rounding by about
    1 / beta a block: bound them with `rg.estimate_drift` and `rg.plan(net.graph, max_drift=...)`.

    A net of `rg.load` or `rg.trace` stands for the model it was made from.

    Raises:
        TraceError: no two residual blocks follow one another, the model fails on the example, or its own
            forward cannot be traced.
        GraphError: alpha is no finite number, beta is none above 0, or the net was converted before.

    Example:
        >>> import torch, revgraph as rg
        >>> class Block(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.f = torch.nn.Linear(4, 4)
        ...     def forward(self, x):
        ...         return torch.relu(self.f(x) + x)
        >>> model = torch.nn.Sequential(Block(), Block(), Block())
        >>> net = rg.dual_residual(model, torch.ones(2, 4), beta=1e-6)
        >>> torch.allclose(net(torch.ones(2, 4)), model(torch.ones(2, 4)), atol=1e-5)
        True
        >>> len(net.state_dict()) - len(model.state_dict())
        2
    """
    coefficients = DualCoefficients(alpha, beta)
    shell = _shell(model)
    name = (
        f"dual-residual {model.graph.name if isinstance(model, ReversibleModule) else type(model).__name__}"
    )
    rewrite = SecondStreams(NAME, coefficients)
    program = trace_program(shell, example_inputs, example_kwargs, name, rewrite, (ResidualUnit,))
    if not any(node.module == NAME for node in program.graph.nodes):
        raise TraceError(
            f"no two residual blocks follow one another in {type(shell).__name__}: no addition x + F(x) has "
            "both sides of the shape of the next one's. What happens inside torch's own layers, modules with "
            "hooks and modules that cannot be traced is not seen: write such blocks out in a forward of your "
            "own."
        )
    for operation in program.operations:
        target = program.graph.value.get(operation.target or "")
        if target is not None and target.dtype in ("float16", "bfloat16"):
            raise TraceError(
                f"block {operation.node!r} is on a stream in {target.dtype}, whose sums cannot be undone "
                "well. Convert the model in float32 and run it under autocast."
            )
    shell.add_module(NAME, coefficients)
    _, named = form_of(shell, example_inputs, example_kwargs)
    return ReversibleModule(shell, replace(program, graph=with_costs(program, shell, named)))


def set_dual_residual(net: nn.Module, *, alpha: float | None = None, beta: float | None = None) -> None:
    """Give a converted net other coefficients, from the next forward on; one that is not given stays.

    Raises:
        GraphError: alpha is no finite number, beta is none above 0, or the net is not of `rg.dual_residual`.
    """
    coefficients = coefficients_of(net)
    coefficients.set(
        coefficients.alpha.item() if alpha is None else alpha,
        coefficients.beta.item() if beta is None else beta,
    )


def coefficients_of(net: nn.Module) -> DualCoefficients:
    """The coefficients of a converted net, or of the one that a net wraps.

    Raises:
        GraphError: there are none.
    """
    for module in net.modules():
        if isinstance(module, DualCoefficients):
            return module
    raise GraphError(
        f"{type(net).__name__} has no coefficients to move: it was not made by revgraph.dual_residual"
    )


def _shell(model: nn.Module) -> nn.Module:
    """The model with a table of children of its own, which the coefficients can join."""
    if not isinstance(model, nn.Module):
        raise TraceError(f"only a torch.nn.Module can be converted, and this is a {type(model).__name__}")
    model = model.__dict__["_model"] if isinstance(model, ReversibleModule) else model
    if any(isinstance(module, DualCoefficients) for module in model.modules()):
        raise GraphError(
            f"{type(model).__name__} is converted already: move its coefficients with "
            "revgraph.set_dual_residual, or convert the model it was made from"
        )
    if hasattr(model, NAME):
        raise GraphError(f"{type(model).__name__} has something named {NAME!r} itself, which would be hidden")
    shell = type(model).__new__(type(model))
    shell.__dict__.update(model.__dict__)
    shell.__dict__["_modules"] = dict(model._modules)
    return shell
