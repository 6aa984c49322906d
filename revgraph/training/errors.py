"""The error of a training run."""

from __future__ import annotations

from revgraph.errors import RevgraphError


class TrainingError(RevgraphError):
    """A training run cannot start, go on, or be written down; the text says at which step and what to do."""


class Elsewhere(TrainingError):
    """The main process of several failed, and tells why itself; this one ends with it."""
