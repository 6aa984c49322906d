"""A probe: what a net tells whoever watches one of its steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from revgraph.runtime.tape import Replay


class Probe:
    """Watches a net (`with net.watched_by(probe)`); override what is of interest.

    `compares` says whether replays are compared with the forwards that it watches.
    """

    compares = True

    def evaluated(self, node: str) -> None:
        """A node's expression is about to run, in forward or in a replay."""

    def made(self, name: str, value: Tensor) -> None:
        """The forward made a value."""

    def left(self, node: str, replay: Replay) -> None:
        """A node's forward left this replay, which it needs to be rebuilt."""

    def rebuilt(self, name: str, value: Tensor) -> None:
        """The backward rebuilt a value."""

    def replayed(self, node: str) -> None:
        """A node was evaluated again in the backward; all but what it captured and rebuilt is gone."""
