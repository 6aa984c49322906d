"""Heavy operators: the few whose results are worth keeping, because computing them again takes long."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from revgraph.errors import ReplayError
from revgraph.expressions import leaves, map_leaves
from revgraph.planning.plans import TERM
from revgraph.runtime.script import Step

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

_below_autograd: Any = torch._C._SetExcludeDispatchKeyGuard

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


class Kept:
    """The results that one forward of a node keeps for its replays: of heavy operators, and its term.

    They may be fewer than the plan asks for: a result that lies in the memory of another tensor, was drawn at
    random, or that this forward does not have (compiled since, or run on another shape), is computed again
    instead.
    """

    __slots__ = ("_results", "_term", "step")

    def __init__(self, step: Step) -> None:
        self.step = step
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
        if TERM in self.step.results and not _shares_memory(term, inputs):
            self._term = _Entry("its term", map_leaves(_detached, term), _flags(term))

    def term(self) -> Any:
        """The term, as a leaf of a graph of its own."""
        assert self._term is not None
        flags = iter(self._term.flags)
        return map_leaves(
            lambda leaf: leaf.detach().requires_grad_(next(flags)) if isinstance(leaf, Tensor) else leaf,
            self._term.checked(self.step),
        )

    def check(self) -> None:
        """Refuse kept results that the forward itself has edited in place."""
        for entry in (*self._results.values(), self._term):
            if entry is not None:
                entry.checked(self.step)


class _Entry:
    __slots__ = ("flags", "operator", "tree", "versions")

    def __init__(self, operator: Any, tree: Any, flags: Sequence[bool] = ()) -> None:
        self.operator = operator
        self.tree = tree
        self.flags = flags
        self.versions = _versions(tree)

    def checked(self, step: Step) -> Any:
        if _versions(self.tree) != self.versions:
            raise ReplayError(
                f"{step.describe()} is to keep a result ({self.operator}) that was edited in place after it "
                "was computed. Use the out-of-place form (nn.ReLU() for nn.ReLU(inplace=True)), or plan "
                f"without: results {{{step.node!r}: ()}}."
            )
        return self.tree


class Keeping(TorchDispatchMode):
    """Around a node's function in its forward: keeps the results that are asked for."""

    def __init__(self, kept: Kept) -> None:
        super().__init__()
        self.kept = kept
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if is_heavy(func):
            if (
                self.count in self.kept.step.results
                and not _shares_memory(result, (args, kwargs))
                and not _draws(func, args, kwargs)
            ):
                self.kept._results[self.count] = _Entry(func, map_leaves(_aliased, result))
            self.count += 1
        return result


class HandingOut(TorchDispatchMode):
    """Around a node's function in a replay: gives kept results in place of computing them.

    It sits below autograd, so that what it gives gets the history that a computed result would.
    """

    def __init__(self, kept: Kept, uses_up: bool) -> None:
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
                step = self.kept.step
                if entry.operator is not func:
                    raise ReplayError(
                        f"the replay of {step.describe()} differs from its forward: its heavy operator "
                        f"{index} was {entry.operator} and is {func} now. Its function must do the same each "
                        f"time; make it deterministic, or keep the node: decisions {{{step.node!r}: 'keep'}}."
                    )
                return map_leaves(_aliased, entry.checked(step))
        return func(*args, **(kwargs or {}))


def _aliased(leaf: Any) -> Any:
    """A tensor without history over the same memory, which counts edits with the tensor itself."""
    if not isinstance(leaf, Tensor):
        return leaf
    # Below autograd, a detached tensor would count its edits by itself.
    with _below_autograd(torch._C.DispatchKey.ADInplaceOrView, False):
        return leaf.detach()


def _detached(leaf: Any) -> Any:
    return leaf.detach() if isinstance(leaf, Tensor) else leaf


def _flags(tree: Any) -> list[bool]:
    return [leaf.requires_grad for leaf in leaves(tree) if isinstance(leaf, Tensor)]


def _versions(tree: Any) -> list[int]:
    return [leaf._version for leaf in leaves(tree) if isinstance(leaf, Tensor)]


def _shares_memory(result: Any, inputs: Any) -> bool:
    """Whether a tensor of the result lies in the memory of an input."""
    given = {_storage(leaf) for leaf in leaves(inputs) if isinstance(leaf, Tensor)}
    return any(_storage(leaf) in given for leaf in leaves(result) if isinstance(leaf, Tensor))


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata if tensor.layout is torch.strided else id(tensor)


def _draws(func: Any, args: Collection[Any], kwargs: dict[str, Any]) -> bool:
    """Whether an attention draws its dropout, for without that draw what follows would draw otherwise."""
    for argument, value in (
        *zip(func._schema.arguments, args, strict=False),
        *((each, kwargs[each.name]) for each in func._schema.arguments if each.name in kwargs),
    ):
        if argument.name == "dropout_p" and value > 0:
            return True
    return False
