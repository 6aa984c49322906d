"""Memory of compiled steps, as torch's allocators tell it: kernels of a compiler pass no dispatcher."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, supported_activities

from revgraph.trials import isolated, loss_of
from revgraph.uncollected import uncollected


def allocated_bytes(net: nn.Module, *inputs: Any, **extras: Any) -> tuple[int, int]:
    """The activation bytes of one training step, at the peak and held from forward to backward.

    As `revgraph.measuring.activation_bytes` has them, but from the allocators' own events: whatever computes
    counts. A step runs before, so that what is compiled is there.
    """
    forward: list[Any] = []
    held: list[int] = []

    def turn() -> None:
        forward.append(loss_of(net(*inputs, **extras)))

    def whole() -> None:
        loss_of(net(*inputs, **extras)).backward()

    def run() -> int:
        whole()
        for parameter in net.parameters():
            parameter.grad = None
        held.append(_live(_events(turn))[1])
        forward.clear()
        events = _events(whole)
        gradients = [each.grad for each in net.parameters() if each.grad is not None]
        return _live(events, gradients)[0]

    peak = isolated(net, (inputs, extras), run)
    return peak, held[0]


def _events(run: Callable[[], None]) -> list[tuple[int, int, int]]:
    """When memory was allocated or freed in a run: time, address, and bytes (below 0 where it was freed)."""
    activities = [each for each in supported_activities() if each is not ProfilerActivity.XPU]
    with (
        uncollected(),
        profile(activities=activities, profile_memory=True, record_shapes=False) as profiler,
    ):
        run()
    found: list[tuple[int, int, int]] = []
    results: Any = profiler.profiler
    for event in _walk(results.kineto_results.experimental_event_tree()):
        if event.name == "[memory]":
            fields = event.extra_fields
            found.append((event.start_time_ns, fields.ptr, fields.alloc_size))
    return sorted(found, key=lambda each: each[0])


def _walk(events: Iterable[Any]) -> Iterator[Any]:
    pending = [*events]
    while pending:
        event = pending.pop()
        yield event
        pending += event.children


def _live(events: list[tuple[int, int, int]], without: Iterable[Tensor] = ()) -> tuple[int, int]:
    """The most bytes live at once, and those at the end, the last tensors at some addresses left out."""
    left_out = {each.untyped_storage().data_ptr() for each in without}
    births = {address: place for place, (_, address, size) in enumerate(events) if size > 0}
    ignored = {births[address] for address in left_out if address in births}
    alive: dict[int, int] = {}
    live = most = 0
    for place, (_, address, size) in enumerate(events):
        if size > 0 and place not in ignored:
            alive[address] = size
            live += size
            most = max(most, live)
        elif size < 0:
            live -= alive.pop(address, 0)
    return most, live
