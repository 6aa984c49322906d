"""The errors and warnings of revgraph: what is wrong, where, why, and what to do."""

from __future__ import annotations

import os
import sys
import warnings


class RevgraphError(Exception):
    """Any error that revgraph itself raises."""


class SpecError(RevgraphError):
    """A network's specification is wrong; the text names the place and what was expected there."""


class TraceError(RevgraphError):
    """An ordinary model could not be turned into a graph, or was run in a way its trace does not cover."""


class GraphError(RevgraphError):
    """A graph is inconsistent, or was asked for something its nodes cannot do."""


class PlanError(RevgraphError):
    """A plan does not fit its graph."""


class BudgetError(PlanError):
    """No plan fits the memory budget.

    `least_bytes` is the least budget that could be met; `node` is the node that needs it.
    """

    def __init__(self, message: str, *, least_bytes: int, node: str) -> None:
        super().__init__(message)
        self.least_bytes = least_bytes
        self.node = node


class CouplingError(RevgraphError):
    """A coupling's `uncouple` does not undo its `couple`; `node` is the coupling."""

    def __init__(self, message: str, *, node: str) -> None:
        super().__init__(message)
        self.node = node


class ReplayError(RevgraphError):
    """A replay differs from its forward evaluation, or a stored value was edited in place."""


class DriftError(RevgraphError):
    """A reconstructed value is too far from the one it stands for; `node` shows it, if known."""

    def __init__(self, message: str, *, node: str = "") -> None:
        super().__init__(message)
        self.node = node


class TraceWarning(UserWarning):
    """What a trace understands in another way than the code says it."""


class CompileWarning(UserWarning):
    """What a compiled net runs without being compiled, and why."""


class DriftWarning(UserWarning):
    """A value that was rebuilt while training has drifted further than it should."""


class DataError(RevgraphError):
    """A data file or checkpoint is missing, short, or not what it claims to be."""


def cures_of_drift(node: str) -> str:
    """What to do where rounding errors of inversion decide what a node does."""
    return (
        f"Keep the node (decisions {{{node!r}: 'keep'}}), store what it reads as an anchor "
        "(revgraph.decide(..., anchors=[...]), or revgraph.plan(..., max_drift=...)), or use exact mode "
        "(revgraph.trace(..., exact=True))."
    )


def warn(text: str, category: type[Warning]) -> None:
    """Warn at the line that led here of the code that is neither revgraph's nor torch's.

    A count of frames would change with whatever stands between: hooks, contexts, compiled functions.
    """
    torch = sys.modules.get("torch")
    inside = tuple(
        os.path.dirname(os.path.abspath(file)) + os.sep
        for file in (__file__, None if torch is None else torch.__file__)
        if file is not None
    )
    frame = last = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(inside):
        frame, last = frame.f_back, frame
    found = last if frame is None else frame
    warnings.warn_explicit(
        text,
        category,
        found.f_code.co_filename,
        found.f_lineno,
        registry=found.f_globals.setdefault("__warningregistry__", {}),
    )


def add_note(error: BaseException, note: str) -> None:
    """Attach `note` to `error` as `BaseException.add_note` does, on Python 3.10 too."""
    notes = getattr(error, "__notes__", None)
    if notes is None:
        notes = []
        error.__notes__ = notes  # pyright: ignore[reportAttributeAccessIssue]
    notes.append(note)
