"""Telling: what a step of the schedule does, in words and as lines of Algorithm 1."""

from __future__ import annotations

from revgraph.planning.plans import Plan
from revgraph.planning.schedule import Instruction

ALGORITHM = {
    1: "z₁ = y₁",
    2: "x₂ = y₂ - G(z₁)",
    3: "x₁ = z₁ - F(x₂)",
    4: "z̄₁ = ȳ₁ + (∂G/∂z₁)ᵀ ȳ₂",
    5: "x̄₂ = ȳ₂ + (∂F/∂x₂)ᵀ z̄₁",
    6: "x̄₁ = z̄₁",
    7: "weights of F: (∂F/∂w)ᵀ z̄₁",
    8: "weights of G: (∂G/∂w)ᵀ ȳ₂",
}
"""The backward pass of a block (Gomez et al. 2017, Algorithm 1)."""

WHAT = {
    "run": "Forward: run {node}",
    "free": "Free what was stored for nothing",
    "loss": "The loss: the turn from forward to backward",
    "invert": "Invert {node}",
    "recompute": "Run {node} again",
    "recompute_and_keep": "Run {node} again, and hold its internals",
    "invert_again": "Invert {node} once more",
    "rerun": "Run {node} again for its outputs",
    "invert_wiring": "Undo the wiring {node}",
    "wire": "Redo the wiring {node}",
    "backward": "Backward of {node}",
}


def what(step: Instruction) -> str:
    """The step in a few words."""
    return WHAT[step.action].format(node=step.node)


def why(step: Instruction, plan: Plan) -> str:
    """What the step reads and gives, and what it lets go."""
    said: list[str] = []
    if step.action == "invert":
        outputs = plan.graph.node[step.node].outputs
        read = tuple(name for name in step.reads if name not in outputs)
        said.append(f"Its function runs once on {_list(read) or 'nothing'}, which gives its internals.")
        if step.makes:
            said.append(f"With its output {_list(outputs)} that gives back {_list(step.makes)}.")
    elif step.action in ("recompute", "recompute_and_keep", "rerun", "invert_again", "wire", "invert_wiring"):
        said.append(f"From {_list(step.reads)}" + (f" to {_list(step.makes)}." if step.makes else "."))
    elif step.action == "backward":
        said.append("Vector-Jacobian products: gradients of its inputs and parameters.")
    if step.stores:
        said.append(f"Stores {_list(step.stores)}.")
    if step.frees and (step.stage or step.action == "free"):
        said.append(f"Lets go of {_list(step.frees)}.")
    return " ".join(said)


def lines_of(step: Instruction, plan: Plan) -> tuple[int, ...]:
    """The lines of Algorithm 1 that run in a step.

    Of a block of two, the half-step with G is lines 1, 2, 4 and 8, that with F lines 3, 5, 6 and 7.
    """
    node = plan.graph.node.get(step.node)
    if node is None or node.kind != "coupling" or step.action not in ("invert", "backward"):
        return ()
    last = node.name.rpartition(".")[2]
    if step.action == "invert":
        return {"g": (1, 2), "f": (3,)}.get(last, (1, 2, 3))
    return {"g": (4, 8), "f": (5, 6, 7)}.get(last, (4, 5, 6, 7, 8))


def _list(names: tuple[str, ...]) -> str:
    return ", ".join(names)
