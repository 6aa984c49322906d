"""The value of a traced call for the example input: the call itself, run on fakes of its arguments."""

from __future__ import annotations

import builtins
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from revgraph.expressions import attribute_at, leaves, map_leaves
from revgraph.isolation import WriteWatch
from revgraph.looks import form_of, look_of
from revgraph.storages import bytes_of, faked, memory_key
from revgraph.tracing.proxies import is_proxy

ISINSTANCE = builtins.isinstance


class Evaluator:
    """Runs calls for their shapes: without memory under a fake mode, for real where that is None.

    Modules that look the same are run once for each form of their arguments. `writes` hears of parameters
    that a call writes into.
    """

    def __init__(self, root: nn.Module, fake_mode: FakeTensorMode | None) -> None:
        self.root = root
        self.fake_mode = fake_mode
        self.running = False
        self.writes = WriteWatch(root.parameters())
        self._known: dict[Any, Any] = {}

    def evaluate(self, kind: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        args, kwargs = map_leaves(_fake_of, args), map_leaves(_fake_of, kwargs)
        self.running = True
        asked, builtins.isinstance = builtins.isinstance, ISINSTANCE  # no proxy is left to ask about
        watch = sys.getprofile()
        if callable(watch):
            sys.setprofile(None)  # nor code of the user's to watch
        try:
            with self._mode():
                if kind == "call_module":
                    return self._module(self.root.get_submodule(target), args, kwargs)
                if kind == "call_method":
                    return getattr(args[0], target)(*args[1:], **kwargs)
                if kind == "get_attr":
                    return self._faked(attribute_at(self.root, target))
                return target(*args, **kwargs)
        finally:
            if callable(watch):
                sys.setprofile(watch)
            builtins.isinstance = asked
            self.running = False

    def _module(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.fake_mode is None:
            return module(*args, **kwargs)
        given = leaves((args, kwargs))
        key = (look_of(module), repr(sorted(kwargs)), tuple(form_of(leaf) for leaf in given))
        if key in self._known:
            return map_leaves(_fresh, self._known[key])
        tensors = [leaf for leaf in given if isinstance(leaf, Tensor)]

        def state() -> tuple[Any, ...]:
            own = [memory_key(parameter) for parameter in module.parameters()]
            return [tensor._version for tensor in tensors], own, len(self.writes.heard)

        before = state()
        result = module(*args, **kwargs)
        if state() == before and _is_simple(result, {memory_key(tensor) for tensor in tensors}):
            self._known[key] = map_leaves(_recipe, result)
        return result

    @contextmanager
    def _mode(self) -> Iterator[None]:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with self.fake_mode or nullcontext(), self.writes:
                yield

    def _faked(self, value: Any) -> Any:
        if self.fake_mode is not None and isinstance(value, Tensor):
            return faked(value, self.fake_mode)
        return value


def _fake_of(leaf: Any) -> Any:
    return leaf.fake if is_proxy(leaf) else leaf


def _is_simple(result: Any, inputs: set[int]) -> bool:
    """Whether a result is made of new tensors, each with memory of its own, and nothing else."""
    found = leaves(result)
    if not found or not all(isinstance(leaf, Tensor) and leaf.layout == torch.strided for leaf in found):
        return False
    keys = {memory_key(leaf) for leaf in found}
    dense = all(bytes_of(leaf) == leaf.numel() * leaf.element_size() for leaf in found)
    return dense and len(keys) == len(found) and not keys & inputs


def _recipe(leaf: Tensor) -> Callable[[], Tensor]:
    return lambda: torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype, device=leaf.device)


def _fresh(make: Callable[[], Tensor]) -> Tensor:
    return make()
