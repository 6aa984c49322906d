"""Selective recomputation: results of a node's function that are kept from the forward for its replays.

Worth keeping are those of the few operators that take long, products of matrices and convolutions, a
coupling's term, and the statistics of batch normalization. There are two ways to keep them:

- `Keeping` and `HandingOut`, where a node's function is inlined: its calls go through them. In the forward
  they note what autograd saves for a call; the replay saves that, without the call, and goes on from its
  result.
- `CacheOutputs` and `ReplayOutputs`, for any other function: dispatch modes that see what it runs below
  autograd. What a replay is handed gets the history that a computed result would, and autograd saves for it
  what it saves otherwise.

Batch normalization in training computes mean and variance in a pass over its input. They are C numbers each,
autograd saves them anyway, and on the CPU the kernel for fixed statistics gives the same bits from them, with
what is put into it below (`_statistics_hold` tries that once on this build of torch). So a node that is
recomputed takes them from the forward. One that is inverted does not: its inputs come back with rounding
errors, and what it holds is not to grow with depth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from revgraph.engine import _torch
from revgraph.engine.inlining import LINEAR, Via
from revgraph.engine.saved_tensors import SavesOthers
from revgraph.engine.state import version_of
from revgraph.errors import ReplayError
from revgraph.expressions import leaves, map_leaves
from revgraph.planning.plans import TERM
from revgraph.storages import memory_key

if TYPE_CHECKING:
    from revgraph.engine.tape import Tape

NAMES = (
    "mm",
    "addmm",
    "bmm",
    "baddbmm",
    "addbmm",
    "_scaled_mm",
    "_int_mm",
    "_grouped_mm",
    "_scaled_grouped_mm",
    "convolution",
    "_convolution",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
    "_flash_attention_forward",
    "_efficient_attention_forward",
    "_cudnn_attention_forward",
)

HEAVY: frozenset[Any] = frozenset(
    getattr(torch.ops.aten, name) for name in NAMES if hasattr(torch.ops.aten, name)
)


def is_heavy(operator: Any) -> bool:
    """Whether an operator, as a dispatch mode gets it, is heavy: a product of matrices and the like.

    Kept results of a node are counted by this: the first heavy operator that its function runs, below
    autograd, has index 0. What a coupling's law runs does not count.

    Example:
        >>> import torch
        >>> is_heavy(torch.ops.aten.addmm.default), is_heavy(torch.ops.aten.relu.default)
        (True, False)
    """
    return getattr(operator, "overloadpacket", None) in HEAVY


class KeptResults:
    """The results that one forward of a node keeps for its replays: of heavy operators, and its term.

    They may be fewer than the plan asks for: a result that lies in the memory of another tensor, was drawn at
    random, or that this forward does not have (compiled since, or run on another shape), is computed again
    instead.
    """

    __slots__ = ("_results", "_term", "node", "wanted")

    def __init__(self, node: str, wanted: tuple[int, ...]) -> None:
        self.node = node
        self.wanted = wanted
        self._results: dict[int, _Entry] = {}
        self._term: _Entry | None = None

    @property
    def has_results(self) -> bool:
        return bool(self._results)

    @property
    def has_term(self) -> bool:
        return self._term is not None

    def clear(self) -> None:
        self._results.clear()
        self._term = None

    def keep_term(self, term: Any, inputs: Sequence[Any]) -> None:
        if TERM in self.wanted and not _shares_memory(term, inputs):
            self._term = _Entry("its term", map_leaves(_detached, term), _flags(term))

    def term(self) -> Any:
        """The term, as a leaf of a graph of its own."""
        assert self._term is not None
        flags = iter(self._term.flags)
        return map_leaves(
            lambda leaf: leaf.detach().requires_grad_(next(flags)) if isinstance(leaf, Tensor) else leaf,
            self._term.checked(self.node),
        )

    def tensors(self) -> Iterator[Tensor]:
        """All that is kept now."""
        entries = [*self._results.values(), *([self._term] if self._term is not None else [])]
        return (each for entry in entries for each in leaves(entry.tree) if isinstance(each, Tensor))

    def check(self) -> None:
        """Refuse kept results that the forward itself has edited in place."""
        for entry in (*self._results.values(), self._term):
            if entry is not None:
                entry.checked(self.node)


class _Entry:
    """A kept result. It `is_apart` from what the function goes on with where that edits it in place."""

    __slots__ = ("flags", "is_apart", "operator", "tree", "versions")

    def __init__(self, operator: Any, tree: Any, flags: Sequence[bool] = ()) -> None:
        self.operator = operator
        self.tree = tree
        self.flags = flags
        self.is_apart = False
        self.versions = _versions(tree)

    def set_apart(self) -> None:
        """Keep a copy from here on."""
        if not self.is_apart:
            self.tree = map_leaves(_copied, self.tree)
            self.versions = _versions(self.tree)
            self.is_apart = True

    def checked(self, node: str) -> Any:
        if _versions(self.tree) != self.versions:
            raise ReplayError(
                f"node {node!r} is to keep a result ({self.operator}) that was edited in place after it "
                "was computed. Use the out-of-place form (nn.ReLU() for nn.ReLU(inplace=True)), or plan "
                f"without: results {{{node!r}: ()}}."
            )
        return self.tree


class KeptCalls:
    """What one forward of an inlined function keeps: results by index, statistics in the order of calls."""

    __slots__ = ("norms", "results")

    def __init__(self) -> None:
        self.results: dict[int, KeptResult] = {}
        self.norms: list[Statistics | None] = []

    def tensors(self) -> Iterator[Tensor]:
        """All that is kept now."""
        yield from (each.result for each in self.results.values())
        for each in self.norms:
            if each is not None:
                yield from (each.mean, each.inverse_deviation)

    def check(self, node: str) -> None:
        """Refuse kept results that were edited in place."""
        for each in self.results.values():
            if each.result._version != each.version:
                raise edited(node)


@dataclass(frozen=True, slots=True)
class KeptResult:
    """A call's result, and the shape in which autograd saved its first input (None: it saved nothing)."""

    result: Tensor
    version: int
    requires_grad: bool
    saved: torch.Size | None


