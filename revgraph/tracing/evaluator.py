"""The value of a traced call for the example input: the call itself, run on fakes of its arguments."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from operator import is_
from types import BuiltinFunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from revgraph.expressions import attribute_at, leaves, map_leaves
from revgraph.isolation import MODULE_TABLES, WriteWatch
from revgraph.looks import PLAIN, form_of, look_of
from revgraph.storages import bytes_of, faked, memory_key
from revgraph.tracing.proxies import Untraceable, is_proxy
from revgraph.tracing.user_code import OwnCode


class Evaluator:
    """Runs calls for their shapes: without memory under a fake mode, for real where that is None.

    Modules that look the same, and torch's own functions, are run once for each form of their arguments:
    `ran` says whether the last call was. `writes` hears of parameters that a call writes into. `modules` are
    those of the root, by path. `left` are tensors that calls have put into attributes of modules, by the
    attributes' names: no results of theirs, and nothing that a graph could hold.
    """

    def __init__(
        self, root: nn.Module, fake_mode: FakeTensorMode | None, modules: Mapping[str, nn.Module]
    ) -> None:
        self.root = root
        self.modules = modules
        self.fake_mode = fake_mode
        self.ran = False
        self.left: dict[str, Tensor] = {}
        self.writes = WriteWatch(root.parameters())
        self._known: dict[Any, Any] = {}
        self._evaluates = False
        self._thread = threading.get_ident()

    @property
    def running(self) -> bool:
        """Whether what runs is not traced: a call that is evaluated, or what another thread does."""
        return self._evaluates or threading.get_ident() != self._thread

    def evaluate(self, kind: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        args, kwargs = map_leaves(_fake_of, args), map_leaves(_fake_of, kwargs)
        self._evaluates = True
        try:
            with OwnCode():  # no proxy is left to ask about, nor code of the user's to watch
                return self._evaluated(kind, target, args, kwargs)
        finally:
            self._evaluates = False

    def _evaluated(self, kind: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module = None
        if kind == "call_module":
            module = self.modules.get(target) or self.root.get_submodule(target)
        given = leaves((args, kwargs))
        key = self._key(kind, target, module, args, kwargs, given)
        self.ran = key not in self._known
        if not self.ran:
            return map_leaves(self._fresh, self._known[key])
        tensors = [leaf for leaf in given if isinstance(leaf, Tensor)]

        def state() -> tuple[Any, ...]:
            own = [] if module is None else [memory_key(parameter) for parameter in module.parameters()]
            return [tensor._version for tensor in tensors], own, len(self.writes.heard)

        before = None if key is None else state()
        held = {} if module is None else _tensors_in_attributes(module, target)
        left: dict[str, Tensor] = {}
        with self._mode():
            if module is not None:
                result = module(*args, **kwargs)
                _check_unchanged(given, args, kwargs)
                now = _tensors_in_attributes(module, target)
                left = {name: each for name, each in now.items() if held.get(name) is not each}
                self._note(left)
            elif kind == "call_method":
                result = getattr(args[0], target)(*args[1:], **kwargs)
            elif kind == "get_attr":
                result = self._faked(attribute_at(self.root, target))
            else:
                result = target(*args, **kwargs)
            if (
                before is not None
                and not left
                and state() == before
                and _is_simple(result, {memory_key(tensor) for tensor in tensors})
            ):
                self._known[key] = map_leaves(_form_of_result, result)
        return result

    def _key(
        self,
        kind: str,
        target: Any,
        module: nn.Module | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        given: list[Any],
    ) -> Hashable | None:
        """What the shapes of a call's results hang on; None where that is not known."""
        tensors = [leaf for leaf in given if isinstance(leaf, Tensor)]
        if self.fake_mode is None or any(leaf.is_conj() or leaf.is_neg() for leaf in tensors):
            return None
        if module is not None:
            return look_of(module), repr(sorted(kwargs)), tuple([form_of(leaf) for leaf in given])
        # Without a tensor among the arguments the default device says where the result is.
        if kind == "call_method":
            if not (args and type(args[0]) is FakeTensor):
                return None
        elif kind != "call_function" or type(target) is not BuiltinFunctionType or not tensors:
            return None
        for leaf in given:  # a number that is known is known of what is computed of it, too
            if leaf.constant is not None if type(leaf) is FakeTensor else not isinstance(leaf, PLAIN):
                return None
        return kind, target, _form(args), _form(kwargs), torch.get_default_dtype()

    def _note(self, left: Mapping[str, Tensor]) -> None:
        """Keep tensors that a module has left in attributes, and see to it that they are told from others.

        A fake one is told by its mode. A real one, made without autograd, would be as good as a constant: it
        is made to require a gradient, as all that is computed of it then does.
        """
        self.left.update(left)
        for each in left.values():
            if self.fake_mode is None and each.is_leaf and (each.is_floating_point() or each.is_complex()):
                each.requires_grad_()

    def _fresh(self, form: _ResultForm) -> Tensor:
        empty = torch.empty_strided(form.shape, form.stride, dtype=form.dtype, device="meta")
        return FakeTensor(self.fake_mode, empty, form.device)

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


def _check_unchanged(before: list[Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse a module that changes a list or dictionary that it is given: a graph gives it one of its own."""
    if all(type(each) not in (list, dict) for each in (*args, *kwargs.values())):
        return
    now = leaves((args, kwargs))
    if len(now) != len(before) or not all(map(is_, now, before)):
        raise Untraceable("a submodule changes a list or dictionary that it is given")


def _tensors_in_attributes(module: nn.Module, path: str) -> dict[str, Tensor]:
    """The tensors in plain attributes of a module and those in it, also in containers there, by name."""
    if type(module).__module__.startswith("torch.nn.") and not module._modules:
        return {}
    found: dict[str, Tensor] = {}
    for name, each in module.named_modules(prefix=path):
        for attribute, value in each.__dict__.items():
            if attribute not in MODULE_TABLES and isinstance(value, (Tensor, list, tuple, dict)):
                tensors = [leaf for leaf in leaves(value) if isinstance(leaf, Tensor)]
                place = f"{name}.{attribute}" if name else attribute
                found |= {f"{place}[{n}]" if n else place: leaf for n, leaf in enumerate(tensors)}
    return found


def _fake_of(leaf: Any) -> Any:
    return leaf.fake if is_proxy(leaf) else leaf


def _is_simple(result: Any, inputs: set[int]) -> bool:
    """Whether a result is made of new tensors, each with memory of its own, and nothing else."""
    found = leaves(result)
    if not found or not all(isinstance(leaf, Tensor) and leaf.layout == torch.strided for leaf in found):
        return False
    if any(leaf.requires_grad or leaf.is_conj() or leaf.is_neg() for leaf in found):
        return False
    keys = {memory_key(leaf) for leaf in found}
    dense = all(bytes_of(leaf) == leaf.numel() * leaf.element_size() for leaf in found)
    return dense and len(keys) == len(found) and not keys & inputs


@dataclass(frozen=True, slots=True)
class _ResultForm:
    """A new tensor among the results of a call."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


def _form_of_result(leaf: Tensor) -> _ResultForm:
    return _ResultForm(leaf.shape, leaf.stride(), leaf.dtype, leaf.device)


def _form(tree: Any) -> Hashable:
    """What a tree of arguments looks like."""
    if isinstance(tree, (tuple, list)):
        return type(tree), tuple([_form(item) for item in tree])
    if isinstance(tree, dict):
        return tuple([(key, _form(item)) for key, item in tree.items()])
    if isinstance(tree, slice):
        return slice, repr(tree)
    return form_of(tree)
