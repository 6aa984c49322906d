"""A program: how each node of a graph is evaluated, undone and rebuilt on tensors."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from revgraph import looks
from revgraph.couplings import Coupling
from revgraph.errors import GraphError
from revgraph.expressions import Expression, module_at
from revgraph.graph import Graph
from revgraph.joint_bijections import Bijection, BijectionForm, Packing
from revgraph.rearrangements import Rearrangement

if TYPE_CHECKING:
    from revgraph.tracing.guards.guards import Guards


class Law(ABC):
    """How a half-step joins its target with the term: `couple`, and its inverse `uncouple`.

    It may do no more than arithmetic, or `evaluates_modules`, which keep state and draw random numbers.
    """

    evaluates_modules = False

    @abstractmethod
    def couple(self, root: nn.Module, x: Tensor, term: Any) -> Tensor: ...

    @abstractmethod
    def uncouple(self, root: nn.Module, y: Tensor, term: Any) -> Tensor: ...

    def couple_with_log_det(self, root: nn.Module, x: Tensor, term: Any) -> tuple[Tensor, Tensor | None]:
        """The output, and log |det dy/dx| per sample; None where volume is preserved."""
        return self.couple(root, x, term), None

    def look(self, root: nn.Module, told: looks.Structures | None = None) -> Hashable:
        """Equal for laws that cost the same on equal tensors. `told` remembers modules."""
        return repr(self)

    def modules(self, root: nn.Module) -> tuple[nn.Module, ...]:
        """The modules that it uses: their state is that of the node."""
        return ()

    def tells_volume(self, root: nn.Module) -> str:
        """ "" where `couple_with_log_det` works, and else who does not say how it changes volume."""
        return ""


@dataclass(frozen=True, slots=True)
class Sum(Law):
    """`y = x + alpha * term`, undone by `x = y - alpha * term`."""

    alpha: float = 1

    def couple(self, root: nn.Module, x: Tensor, term: Tensor) -> Tensor:
        return x + term if self.alpha == 1 else torch.add(x, term, alpha=self.alpha)

    def uncouple(self, root: nn.Module, y: Tensor, term: Tensor) -> Tensor:
        return y - term if self.alpha == 1 else torch.sub(y, term, alpha=self.alpha)


@dataclass(frozen=True, slots=True)
class Difference(Law):
    """`y = term - x`, which is its own inverse."""

    def couple(self, root: nn.Module, x: Tensor, term: Tensor) -> Tensor:
        return term - x

    def uncouple(self, root: nn.Module, y: Tensor, term: Tensor) -> Tensor:
        return term - y


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a coupling's arithmetic: `x + a * t`, `x - a * t`, `a * t - x`, `x * t` or `x / t`.

    t is the term of this place, and a number where that is None: a factor then, and elsewhere `number` is a.
    In torch's one call, which rounds otherwise than several would, are `x + a * t * s` and `x + a * t / s`,
    where s is the term at `other`, and what lies between x and t: "lerp" is `x + a * (t - x)`, "lerp to"
    `t + a * (x - t)`.
    """

    kind: Literal["add", "sub", "from", "mul", "div", "addcmul", "addcdiv", "lerp", "lerp to"]
    term: int | None
    number: float = 1
    other: int | None = None

    def forward(self, x: Tensor, terms: Sequence[Any]) -> Tensor:
        if self.other is not None and self.term is not None:
            fused = torch.addcmul if self.kind == "addcmul" else torch.addcdiv
            return fused(x, terms[self.term], terms[self.other], value=self.number)
        t: Any = self.number if self.term is None else terms[self.term]
        if self.kind == "add":
            return x + t if self.number == 1 else torch.add(x, t, alpha=self.number)
        if self.kind == "sub":
            return x - t if self.number == 1 else torch.sub(x, t, alpha=self.number)
        if self.kind == "from":
            return t - x
        if self.kind in LERPS:
            return torch.lerp(x, t, self.number) if self.kind == "lerp" else torch.lerp(t, x, self.number)
        return x * t if self.kind == "mul" else x / t

    def backward(self, y: Tensor, terms: Sequence[Any]) -> Tensor:
        if self.other is not None:
            return replace(self, number=-self.number).forward(y, terms)
        if self.kind in LERPS and self.term is not None:
            return torch.lerp(terms[self.term], y, 1 / self.share)
        return replace(self, kind=OPPOSITE[self.kind]).forward(y, terms)

    def log_det(self, x: Tensor, terms: Sequence[Any]) -> Tensor | None:
        """log |det| of the step per sample; None where it preserves volume."""
        if self.kind not in ("mul", "div", *LERPS):
            return None
        factor = self.share if self.kind in LERPS else self.number
        t = x.new_tensor(factor) if self.term is None or self.kind in LERPS else terms[self.term]
        log = t.abs().log().expand_as(x).reshape(x.shape[0], -1).sum(1)
        return -log if self.kind == "div" else log

    @property
    def share(self) -> float:
        """How much of x there is in what lies between x and t."""
        return self.number if self.kind == "lerp to" else 1 - self.number


