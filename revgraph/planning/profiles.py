"""Device profiles: how long work takes, so that plans can be compared in seconds and not in FLOPs alone.

An operator takes as long as its FLOPs take at a device's rate, as the bytes that it reads and writes take to
be moved, and a constant; a replay takes another constant. These are estimates for comparing the plans of one
net, not forecasts for a machine: what a kernel does best depends on shapes. `revgraph.profile` measures the
nodes of a net on this machine instead, and its profile is then right for that net.

No profile is chosen by looking at the machine: plans come out alike everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from revgraph.courses import Course, Work
from revgraph.errors import PlanError
from revgraph.graph import Graph

RATES = ("flops_per_second", "bytes_per_second")
OVERHEADS = ("seconds_per_operator", "seconds_per_replay")
# Numbers beyond these are mistakes.
MOST_RATE, MOST_SECONDS = 1e18, 1e4


def _is_within(number: Any, least: float, most: float) -> bool:
    return isinstance(number, (int, float)) and not isinstance(number, bool) and least <= number <= most


@dataclass(frozen=True, slots=True)
class DeviceProfile:
    """How long work takes on a device.

    `flops_per_second` and `bytes_per_second` are rates as functions reach them, not a data sheet's peaks.
    `nodes` are seconds that the forward and the backward of nodes took where they were measured: what a node
    does under a plan is then scaled by them.

    Raises:
        PlanError: a rate is not above 0, or a time is below 0.
    """

    name: str
    flops_per_second: float
    bytes_per_second: float
    seconds_per_operator: float
    seconds_per_replay: float
    nodes: tuple[tuple[str, float, float], ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        for what in RATES:
            if not _is_within(getattr(self, what), 1, MOST_RATE):
                raise PlanError(
                    f"{what} of profile {self.name!r:.60} is {getattr(self, what)!r:.60}: a rate is a number "
                    f"from 1 to {MOST_RATE:.0e}"
                )
        times = [(what, getattr(self, what)) for what in OVERHEADS]
        times += [(f"a time of node {name!r:.60}", each) for name, *both in self.nodes for each in both]
        for what, seconds in times:
            if not _is_within(seconds, 0, MOST_SECONDS):
                raise PlanError(
                    f"{what} of profile {self.name!r:.60} is {seconds!r:.60}: seconds are a number from 0 to "
                    f"{MOST_SECONDS:.0e}"
                )

    def seconds(self, work: Work) -> float:
        """How long this work takes, by the rates alone."""
        return (
            work.flops / self.flops_per_second
            + work.moved_bytes / self.bytes_per_second
            + work.operators * self.seconds_per_operator
        )

    def as_json(self) -> dict[str, Any]:
        """The profile in types that `json` writes; a plan's file has it so."""
        return {**asdict(self), "nodes": [list(each) for each in self.nodes]}


GENERIC = DeviceProfile("generic", 1e13, 1e12, 2e-6, 1e-5)
"""No device in particular: 10 FLOPs in the time of a byte."""
# Of GPUs, the dense rates in bfloat16 (float16 on a T4) and the bandwidths in NVIDIA's data sheets, by two.
PROFILES: Mapping[str, DeviceProfile] = {
    each.name: each
    for each in (
        GENERIC,
        DeviceProfile("cpu-core", 5e10, 1e10, 3e-6, 3e-5),
        DeviceProfile("t4", 65e12 / 2, 320e9 / 2, 5e-6, 3e-5),
        DeviceProfile("a100", 312e12 / 2, 2039e9 / 2, 5e-6, 3e-5),
        DeviceProfile("h100", 989e12 / 2, 3350e9 / 2, 5e-6, 3e-5),
    )
}


class Clock:
    """The nanoseconds of a graph's work by a profile, as whole numbers, so that sums are exact."""

    def __init__(self, graph: Graph, profile: DeviceProfile) -> None:
        self.profile = profile
        self.replay = round(profile.seconds_per_replay * 1e9)
        self._scale: dict[str, tuple[float, float]] = {}
        self._known: dict[Work, int] = {}
        for name, *measured in profile.nodes:
            if name not in graph.node:
                raise PlanError(
                    f"profile {profile.name!r:.60} is of another net: it has measured node {name!r:.60}, "
                    f"which graph {graph.name!r:.60} has not"
                )
            course = graph.node[name].cost.courses.get("keep", Course())
            foreseen = profile.seconds(course.forward_work), profile.seconds(course.backward_work)
            forward, backward = (
                one / two if two else 1.0 for one, two in zip(measured, foreseen, strict=True)
            )
            self._scale[name] = forward, backward

    def forward(self, node: str, work: Work) -> int:
        """Of a node's function, in the forward pass or run again."""
        if node in self._scale:
            return round(self.profile.seconds(work) * self._scale[node][0] * 1e9)
        known = self._known.get(work)
        return self._unscaled(work) if known is None else known

    def backward(self, node: str, work: Work) -> int:
        """Of a node's backward."""
        if node in self._scale:
            return round(self.profile.seconds(work) * self._scale[node][1] * 1e9)
        known = self._known.get(work)
        return self._unscaled(work) if known is None else known

    def _unscaled(self, work: Work) -> int:
        self._known[work] = found = round(self.profile.seconds(work) * 1e9)
        return found


def profile_of(cost: str | DeviceProfile) -> DeviceProfile:
    """The profile that is meant: by its name, or itself; the generic one where only "time" is said.

    Raises:
        PlanError: there is none of this name.
    """
    if isinstance(cost, DeviceProfile):
        return cost
    if cost in ("time", "flops"):
        return GENERIC
    if not isinstance(cost, str) or cost not in PROFILES:
        raise PlanError(
            f"{cost!r:.60} is no cost; costs are 'time', 'flops', a profile that `revgraph.profile` has "
            f"measured, or one of {', '.join(map(repr, PROFILES))}"
        )
    return PROFILES[cost]
