"""Joint bijections: modules of other libraries, with a forward and an inverse over several streams.

A coupling changes one stream and reads the others. A module that changes several streams at once is one as
well once they lie side by side in one tensor: `Packing` says how they do, `Bijection` calls the module on
them. What differs between libraries is how a module is called forwards and backwards, and how it tells its
log-determinant; a `_Protocol` is one such way.
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from revgraph.couplings import Boundary
from revgraph.errors import GraphError
from revgraph.expressions import leaves

# What a call gives besides streams, positional and by keyword: both ways read it, and neither changes it.
Conditions: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class BijectionForm:
    """How a module was called: with how many `streams`, in a list or not, and what it returned.

    Where the way back `edits` in place what it is given, it gets copies.
    """

    protocol: _Protocol
    streams: int
    in_list: bool = False
    gives_log_det: bool = False
    edits: bool = False

    def couple(self, module: nn.Module, streams: Sequence[Tensor], given: Conditions) -> tuple[Tensor, ...]:
        """The outputs for these streams."""
        result = self.protocol.forth(module, streams, self.in_list, given, False)
        return _outputs_of(result, self.gives_log_det)

    def uncouple(self, module: nn.Module, outputs: Sequence[Tensor], given: Conditions) -> tuple[Tensor, ...]:
        """The streams that give these outputs."""
        outputs = [output.clone() for output in outputs] if self.edits else outputs
        return _outputs_of(self.protocol.back(module, outputs, self.in_list, given), self.gives_log_det)

    def couple_with_log_det(
        self, module: nn.Module, streams: Sequence[Tensor], given: Conditions
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """The outputs, and log |det dy/dx| per sample."""
        result = self.protocol.forth(module, streams, self.in_list, given, True)
        log_det, x = result[1], streams[0]
        if not isinstance(log_det, Tensor):  # of modules that only rearrange, perhaps
            log_det = x.new_full((), float(log_det or 0))
        return _outputs_of(result, True), log_det if log_det.ndim else log_det.expand(len(x))


@dataclass(frozen=True, slots=True)
class Packing:
    """How streams of these `sizes` (each without the samples) lie in one tensor.

    `side_by_side`: along dimension 1, where they agree in the dimensions behind it, whose sizes may be others
    in later calls. Otherwise each is a row for a sample.
    """

    sizes: tuple[tuple[int, ...], ...]
    side_by_side: bool

    @staticmethod
    def of(streams: Sequence[Tensor], like: Packing | None = None) -> Packing:
        """The packing of such streams, in a tensor of the size that `like` packs into, if that is given."""
        sizes = tuple([tuple(stream.shape[1:]) for stream in streams])
        alike = Packing(sizes, min(map(len, sizes)) > 0 and len({size[1:] for size in sizes}) == 1)
        return alike if like is None or alike.size == like.size else Packing(sizes, False)

    @property
    def size(self) -> tuple[int, ...]:
        """The size of the one tensor, without the samples."""
        if self.side_by_side:
            rest = next(iter(self.sizes))[1:]
            return sum(size[0] for size in self.sizes), *rest
        return (sum(map(math.prod, self.sizes)),)

    def pack(self, *streams: Tensor) -> Tensor:
        """The streams in one tensor; one alone may be that tensor."""
        if self.side_by_side:
            return streams[0] if len(streams) == 1 else torch.cat(streams, 1)
        return torch.cat([stream.reshape(len(stream), -1) for stream in streams], 1)

    def unpack(self, packed: Tensor) -> tuple[Tensor, ...]:
        """The streams as views.

        Raises:
            GraphError: the tensor is of another size than those that the packing was made for.
        """
        if self.side_by_side:
            counts = [size[0] for size in self.sizes]
            return torch.split(packed, counts, 1) if len(counts) > 1 else (packed,)
        counts = [math.prod(size) for size in self.sizes]
        if math.prod(packed.shape[1:]) != sum(counts):
            raise GraphError(
                f"streams of {' and '.join(str(list(size)) for size in self.sizes)} a sample cannot be taken "
                f"out of {list(packed.shape)}. Trace the net with an input of this size."
            )
        rows = torch.split(packed.reshape(len(packed), -1), counts, 1)
        return tuple([row.reshape(-1, *size) for row, size in zip(rows, self.sizes, strict=True)])


class Bijection(Boundary):
    """Any module with a forward and an inverse, over one stream or several, as a node that can be undone.

    In a traced net it is a coupling: the backward pass rebuilds what the module read from what it returned,
    and nothing else is held. Called by itself it returns what the module does, without its log-determinant:
    `net.with_log_det` adds those up.

    The module may be called in one of these ways; x and y are one tensor or several:

    - `module(x, ...)` and `module.inverse(y, ...)`, which return y and x, or (y, log_det) and (x, log_det)
      with log |det dy/dx| per sample, [N];
    - `module([x1, ...], c=..., rev=False, jac=True)`, which returns ([y1, ...], log_det), and the way back
      with `rev=True`, as in FrEIA;
    - `module._forward(x, ...)` and `module._inverse(y, ...)`, as in PyTorch Geometric's reversible modules,
      whose own handling of memory is left out.

    The first arguments of a call are streams, as many as have together as many numbers as the module returns;
    what follows, and all keywords, are conditions, which the inverse is given as well. Streams have samples
    first and one dtype. Functions inside must not draw random numbers in training: the way back cannot draw
    the same.

    A network of FrEIA's (`SequenceINN`, `GraphINN`) is as many nodes as it has modules.

    Args:
        module: the module.
        streams: how many of the arguments are streams, where their sizes do not tell.
        log_det: whether the module returns a log-determinant besides, where sizes do not tell.

    Raises:
        TypeError: the module has no inverse in any of these ways, or a call does not fit them.

    Example:
        >>> import torch, revgraph as rg
        >>> class Turn(torch.nn.Module):
        ...     def forward(self, a, b):
        ...         return -b, a
        ...     def inverse(self, a, b):
        ...         return b, -a
        >>> net = rg.trace(rg.Bijection(Turn()), torch.zeros(2, 3), torch.zeros(2, 3))
        >>> a, b = net.inverse(*net(torch.ones(2, 3), torch.zeros(2, 3)))
        >>> a.sum().item(), b.sum().item()
        (6.0, 0.0)
    """

    def __init__(self, module: nn.Module, streams: int | None = None, log_det: bool | None = None) -> None:
        super().__init__()
        if streams is not None and streams < 1:
            raise ValueError(f"a bijection has at least one stream, not {streams}")
        self.module = module
        self.streams = streams
        self.log_det = log_det
        self._protocol = _protocol_of(module)

    @property
    def outputs(self) -> int | None:
        """How many values a layer of a specification makes with it, where that is known."""
        return self.streams

    def forward(self, *args: Any, **conditions: Any) -> Any:
        given, listed = flat(args)
        result = self._run(given, listed, conditions)
        if self.is_network:  # which is traced into, so that nothing is asked of sizes
            outputs = result[0]
            return outputs[0] if isinstance(outputs, (tuple, list)) and len(outputs) == 1 else outputs
        outputs = _outputs_of(result, self._form_of(args, result).gives_log_det)
        return outputs[0] if len(outputs) == 1 and not listed else outputs

    @property
    def is_network(self) -> bool:
        """Whether the module has others in it that are called with flags: each of these is a node."""
        inner = [each for each in self.module.modules() if each is not self.module]
        return self._protocol.takes_lists and any(map(takes_flags, inner))

    def form_for(self, args: Sequence[Any], conditions: dict[str, Any]) -> BijectionForm:
        """How a call is meant: the module is run there and back, to see what it returns and edits.

        Raises:
            TypeError: sizes do not tell, or the module is no bijection.
        """
        given, listed = flat(args)
        result = self._run(given, listed, conditions)
        form = self._form_of(args, result)
        outputs = _outputs_of(result, form.gives_log_det)
        before = _versions(outputs)
        self._protocol.back(self.module, outputs, form.in_list, (tuple(given[form.streams :]), conditions))
        return replace(form, edits=_versions(outputs) != before)

    def _run(self, given: list[Any], listed: int, conditions: dict[str, Any]) -> Any:
        """What the module returns where it is not known yet how many of the arguments are streams."""
        count = listed or self.streams or len(given)
        others = (tuple(given[count:]), conditions)
        # Networks may refuse a step that gives no log-determinant; in a trace nothing reads it.
        return self._protocol.forth(self.module, given[:count], listed > 0, others, self.is_network)

    def _form_of(self, args: Sequence[Any], result: Any) -> BijectionForm:
        """How a call with these arguments was meant, from the sizes of what it gave."""
        given, listed = flat(args)
        counts = [each.numel() for each in _leading_tensors(given)]
        most: Sequence[int] = [listed or self.streams or 0]
        if not most[0]:
            most = [len(given)] if self._protocol.takes_lists else range(1, len(counts) + 1)
        flags = [False, True] if self.log_det is None else [self.log_det]
        found = [
            BijectionForm(self._protocol, count, listed > 0, flag)
            for flag in ([True] if self._protocol.takes_lists else flags)
            for count in most
            if self._gives(result, flag, given) == sum(counts[:count])
        ]
        if len(found) == 1:
            return found[0]
        name = type(self.module).__name__
        if found:
            raise TypeError(
                f"the sizes of what {name} was given and returned do not tell its streams: say how many "
                "there are with Bijection(module, streams=...), or with log_det=... whether it returns a "
                "log-determinant"
            )
        sizes = [list(each.shape) for each in _leading_tensors(given)]
        returned = [list(each.shape) for each in leaves(result) if isinstance(each, Tensor)]
        raise TypeError(
            f"{name} is no bijection of its first arguments: of the shapes {sizes} it made {returned}, and a "
            "bijection makes as many numbers as it is given"
        )

    def _gives(self, result: Any, log_det: bool, given: Sequence[Any]) -> int:
        """How many numbers the outputs have if the module did or did not return a log-determinant."""
        if log_det:
            if not isinstance(result, (tuple, list)) or len(result) != 2:
                return -1
            told = result[1]
            if not self._protocol.takes_lists and not (
                isinstance(told, Tensor) and told.shape == given[0].shape[:1]
            ):
                return -1
        try:
            return sum(each.numel() for each in _outputs_of(result, log_det))
        except TypeError:
            return -1


class _Protocol(ABC):
    """One way to call modules forwards and back. Where it `takes_lists` they return a log-determinant too."""

    takes_lists = False

    @abstractmethod
    def forth(
        self, module: nn.Module, streams: Sequence[Any], in_list: bool, given: Conditions, log_det: bool
    ) -> Any:
        """What the module returns."""

    @abstractmethod
    def back(self, module: nn.Module, outputs: Sequence[Any], in_list: bool, given: Conditions) -> Any:
        """What it returns on the way back."""


@dataclass(frozen=True)
class _Methods(_Protocol):
    """Two methods of the module."""

    forward: str
    inverse: str

    def forth(
        self, module: nn.Module, streams: Sequence[Any], in_list: bool, given: Conditions, log_det: bool
    ) -> Any:
        return self._called(getattr(module, self.forward), streams, in_list, given)

    def back(self, module: nn.Module, outputs: Sequence[Any], in_list: bool, given: Conditions) -> Any:
        return self._called(getattr(module, self.inverse), outputs, in_list, given)

    @staticmethod
    def _called(method: Any, streams: Sequence[Any], in_list: bool, given: Conditions) -> Any:
        args, conditions = given
        return method(*([list(streams)] if in_list else streams), *args, **conditions)


@dataclass(frozen=True)
class _Flags(_Protocol):
    """One forward with flags: which way it goes, and whether it is to compute its log-determinant."""

    takes_lists = True

    def forth(
        self, module: nn.Module, streams: Sequence[Any], in_list: bool, given: Conditions, log_det: bool
    ) -> Any:
        args, conditions = given
        return module(list(streams), *args, **{**conditions, "rev": False, "jac": log_det})

    def back(self, module: nn.Module, outputs: Sequence[Any], in_list: bool, given: Conditions) -> Any:
        args, conditions = given
        return module(list(outputs), *args, **{**conditions, "rev": True, "jac": False})


def _protocol_of(module: nn.Module) -> _Protocol:
    """The way in which a module is called.

    Raises:
        TypeError: it has no inverse.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"a Bijection wraps a module, not {type(module).__name__}")
    if takes_flags(module):
        return _Flags()
    for forward, inverse in (("_forward", "_inverse"), ("__call__", "inverse")):
        if callable(getattr(module, forward, None)) and callable(getattr(module, inverse, None)):
            return _Methods(forward, inverse)
    raise TypeError(
        f"{type(module).__name__} has no inverse: a Bijection wraps a module with a method `inverse` beside "
        "its forward, or with a forward that takes `rev` and `jac`, or with `_forward` and `_inverse`"
    )