LERPS = ("lerp", "lerp to")
OPPOSITE: dict[str, Any] = {"add": "sub", "sub": "add", "from": "from", "mul": "div", "div": "mul"}


@dataclass(frozen=True, slots=True)
class Arithmetic(Law):
    """Steps one after the other, undone from the last to the first: `y = 0.9 * x + t`, `y = x * s + t`.

    With more than one term the function gives a tuple of them.
    """

    steps: tuple[Step, ...]

    @property
    def terms(self) -> int:
        return len({place for step in self.steps for place in (step.term, step.other)} - {None})

    @property
    def is_linear(self) -> bool:
        """Whether autograd saves nothing for it: no step multiplies with a tensor, or two of them."""
        return all([step.term is None or step.kind in ("add", "sub", "from", *LERPS) for step in self.steps])

    def join(self, x: Tensor, term: Any) -> Tensor:
        terms = term if self.terms > 1 else (term,)
        for step in self.steps:
            x = step.forward(x, terms)
        return x

    def undo(self, y: Tensor, term: Any) -> Tensor:
        terms = term if self.terms > 1 else (term,)
        for step in reversed(self.steps):
            y = step.backward(y, terms)
        return y

    def couple(self, root: nn.Module, x: Tensor, term: Any) -> Tensor:
        return self.join(x, term)

    def uncouple(self, root: nn.Module, y: Tensor, term: Any) -> Tensor:
        return self.undo(y, term)

    def couple_with_log_det(self, root: nn.Module, x: Tensor, term: Any) -> tuple[Tensor, Tensor | None]:
        terms = term if self.terms > 1 else (term,)
        found = [log for step in self.steps if (log := step.log_det(x, terms)) is not None]
        total = None if not found else sum(found[1:], found[0])
        return self.join(x, term), total


@dataclass(frozen=True, slots=True)
class CouplingLaw(Law):
    """What the `Coupling` module at a path declares."""

    path: str

    def couple(self, root: nn.Module, x: Tensor, term: Any) -> Tensor:
        return self.module(root).couple(x, term)

    def uncouple(self, root: nn.Module, y: Tensor, term: Any) -> Tensor:
        return self.module(root).uncouple(y, term)

    def couple_with_log_det(self, root: nn.Module, x: Tensor, term: Any) -> tuple[Tensor, Tensor | None]:
        return self.module(root).couple_with_log_det(x, term)

    def look(self, root: nn.Module, told: looks.Structures | None = None) -> Hashable:
        return looks.look_of(self.module(root), told)

    def modules(self, root: nn.Module) -> tuple[nn.Module, ...]:
        return (self.module(root),)

    def tells_volume(self, root: nn.Module) -> str:
        kind = type(self.module(root))
        is_silent = kind.couple_with_log_det is Coupling.couple_with_log_det
        return kind.__name__ if is_silent else ""

    def module(self, root: nn.Module) -> Coupling:
        module = module_at(root, self.path)
        assert isinstance(module, Coupling)
        return module