@dataclass(frozen=True, slots=True)
class Statistics:
    """Of a batch normalization: mean and deviation, and in which order autograd saved what."""

    mean: Tensor
    inverse_deviation: Tensor
    requires_grad: bool
    saved: tuple[str, ...]


class Keeping(Via):
    """Around the calls of an inlined function in its forward."""

    __slots__ = ("_kept", "_statistics", "_tape")

    def __init__(self, tape: Tape, kept: KeptCalls, statistics: bool) -> None:
        """With `statistics`, also what batch normalization computes of its input."""
        self._tape = tape
        self._kept = kept
        self._statistics = statistics

    def heavy(self, index: int, function: Callable[..., Tensor], *args: Any) -> Tensor:
        x = args[0]
        result, noted = self._noted(function, *args)
        if not noted:
            shape = None
        elif len(noted) == 1 and _is_input(noted[0], x, function):
            shape = noted[0].shape
        else:
            return result  # it is computed again
        kept = result.detach()
        self._kept.results[index] = KeptResult(kept, kept._version, result.requires_grad, shape)
        return result

    def norm(self, module: nn.Module, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        if not self._statistics:
            return module(x)
        result, noted = self._noted(module, x)
        roles: list[str] = []
        found: list[Tensor] = []
        buffers = {memory_key(each): name for name, each in module._buffers.items() if each is not None}
        for each in noted:
            role = "x" if memory_key(each) == memory_key(x) else buffers.get(memory_key(each), "")
            if not role:
                role = ("mean", "inverse_deviation", "more")[min(len(found), 2)]
                found.append(each.detach())
            roles.append(role)
        statistics = None
        if len(found) == 2 and _can_normalize(x, weight, bias) and _statistics_hold(x.dtype):
            statistics = Statistics(found[0], found[1], result.requires_grad, tuple(roles))
        self._kept.norms.append(statistics)
        return result

    def _noted(self, function: Callable[..., Tensor], *args: Any) -> tuple[Tensor, list[Tensor]]:
        """What a function returns, and what autograd saves for it besides parameters."""
        self._tape.noted = noted = list[Tensor]()
        try:
            return function(*args), noted
        finally:
            self._tape.noted = None


class HandingOut(Via):
    """Around the calls of an inlined function in a replay.

    It gives what is `kept`, and calls the replay's `hook` with what autograd would save; without anything
    kept it computes all. Batch normalization in a replay writes to copies of its running statistics.
    """

    __slots__ = ("_hook", "_norms", "_results", "_uses_up")

    def __init__(
        self,
        kept: KeptCalls | None,
        hook: Callable[[Tensor], Any],
        uses_up: bool,
    ) -> None:
        kept = kept or KeptCalls()
        self._hook = hook
        self._uses_up = uses_up
        self._norms = iter(list(kept.norms))
        self._results = kept.results
        if uses_up:  # all of it, for a replay that ends early does not come to the last ones
            kept.norms, kept.results = [], {}

    def heavy(self, index: int, function: Callable[..., Tensor], *args: Any) -> Tensor:
        results = self._results
        entry = results.pop(index, None) if self._uses_up else results.get(index)
        if entry is None:
            return function(*args)
        if entry.result._version != entry.version:
            raise edited("")
        if entry.saved is not None:
            self._hook(args[0] if args[0].shape == entry.saved else args[0].reshape(entry.saved))
        return entry.result.detach().requires_grad_(entry.requires_grad)

    def norm(self, module: nn.Module, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        buffers = module._buffers
        kept = next(self._norms, None)
        if kept is None or weight is None or bias is None:
            mean, variance = buffers["running_mean"], buffers["running_var"]
            if mean is not None and variance is not None:
                mean, variance = mean.clone(), variance.clone()
            return torch.batch_norm(
                x, weight, bias, mean, variance, True, module.momentum, module.eps,  # pyright: ignore
                torch.backends.cudnn.enabled,
            )  # fmt: skip
        result = normalized(x, weight, bias, kept.mean, kept.inverse_deviation)
        given = {**buffers, "x": x, "mean": kept.mean, "inverse_deviation": kept.inverse_deviation}
        for role in kept.saved:
            self._hook(given[role])
        return result.requires_grad_(kept.requires_grad)


def normalized(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, inverse_deviation: Tensor) -> Tensor:
    """Batch normalization with these statistics, bit for bit as in the training step that computed them.

    The kernel computes x * a + b with a = weight / deviation and b = bias - mean * a, in this order. It is
    given a and b as weight and bias, with a mean of 0 and a deviation of 1.
    """
    with torch.no_grad():
        a = inverse_deviation * weight
        b = torch.addcmul(bias, mean, a, value=-1)
        zero, one = torch.zeros_like(mean), torch.ones_like(mean)
        return torch.native_batch_norm(x, a, b, zero, one, False, 0.0, 0.0)[0]


def _can_normalize(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> bool:
    """Whether the kernel takes the way that `normalized` repeats."""
    return (
        weight is not None
        and bias is not None
        and x.device.type in ("cpu", "meta")  # what has no memory is planned as if on the CPU
        and x.dtype == weight.dtype == bias.dtype
        and (x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)))
    )


@lru_cache(maxsize=8)
def _statistics_hold(dtype: torch.dtype) -> bool:
    """Whether `normalized` gives the bits of a training step here: tried once, on a few numbers."""
    if dtype not in (torch.float32, torch.float64):
        return False
    with _torch.unseen(), torch.device("cpu"), torch.no_grad():
        for shape in ((5, 7), (3, 9, 11), (4, 19, 3, 5)):
            count = shape[1]
            numbers = torch.arange(math.prod(shape), dtype=dtype)
            x = (numbers * 0.7).sin().mul(3).add(numbers.cos()).view(shape)
            weight = torch.linspace(0.3, 1.7, count, dtype=dtype)
            bias = torch.linspace(-1, 2, count, dtype=dtype)
            for each in (x, x.contiguous(memory_format=torch.channels_last)) if x.dim() == 4 else (x,):
                buffers = torch.zeros(count, dtype=dtype), torch.ones(count, dtype=dtype)
                result, mean, deviation = torch.native_batch_norm(
                    each, weight, bias, *buffers, True, 0.1, 1e-5
                )
                if not torch.equal(result, normalized(each, weight, bias, mean, deviation)):
                    return False
    return True


def _is_input(saved: Tensor, x: Tensor, function: Any) -> bool:
    """Whether a saved tensor is a call's first input: as it is, or for a product its rows."""
    if saved.numel() != x.numel():
        return False
    same = memory_key(saved) == memory_key(x)
    return same or (function is LINEAR and saved.shape[-1:] == x.shape[-1:])


def edited(node: str) -> ReplayError:
    return ReplayError(
        f"node {node!r} is to keep a result that was edited in place after it was computed. Use the "
        "out-of-place form (nn.ReLU() for nn.ReLU(inplace=True)), or plan without: "
        f"results {{{node!r}: ()}}."
    )


class CacheOutputs(TorchDispatchMode):
    """Around a node's function in its forward: keeps the results that are asked for."""

    def __init__(self, kept: KeptResults) -> None:
        super().__init__()
        self.kept = kept
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        results = self.kept._results
        if results and func._schema.is_mutable:
            # Kernels of recurrent layers edit products, and count no version.
            written = _edited_by(func, args, kwargs)
            for entry in results.values():
                if not written.isdisjoint(_keys(entry.tree)):
                    entry.set_apart()
        result = func(*args, **kwargs)
        if is_heavy(func):
            if (
                self.count in self.kept.wanted
                and not _shares_memory(result, (args, kwargs))
                and not _draws(func, args, kwargs)
            ):
                results[self.count] = _Entry(func, map_leaves(_aliased, result))
            self.count += 1
        return result


class ReplayOutputs(TorchDispatchMode):
    """Around a node's function in a replay: gives kept results in place of computing them.

    It sits below autograd, so that what it gives gets the history that a computed result would.
    """

    def __init__(self, kept: KeptResults, uses_up: bool) -> None:
        super().__init__()
        self.kept = kept
        self.uses_up = uses_up
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if is_heavy(func):
            index, results = self.count, self.kept._results
            self.count += 1
            entry = results.pop(index, None) if self.uses_up else results.get(index)
            if entry is not None:
                node = self.kept.node
                if entry.operator is not func:
                    raise SavesOthers(f"its heavy operator {index} was {entry.operator} and is {func} now")
                tree = entry.checked(node)
                return map_leaves(_copied if entry.is_apart and not self.uses_up else _aliased, tree)
        return func(*args, **(kwargs or {}))


def _aliased(leaf: Any) -> Any:
    """A tensor without history over the same memory, which counts edits with the tensor itself."""
    if not isinstance(leaf, Tensor):
        return leaf
    # Below autograd, a detached tensor would count its edits by itself.
    with _torch.exclude_keys(_torch.in_place_or_view, False):
        return leaf.detach()


def _copied(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    with torch.no_grad():
        return leaf.clone()


def _detached(leaf: Any) -> Any:
    return leaf.detach() if isinstance(leaf, Tensor) else leaf


def _flags(tree: Any) -> list[bool]:
    return [leaf.requires_grad for leaf in leaves(tree) if isinstance(leaf, Tensor)]


def _versions(tree: Any) -> list[int]:
    return [version_of(leaf) for leaf in leaves(tree) if isinstance(leaf, Tensor)]


def _shares_memory(result: Any, inputs: Any) -> bool:
    """Whether a tensor of the result lies in the memory of an input."""
    return not _keys(inputs).isdisjoint(_keys(result))


def _keys(tree: Any) -> set[int]:
    """The memory that the tensors in a tree lie in."""
    return {memory_key(leaf) for leaf in leaves(tree) if isinstance(leaf, Tensor)}


def _edited_by(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> set[int]:
    """The memory that an operator writes to."""
    given = zip(func._schema.arguments, args, strict=False)
    named = ((each, kwargs.get(each.name)) for each in func._schema.arguments)
    written = (value for each, value in chain(given, named) if each.alias_info and each.alias_info.is_write)
    return set().union(*map(_keys, written))


def _draws(func: Any, args: Collection[Any], kwargs: dict[str, Any]) -> bool:
    """Whether an attention draws its dropout, for without that draw what follows would draw otherwise."""
    for argument, value in (
        *zip(func._schema.arguments, args, strict=False),
        *((each, kwargs[each.name]) for each in func._schema.arguments if each.name in kwargs),
    ):
        if argument.name == "dropout_p" and value > 0:
            return True
    return False
