"""What the processes of rows do: time and weigh steps of a network, or search for the most that fits.

Bytes on a GPU are `torch.cuda.max_memory_allocated` in a step, less what was allocated before it: parameters,
their gradients, inputs, and the workspaces that libraries have taken in steps before. That is what plans
predict, but for the allocator's blocks, which are multiples of 512 bytes, and the gradients of parameters
before they are added to those that are there.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

import revgraph as rg
from benchmarks.gpu.networks import SUBJECTS, Subject
from benchmarks.limits import largest
from revgraph.trials import count_step, loss_of

Tell = Callable[[dict[str, Any]], None]
ORDINARY, LEAST = "ordinary autograd", "revgraph, least memory"
OF, WAYS = ("batch", "depth"), (ORDINARY, LEAST)
# To begin with; what is allocated in them (workspaces, generators' states) stays.
WARM_UP = 3


def steps(name: str, device: str, rounds: int, compiled: bool, tell: Tell) -> None:
    """Seconds and bytes of steps of a network, each way by itself compiled, then all timed in turns."""
    subject = SUBJECTS[name]
    net, inputs = _on(device, subject.make(subject.batch, subject.depth))
    tell({"network": name, "title": _title(subject)})
    ready: dict[str, tuple[nn.Module, int | None, float]] = {}
    for way, run, predicted in ways(net, compiled):
        try:
            begun = time.perf_counter()
            one_step(run, inputs)
            _wait(device)
            ready[way] = run, predicted, time.perf_counter() - begun
            for _ in range(WARM_UP):
                one_step(run, inputs)
        except Exception as error:
            ready.pop(way, None)
            tell({"way": way, "problem": _told(error)})
    seconds: dict[str, list[float]] = {way: [] for way in ready}
    for _ in range(rounds):
        for way, (run, _, _) in ready.items():
            _wait(device)
            begun = time.perf_counter()
            one_step(run, inputs)
            _wait(device)
            seconds[way].append(time.perf_counter() - begun)
    for way, (run, predicted, first) in ready.items():
        row = {"way": way, "seconds": statistics.median(seconds[way]), "first_step_seconds": first}
        tell({**row, "predicted_bytes": predicted, "peak_bytes": peak_bytes(run, inputs, device)})


def ways(net: rg.ReversibleModule, compiled: bool) -> Iterator[tuple[str, nn.Module, int | None]]:
    """Ways to take a step, on the same parameters, with the peaks that plans predict for them."""
    model = net.__dict__["_model"]
    planned = net.plan.peak_bytes
    yield "plain, eager", model, rg.keep_all(net.graph).peak_bytes
    yield "revgraph, eager", net, planned
    if not compiled:
        return
    yield "torch.compile", torch.compile(model), None
    yield 'rg.compile, "aot"', rg.compile(net, "aot"), planned
    yield 'rg.compile, "inductor"', rg.compile(net), planned


def limits(name: str, of: str, way: str, limit: int, tell: Tell) -> None:
    """The largest batch or greatest depth with which a step fits in `limit` bytes, all included."""
    subject = SUBJECTS[name]
    total = torch.cuda.get_device_properties(0).total_memory
    if total < limit:
        tell({"problem": f"the GPU has {total:,} bytes, fewer than the {limit:,} to fit in"})
        return
    torch.cuda.set_per_process_memory_fraction(limit / total)
    tried: dict[int, dict[str, Any]] = {}

    def fits(size: int) -> bool:
        gc.collect()  # what the last one left; here, where no error holds its frames any more
        torch.cuda.empty_cache()
        try:
            tried[size] = taken(subject, *sized(subject, of, size), way, "cuda")
        except torch.cuda.OutOfMemoryError:
            return False
        return True

    found = most(fits, subject, of)
    tell(
        {"network": name, "of": of, "way": way, "title": _title(subject), "deep": subject.deep, "most": found}
    )
    if found:
        tell(tried[found])


def most(fits: Callable[[int], bool], subject: Subject, of: str) -> int:
    """The largest batch or depth that fits, by bisection; 0 where not even 1 does."""
    return largest(fits, subject.batch if of == "batch" else subject.depth)


def sized(subject: Subject, of: str, size: int) -> tuple[int, int]:
    """Batch and depth where one of them is `size`, and the other the subject's own."""
    return (size, subject.depth) if of == "batch" else (subject.batch, size)


def taken(subject: Subject, batch: int, depth: int, way: str, device: str) -> dict[str, Any]:
    """What a step takes, predicted and measured.

    Raises:
        torch.cuda.OutOfMemoryError: more than there is.
    """
    net, inputs = subject.make(batch, depth)
    if way == LEAST:
        net.plan = rg.plan(net.graph, budget="least", effort="quick")
        predicted = net.plan.peak_bytes
    else:
        predicted = rg.keep_all(net.graph).peak_bytes
    net, inputs = _on(device, (net, inputs))
    run = net if way == LEAST else net.__dict__["_model"]
    one_step(run, inputs)
    always = sum(each.nbytes for each in (*run.parameters(), *run.buffers(), *inputs))
    always += sum(each.grad.nbytes for each in run.parameters() if each.grad is not None)
    peak = peak_bytes(run, inputs, device)
    return {"always_bytes": always, "predicted_bytes": predicted, "peak_bytes": peak}


def one_step(run: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """A step that adds to the gradients that are there."""
    loss_of(run(*inputs)).backward()


def peak_bytes(run: nn.Module, inputs: tuple[Tensor, ...], device: str) -> int:
    """The activation bytes of a step at its peak; on the CPU as `rg.measure` counts them."""
    if device == "cpu":
        return count_step(run, inputs, {}).peak()
    one_step(run, inputs)
    _wait(device)
    gc.collect()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    one_step(run, inputs)
    _wait(device)
    return torch.cuda.max_memory_allocated() - before


def _on(device: str, made: tuple[rg.ReversibleModule, tuple[Tensor, ...]]) -> Any:
    net, inputs = made
    return net.to(device), tuple(each.to(device) for each in inputs)


def _title(subject: Subject) -> str:
    return f"{subject.title}, batch {subject.batch}, {subject.depth} {subject.deep}"


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _told(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
