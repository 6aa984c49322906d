"""Reversible neural networks as graphs: declare or trace, plan what to store, train in less memory."""

from revgraph import reference
from revgraph.couplings import Additive, Affine, Boundary, Coupling
from revgraph.drawing import draw
from revgraph.errors import (
    BudgetError,
    DataError,
    DriftError,
    DriftWarning,
    GraphError,
    PlanError,
    ReplayError,
    RevgraphError,
    SpecError,
    TraceError,
)
from revgraph.estimating import estimate_drift
from revgraph.graph import Graph, Node, Value, verify
from revgraph.loading import load, trace
from revgraph.measuring import GradientReport, Measurement, check, measure
from revgraph.planning import Moment, Plan, decide, frontier, keep_all, knee, plan, simulate
from revgraph.runtime.module import ReversibleModule
from revgraph.specs import register
from revgraph.wiring import Concatenate, Permute, Reshape, SpaceToDepth, Split, Swap, Wiring

__version__ = "0.1.0"

__all__ = [
    "Additive",
    "Affine",
    "Boundary",
    "BudgetError",
    "Concatenate",
    "Coupling",
    "DataError",
    "DriftError",
    "DriftWarning",
    "GradientReport",
    "Graph",
    "GraphError",
    "Measurement",
    "Moment",
    "Node",
    "Permute",
    "Plan",
    "PlanError",
    "ReplayError",
    "Reshape",
    "ReversibleModule",
    "RevgraphError",
    "SpaceToDepth",
    "SpecError",
    "Split",
    "Swap",
    "TraceError",
    "Value",
    "Wiring",
    "check",
    "decide",
    "draw",
    "estimate_drift",
    "frontier",
    "keep_all",
    "knee",
    "load",
    "measure",
    "plan",
    "reference",
    "register",
    "simulate",
    "trace",
    "verify",
]
