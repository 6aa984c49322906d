"""Reversible neural networks as graphs: declare or trace, plan what to store, train in less memory.

Each public name is imported from its module when it is first asked for, so that what needs no torch, such as
the command line's help, does not wait for it. Type checkers read the imports, Python the table below them; a
test keeps the two alike.
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from revgraph import reference
    from revgraph.autograd_memory import saved
    from revgraph.bijections import ActNorm, InvertibleConv1x1, Scale
    from revgraph.checking import GradientReport, check
    from revgraph.compiling import compile
    from revgraph.conversion import dual_residual, set_dual_residual
    from revgraph.couplings import Additive, Affine, Boundary, Coupling, Gated
    from revgraph.drawing import draw
    from revgraph.dynamics import DualResidual, Leapfrog, Midpoint, Momentum
    from revgraph.engine.module import ReversibleModule
    from revgraph.errors import (
        BudgetError,
        CompileWarning,
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

__all__ = [
    "PROFILES",
    "ActNorm",
    "Additive",
    "Affine",
    "Bijection",
    "Boundary",
    "BudgetError",
    "CompileWarning",
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
    "compile",
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

_MODULES = {
    "autograd_memory": "saved",
    "bijections": "ActNorm InvertibleConv1x1 Scale",
    "checking": "GradientReport check",
    "compiling": "compile",
    "conversion": "dual_residual set_dual_residual",
    "couplings": "Additive Affine Boundary Coupling Gated",
    "drawing": "draw",
    "dynamics": "DualResidual Leapfrog Midpoint Momentum",
    "engine.module": "ReversibleModule",
    "errors": "BudgetError CompileWarning CouplingError DataError DriftError DriftWarning GraphError "
    "PlanError ReplayError RevgraphError SpecError TraceError TraceWarning",
    "estimating": "estimate_drift",
    "graph": "Graph Node Value verify",
    "initializing": "initialize",
    "joint_bijections": "Bijection",
    "loading": "load trace",
    "measuring": "Measurement measure",
    "planning": "PROFILES DeviceProfile Moment Plan decide frontier keep_all knee plan simulate",
    "profiling": "profile",
    "saved_table": "SavedRow SavedTable",
    "schedules": "DualResidualSchedule",
    "specs": "register",
    "tracking": "track",
    "wiring": "Concatenate Haar Permute Reshape ShuffleChannels SpaceToDepth Split Swap Wiring",
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names.split()}


if not TYPE_CHECKING:  # or a checker would take any name for one of the package

    def __getattr__(name: str) -> Any:
        """A public name from its module, or a module of the package."""
        if name in _MODULE_OF:
            found = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
        elif not name.startswith("_") and find_spec(f"{__name__}.{name}"):
            found = import_module(f"{__name__}.{name}")
        else:
            # With the module Python suggests the nearest name.
            said = f"module {__name__!r} has no attribute {name!r}"
            raise AttributeError(said, name=name, obj=sys.modules[__name__])
        globals()[name] = found  # from now on Python finds it by itself
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
