"""A probe: what a net tells whoever watches one of its steps."""

from __future__ import annotations

from torch import Tensor


class Probe:
    """Watches a net (`with net.watched_by(probe)`); override what is of interest."""

    def evaluated(self, node: str) -> None:
        """A node's expression is about to run, in forward or in a replay."""

    def made(self, name: str, value: Tensor) -> None:
        """The forward made a value."""

    def rebuilt(self, name: str, value: Tensor) -> None:
        """The backward rebuilt a value."""
