"""Whether a coupling of the user's gives its target back, tried once on numbers when a net is traced.

A wrong `uncouple` makes wrong gradients, and nothing else would tell. revgraph's own couplings are known to
be right. Others are run on random numbers in the example's form, on a few samples, each kind once; the model,
its buffers and the random state are as before.
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from revgraph.errors import CouplingError
from revgraph.expressions import Expression
from revgraph.isolation import untouched
from revgraph.looks import form_of, look_of
from revgraph.program import BijectionLaw, Law
from revgraph.tracing.guards.random_sources import RandomSources

# As many samples show whether a coupling is undone; batch normalization needs several.
SAMPLES = 4
# What a coupling may lose, relative to its target.
TOLERANCE, OTHER_TOLERANCES = 1e-2, {torch.float64: 1e-4, torch.float16: 0.25, torch.bfloat16: 0.25}


@dataclass(frozen=True)
class CouplingExample:
    """A coupling of the user's, with its operands as they were for the example input, but for the numbers."""

    node: str
    where: str
    run: Expression
    law: Law
    target: Tensor
    reads: Sequence[Any]


def check_inverses(model: nn.Module, examples: Sequence[CouplingExample]) -> None:
    """Try each kind of coupling once.

    Couplings that do not run on made-up numbers, or whose functions draw random ones, are left to the
    comparisons of the first training steps.

    Raises:
        CouplingError: one does not give its target back.
    """
    if not examples:
        return
    tried: set[Hashable] = set()
    with untouched(model), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for example in examples:
            looks = tuple(look_of(model.get_submodule(path)) for path in example.run.module_paths)
            forms = tuple(map(form_of, (example.target, *example.reads)))
            key = (repr((example.law.look(model), looks)), repr(forms))
            if key not in tried:
                tried.add(key)
                _try(model, example)


def _try(model: nn.Module, example: CouplingExample) -> None:
    for samples in (SAMPLES, len(example.target) if example.target.ndim else 1):
        generator = torch.Generator().manual_seed(0)
        try:
            x, *reads = [
                _made_up(each, example.target.shape[:1], samples, generator)
                for each in (example.target, *example.reads)
            ]
            results = example.run.run(model, reads)
            random = RandomSources()
            y = example.law.couple(model, x, term := results[0] if results else None)
        except Exception:  # of code that asks more of its inputs than their form
            continue
        if y.is_meta or isinstance(y, FakeTensor):  # of a model without memory, which has no numbers
            return
        if not random.drawn() and bool(y.isfinite().all()):
            _compare(model, example, x, y, term)
        return


def _made_up(fake: Any, batch: torch.Size, samples: int, generator: torch.Generator) -> Any:
    """Numbers in the form of a tensor: normal ones, true, or 0, which is an index everywhere."""
    if not isinstance(fake, Tensor):
        return fake
    shape = list(fake.shape)
    if fake.ndim and fake.shape[:1] == batch:
        shape[0] = min(shape[0], samples)
    if fake.is_floating_point() or fake.is_complex():
        made = torch.randn(shape, generator=generator, dtype=torch.promote_types(fake.dtype, torch.float32))
        return made.to(fake.device, fake.dtype)
    filled = torch.ones if fake.dtype == torch.bool else torch.zeros
    return filled(shape, dtype=fake.dtype, device=fake.device)


def _compare(model: nn.Module, example: CouplingExample, x: Tensor, y: Tensor, term: Any) -> None:
    is_module = isinstance(example.law, BijectionLaw)
    undo, do = ("the module's inverse", "its forward") if is_module else ("uncouple", "couple")

    def wrong(how: str) -> CouplingError:
        place = f" ({example.where})" if example.where else ""
        return CouplingError(
            f"{example.node}: {undo} {how}{place}. Gradients of what is rebuilt by it would be wrong. Mend "
            f"{undo}, or put the module into a revgraph.Boundary, which is never inverted.",
            node=example.node,
        )

    try:
        back = example.law.uncouple(model, y, term)
    except Exception as error:
        raise wrong(f"fails on what {do} gives: {type(error).__name__}: {error}") from error
    if not isinstance(back, Tensor) or back.shape != x.shape:
        found = list(back.shape) if isinstance(back, Tensor) else type(back).__name__
        raise wrong(f"does not undo {do}: it makes {found} of {list(x.shape)}")
    if not x.numel():
        return
    off = ((back - x).abs().square().sum() / x.abs().square().sum()).double().sqrt().item()
    if not off <= OTHER_TOLERANCES.get(x.dtype, TOLERANCE):
        percent = f"{100 * off:.{0 if off >= 0.01 else 3}f} %" if off < 100 else f"a factor of {off:.1e}"
        raise wrong(f"does not undo {do} (off by {percent})")