def takes_flags(module: nn.Module) -> bool:
    """Whether a module's forward is told which way it goes, and whether to give a log-determinant."""
    return _takes_flags(type(module))


@cache
def _takes_flags(kind: type[nn.Module]) -> bool:
    return {"rev", "jac"}.issubset(inspect.signature(kind.forward).parameters)


def flat(args: Sequence[Any]) -> tuple[list[Any], int]:
    """The arguments with those in a first list by themselves, and how many are in it."""
    if args and isinstance(args[0], (list, tuple)):
        return [*args[0], *args[1:]], len(args[0])
    return list(args), 0


def _versions(tensors: Sequence[Tensor]) -> list[int]:
    return [each._version for each in tensors]


def _leading_tensors(given: Sequence[Any]) -> list[Tensor]:
    """The arguments before the first that cannot be a stream."""
    found: list[Tensor] = []
    for each in given:
        if not isinstance(each, Tensor) or not (each.is_floating_point() or each.is_complex()):
            break
        found.append(each)
    return found


def _outputs_of(result: Any, gives_log_det: bool) -> tuple[Tensor, ...]:
    """The streams in what a module returned.

    Raises:
        TypeError: they are no tensors.
    """
    outputs = result[0] if gives_log_det else result
    outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
    if not isinstance(outputs, (tuple, list)) or not all(isinstance(each, Tensor) for each in outputs):
        raise TypeError(f"a bijection returns tensors, not {type(outputs).__name__}")
    return tuple(outputs)
