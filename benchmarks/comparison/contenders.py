"""Who is compared: each contender makes of a network what it would run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from benchmarks.comparison.libraries import (
    invtorch_stretch,
    memcnn_stretch,
    reformer_stretch,
    revlib_stretch,
    revtorch_stretch,
)
from benchmarks.comparison.networks import Network
from benchmarks.comparison.running import (
    Assembled,
    Blocks,
    Candidate,
    CheckpointStretch,
    Reversible,
    run_plainly,
    weights,
)


@dataclass(frozen=True, slots=True)
class Contender:
    """What a row of the table is about.

    `build` makes a candidate of a network and a factor for its parameters. `distribution` is the library
    whose version the row names; a peer is one that may be missing, or fail.
    """

    name: str
    build: Callable[[Network, float], Candidate]
    distribution: str | None = None
    is_peer: bool = False


def contenders() -> list[Contender]:
    """Plain autograd first: the others are measured against it."""
    return [
        Contender("plain autograd", run_plainly),
        Contender("checkpoint per block", _assembled(CheckpointStretch)),
        _peer("memcnn", memcnn_stretch),
        _peer("revtorch", revtorch_stretch),
        _peer("revlib", revlib_stretch),
        _peer("reformer-pytorch", reformer_stretch),
        _peer("invtorch", invtorch_stretch),
        Contender("revgraph", _inverting, distribution="revgraph"),
    ]


def _peer(name: str, run: Callable[[Blocks], nn.Module]) -> Contender:
    return Contender(name, _assembled(run), distribution=name, is_peer=True)


def _assembled(run: Callable[[Blocks], nn.Module]) -> Callable[[Network, float], Candidate]:
    return lambda network, scale: Assembled(weights(network, scale), network, run)


def _inverting(network: Network, scale: float) -> Candidate:
    """Under the default plan."""
    return Reversible(weights(network, scale))
