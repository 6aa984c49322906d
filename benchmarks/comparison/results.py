"""All contenders through all networks: a row of figures each, or the reason why there is none."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks.comparison.contenders import Contender
from benchmarks.comparison.networks import Network
from benchmarks.comparison.running import Candidate, Reversible, run_plainly
from benchmarks.comparison.steps import Step, gradients, largest_error, measure_step
from benchmarks.comparison.timing import Times, time_steps
from benchmarks.shared import version


@dataclass(frozen=True, slots=True)
class Row:
    """One contender on one network; figures are None where it could not run, and `problem` says why.

    Errors are the gradients' largest relative ones against plain autograd in float64, one for each
    initialization: of steps in float64, in float32, and in float32 with every parameter doubled. Predictions
    are a revgraph plan's.
    """

    contender: str
    version: str | None
    step: Step | None = None
    errors_float64: tuple[float, ...] = ()
    errors_float32: tuple[float, ...] = ()
    errors_float32_doubled: tuple[float, ...] = ()
    times: Times | None = None
    predicted_held_bytes: int | None = None
    predicted_peak_bytes: int | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """One network's rows, the first of them plain autograd's."""

    network: str
    depth: int
    batch: int
    rounds: int
    rows: tuple[Row, ...]


def compare(
    networks: Sequence[Network], contenders: Sequence[Contender], tell: Callable[[str], None]
) -> Result:
    """Every contender on one network, given in several initializations.

    Errors are of all of them, everything else of the first. `tell` is told what is being measured.
    """
    network = networks[0]
    name = f"{network.name}, {network.depth} blocks"
    tell(f"{name}: plain autograd in float64")
    exact = [_gradients(run_plainly(each), each, torch.float64) for each in networks]
    exact_doubled = [_gradients(run_plainly(each, 2.0), each, torch.float64) for each in networks]
    rows: list[Row] = []
    candidates: dict[int, Candidate] = {}
    for index, contender in enumerate(contenders):
        tell(f"{name}: {contender.name}")
        row = Row(contender.name, version(contender.distribution) if contender.distribution else None)
        try:
            with _warnings_of(contender):
                candidate = contender.build(network, 1.0)
                row = replace(
                    row,
                    **_predictions(candidate),
                    step=measure_step(candidate, network),
                    errors_float64=_errors(contender, networks, exact, torch.float64),
                    errors_float32=_errors(contender, networks, exact, torch.float32),
                    errors_float32_doubled=_errors(contender, networks, exact_doubled, torch.float32, 2.0),
                )
                candidates[index] = candidate
        except Exception as problem:
            if not contender.is_peer:
                raise
            row = Row(row.contender, row.version, problem=_reason(problem))
        rows.append(row)
    tell(f"{name}: seconds, {network.rounds} rounds")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # all were shown before, but for the peers' own
        times = time_steps(list(candidates.values()), network.example, network.rounds)
    for index, taken in zip(candidates, times, strict=True):
        rows[index] = replace(rows[index], times=taken)
    return Result(network.name, network.depth, len(network.example), network.rounds, tuple(rows))


def _errors(
    contender: Contender,
    networks: Sequence[Network],
    exact: Sequence[dict[str, Tensor]],
    dtype: torch.dtype,
    scale: float = 1.0,
) -> tuple[float, ...]:
    return tuple(
        largest_error(_gradients(contender.build(network, scale), network, dtype), expected)
        for network, expected in zip(networks, exact, strict=True)
    )


def _gradients(candidate: Candidate, network: Network, dtype: torch.dtype) -> dict[str, Tensor]:
    x = network.example.detach().to(dtype).requires_grad_(network.example.requires_grad)
    return gradients(candidate.to(dtype), x)


def _predictions(candidate: Candidate) -> dict[str, int]:
    if not isinstance(candidate, Reversible):
        return {}
    plan = candidate.net.plan
    return {"predicted_held_bytes": plan.held_bytes, "predicted_peak_bytes": plan.peak_bytes}


@contextmanager
def _warnings_of(contender: Contender) -> Iterator[None]:
    """Peers warn of names of torch's that have gone out of use since; nobody here can change that."""
    with warnings.catch_warnings():
        if contender.is_peer:
            warnings.simplefilter("ignore")
        yield


def _reason(problem: Exception) -> str:
    if isinstance(problem, ModuleNotFoundError):
        return f"{problem.name} is not installed"
    first, *_ = str(problem).splitlines() or [""]
    return f"{type(problem).__name__}: {first}"