@dataclass(frozen=True, slots=True)
class BijectionLaw(Law):
    """What the `Bijection` module at a path does to streams that lie in one tensor.

    They are packed as `before`, and packed as `after` when it has run; where the two differ in their sizes,
    the output is laid out in the target's shape. The term is the call's conditions, if there are any.
    """

    evaluates_modules: ClassVar[bool] = True

    path: str
    form: BijectionForm
    before: Packing
    after: Packing

    def couple(self, root: nn.Module, x: Tensor, term: Any) -> Tensor:
        outputs = self.form.couple(self.module(root), self.before.unpack(x), term or ((), {}))
        return self._packed(self.after, outputs, x)

    def uncouple(self, root: nn.Module, y: Tensor, term: Any) -> Tensor:
        streams = self.form.uncouple(self.module(root), self.after.unpack(y), term or ((), {}))
        return self._packed(self.before, streams, y)

    def couple_with_log_det(self, root: nn.Module, x: Tensor, term: Any) -> tuple[Tensor, Tensor | None]:
        streams = self.before.unpack(x)
        outputs, log_det = self.form.couple_with_log_det(self.module(root), streams, term or ((), {}))
        return self._packed(self.after, outputs, x), log_det

    def look(self, root: nn.Module, told: looks.Structures | None = None) -> Hashable:
        return looks.look_of(self.module(root), told), self.form, self.before, self.after

    def modules(self, root: nn.Module) -> tuple[nn.Module, ...]:
        return tuple(self.module(root).modules())

    def tells_volume(self, root: nn.Module) -> str:
        return "" if self.form.gives_log_det else type(self.module(root)).__name__

    def module(self, root: nn.Module) -> nn.Module:
        """The module that the bijection wraps."""
        module = module_at(root, self.path)
        return module.module if isinstance(module, Bijection) else module

    def _packed(self, packing: Packing, streams: tuple[Tensor, ...], like: Tensor) -> Tensor:
        packed = packing.pack(*streams)
        if packed.numel() != like.numel():
            raise GraphError(
                f"bijection {self.path!r} made {packed.numel():,} numbers of {like.numel():,}, which cannot "
                "be undone"
            )
        return packed if packed.shape == like.shape else packed.reshape(like.shape)


@dataclass(frozen=True, slots=True)
class Operation:
    """How one node is run: from the values `reads` (in this order) to the values `makes`.

    A coupling's expression gives its term from the others, and `law` joins it with the target. A wiring's
    `rearrangement` undoes it. An operation that makes no tensors (shapes, sizes) has no node: `node` is "",
    and its results are kept beside the graph's values. `writes` are the paths of parameters that it changes.
    """

    node: str
    expression: Expression
    reads: tuple[str, ...]
    makes: tuple[str, ...]
    law: Law | None = None
    target: str | None = None
    rearrangement: Rearrangement | None = None
    writes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Named:
    """A leaf of the arguments or results: the value of this name."""

    name: str


@dataclass(frozen=True, slots=True)
class Program:
    """A graph's operations in order, with the forms of its arguments and results.

    `arguments` maps parameter names of the model's forward to trees whose leaves are `Named` values or the
    constants the trace saw; `results` is such a tree for what the model returns. `numbers` are the
    example's plain numbers, `differentiable` its tensors that require a gradient. `signature` binds a
    call's arguments to those names. `guards` tell whether the model is still as the trace took it to be.
    """

    graph: Graph
    operations: tuple[Operation, ...]
    arguments: dict[str, Any]
    results: Any
    numbers: dict[str, Any]
    differentiable: frozenset[str]
    signature: inspect.Signature
    guards: Guards | None = None
