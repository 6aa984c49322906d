"""Reversible neural networks as graphs: declare or trace, plan what to store, train in less memory."""

from revgraph import reference
from revgraph.autograd_memory import saved
from revgraph.bijections import ActNorm, InvertibleConv1x1, Scale
from revgraph.checking import GradientReport, check
from revgraph.conversion import dual_residual, set_dual_residual
from revgraph.couplings import Additive, Affine, Boundary, Coupling, Gated
from revgraph.drawing import draw
from revgraph.dynamics import DualResidual, Leapfrog, Midpoint, Momentum
from revgraph.engine.module import ReversibleModule
from revgraph.errors import (
    BudgetError,
    CouplingError,
    DataError,
    DriftError,
    DriftWarning,
    GraphError,
    PlanError,
    ReplayError,
    RevgraphError,
    SpecError,
    TraceError,
    TraceWarning,
)
from revgraph.estimating import estimate_drift
from revgraph.graph import Graph, Node, Value, verify
from revgraph.initializing import initialize
from revgraph.joint_bijections import Bijection
from revgraph.loading import load, trace
from revgraph.measuring import Measurement, measure
from revgraph.notebooks import attach
from revgraph.planning import (
    PROFILES,
    DeviceProfile,
    Moment,
    Plan,
    decide,
    frontier,
    keep_all,
    knee,
    plan,
    simulate,
)
from revgraph.profiling import profile
from revgraph.saved_table import SavedRow, SavedTable
from revgraph.schedules import DualResidualSchedule
from revgraph.specs import register
from revgraph.tracking import track
from revgraph.wiring import (
    Concatenate,
    Haar,
    Permute,
    Reshape,
    ShuffleChannels,
    SpaceToDepth,
    Split,
    Swap,
    Wiring,
)

__version__ = "0.1.0"

attach()

__all__ = [
    "PROFILES",
    "ActNorm",
    "Additive",
    "Affine",
    "Bijection",
    "Boundary",
    "BudgetError",
    "Concatenate",
    "Coupling",
    "CouplingError",
    "DataError",
    "DeviceProfile",
    "DriftError",
    "DriftWarning",
    "DualResidual",
    "DualResidualSchedule",
    "Gated",
    "GradientReport",
    "Graph",
    "GraphError",
    "Haar",
    "InvertibleConv1x1",
    "Leapfrog",
    "Measurement",
    "Midpoint",
    "Moment",
    "Momentum",
    "Node",
    "Permute",
    "Plan",
    "PlanError",
    "ReplayError",
    "Reshape",
    "ReversibleModule",
    "RevgraphError",
    "SavedRow",
    "SavedTable",
    "Scale",
    "ShuffleChannels",
    "SpaceToDepth",
    "SpecError",
    "Split",
    "Swap",
    "TraceError",
    "TraceWarning",
    "Value",
    "Wiring",
    "check",
    "decide",
    "draw",
    "dual_residual",
    "estimate_drift",
    "frontier",
    "initialize",
    "keep_all",
    "knee",
    "load",
    "measure",
    "plan",
    "profile",
    "reference",
    "register",
    "saved",
    "set_dual_residual",
    "simulate",
    "trace",
    "track",
    "verify",
]
