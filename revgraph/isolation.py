"""Isolation: running a model's code without leaving a mark on the model or the random state."""

from __future__ import annotations

import copy
import random
import sys
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import cache, partial
from operator import is_
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode

from revgraph.expressions import leaves
from revgraph.storages import faked, memory_key, parts_of

version_kept: Any = torch.autograd._unsafe_preserve_version_counter  # pyright: ignore
CONTAINERS = (OrderedDict, dict, list, set, deque)
HEAP_TYPE = 1 << 9  # the flag of classes that Python code defines
MOST_HELD = 100_000  # a model that holds a whole data set is not gone through to its end
MODULE_TABLES = frozenset(nn.Module().__dict__)
EMPTY: Mapping[str, Any] = {}
TABLES = tuple(name for name, value in nn.Module().__dict__.items() if isinstance(value, dict))


@contextmanager
def untouched(model: nn.Module, fake_mode: FakeTensorMode | None = None) -> Iterator[None]:
    """Run the model's code out of inference mode; model and random state end as they began.

    With a mode, parameters and buffers are fake ones meanwhile. Without, buffers are copies, and parameters,
    which may be large, the model's own: what writes one of them is undone.
    """
    scripted = [each for each in model.modules() if isinstance(each, torch.jit.ScriptModule)]
    modules = [each for each in model.modules() if not isinstance(each, torch.jit.ScriptModule)]
    compiled = [buffer for module in scripted for buffer in module.buffers(recurse=False)]
    attributes = [dict(module.__dict__) for module in modules]
    tables = _Tables(modules, TABLES)
    classes = [type(module) for module in modules]  # a lazy layer takes another when its parameters come
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with (
        out_of_inference_mode(),
        torch.random.fork_rng(devices),
        random_kept(),
        _autocast_cache_kept(),
        _contents_kept(attributes) as held,
        _memory_kept(own := [each for each in (*model.parameters(), *held, *compiled) if not is_lazy(each)]),
        _CopyOnWrite(own) if held or compiled or fake_mode is None else nullcontext(),
    ):
        try:
            _replace(modules, fake_mode)
            yield
        finally:
            for module, kind, saved in zip(modules, classes, attributes, strict=True):
                if type(module) is not kind:
                    module.__class__ = kind
                module.__dict__.clear()
                module.__dict__.update(saved)
            tables.put_back()


@contextmanager
def tensors_replaced(model: nn.Module, others: Mapping[int, Tensor]) -> Iterator[None]:
    """Run with other tensors in the place of the model's parameters and buffers that have these ids."""
    held: list[tuple[dict[str, Tensor | None], str, Tensor]] = []
    try:
        for module in model.modules():
            for table in (module.__dict__["_parameters"], module.__dict__["_buffers"]):
                for name, tensor in table.items():
                    if id(tensor) in others:
                        held.append((table, name, tensor))
                        table[name] = others[id(tensor)]
        yield
    finally:
        for table, name, tensor in held:
            table[name] = tensor


@contextmanager
def edits_undone(model: nn.Module) -> Iterator[None]:
    """What the model's attributes hold ends as it began, also where the modes around are switched off."""
    modules = [each for each in model.modules() if not isinstance(each, torch.jit.ScriptModule)]
    with _contents_kept([dict(module.__dict__) for module in modules]) as held, _CopyOnWrite(held):
        yield


def own_attributes(module: nn.Module) -> dict[str, Any]:
    """A module's `__dict__`, by no way that a trace watches."""
    return object.__getattribute__(module, "__dict__")


class _Tables:
    """What is in modules' own tables: parameters, buffers, modules, hooks."""

    def __init__(self, modules: Iterable[nn.Module], names: Iterable[str]) -> None:
        self._contents = [
            (table, dict(table) if table else EMPTY)  # most are
            for own in map(own_attributes, modules)
            for name in names
            if (table := own.get(name)) is not None
        ]

    def put_back(self) -> None:
        for table, content in self._contents:
            if len(table) != len(content) or not all(map(is_, table.values(), content.values())):
                table.clear()
                table.update(content)


def model_of(net: nn.Module) -> nn.Module:
    """The model that a net runs, whose observers and plans are nothing of it; any other module is itself."""
    return net.__dict__.get("_model", net)


def out_of_inference_mode() -> AbstractContextManager[None]:
    """A block out of inference mode, whose tensors autograd does not save; whether gradients are on stays."""
    return _inference_mode_left() if torch.is_inference_mode_enabled() else nullcontext()


@contextmanager
def _inference_mode_left() -> Iterator[None]:
    enabled = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.set_grad_enabled(enabled):
        yield


def _replace(modules: list[nn.Module], fake_mode: FakeTensorMode | None) -> None:
    """Put fake parameters and buffers, or copies of buffers, in the place of the modules' own."""
    others: dict[int, Tensor] = {}
    for module in modules:
        for table in (module.__dict__["_parameters"], module._buffers):
            if fake_mode is None and table is not module._buffers:
                continue
            for key, tensor in table.items():
                if tensor is None or is_lazy(tensor):
                    continue
                if id(tensor) not in others:
                    fake = None if fake_mode is None else faked(tensor, fake_mode)
                    others[id(tensor)] = tensor.detach().clone() if fake is None else fake
                table[key] = others[id(tensor)]


@contextmanager
def _memory_kept(tensors: list[Tensor]) -> Iterator[None]:
    """Tensors that are given other memory (`.data = ...`) end with their own."""
    own = [(tensor, tensor.data) for tensor in tensors]
    try:
        yield
    finally:
        for tensor, data in own:
            if memory_key(tensor) != memory_key(data):
                tensor.data = data


class WriteWatch(TorchDispatchMode):
    """Hears of the first write into each of some tensors.

    Told by the memory that operators write into, so that writes through views and `.data` show, which
    versions and identities do not tell of.
    """

    supports_higher_order_operators = True

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()
        self.heard: list[Tensor] = []
        self._owners: defaultdict[int, list[Tensor]] = defaultdict(list)
        self._began = [(tensor, memory_key(tensor)) for tensor in tensors if not is_lazy(tensor)]
        for tensor, _ in self._began:
            for part in parts_of(tensor):
                self._owners[memory_key(part)].append(tensor)

    @property
    def written(self) -> list[Tensor]:
        """The tensors that were written, or given other memory."""
        return [*self.heard, *(tensor for tensor, key in self._began if memory_key(tensor) != key)]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for place, name in _writes(func):
            written = args[place] if place < len(args) else kwargs.get(name)
            for tensor in leaves(written):
                if isinstance(tensor, Tensor):
                    for owner in self._owners.pop(memory_key(tensor), ()):
                        self.hear(owner)
        return func(*args, **kwargs)

    def hear(self, tensor: Tensor) -> None:
        """A tensor is about to be written for the first time."""
        self.heard.append(tensor)


class _CopyOnWrite(WriteWatch):
    """Tensors end with the contents and versions that they had: each is copied before the first write."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__(tensors)
        self._undo = ExitStack()

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """That compiled code may run inside, for torch: what it writes are buffers, which are copies then."""
        return True

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._undo.close()

    def hear(self, tensor: Tensor) -> None:
        if not tensor.is_inference():
            self._undo.enter_context(version_kept(tensor))
        with unset_fake_temporarily():  # or the copy would have no numbers
            data = tensor.data
            self._undo.callback(data.copy_, data.clone())


@cache
def _writes(func: Any) -> list[tuple[int, str]]:
    """The arguments that an operator writes into, by place and name.

    Those that batch normalization keeps running statistics in are not declared so.
    """
    schema = getattr(func, "_schema", None)
    return [
        (place, argument.name)
        for place, argument in enumerate(() if schema is None else schema.arguments)
        if (argument.alias_info is not None and argument.alias_info.is_write)
        or argument.name.startswith("running_")
    ]


@contextmanager
def random_kept() -> Iterator[None]:
    """Python's and numpy's random states end as they began."""
    state = random.getstate()
    numpy_random = getattr(sys.modules.get("numpy"), "random", None)
    numpy_state = numpy_random.get_state() if numpy_random is not None else None
    try:
        yield
    finally:
        random.setstate(state)
        if numpy_random is not None:
            numpy_random.set_state(numpy_state)


@contextmanager
def _autocast_cache_kept() -> Iterator[None]:
    """Casts of parameters made meanwhile (of fake ones, perhaps) are not kept for later.

    They go as the outermost autocast ends. Inside of one they are not made; an autocast that the model's own
    code begins and ends has its cache as in any call, for what it holds is part of what the code takes.
    """
    depth = torch.autocast_increment_nesting() - 1
    torch.autocast_decrement_nesting()
    enabled = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(enabled and depth == 0)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(enabled)


@contextmanager
def _contents_kept(attributes: list[dict[str, Any]]) -> Iterator[list[Tensor]]:
    """Containers, objects and generators that modules hold as attributes end as they began.

    Gives the tensors among the attributes and in them.
    """
    held = _Held()
    for own in attributes:
        held.hold_all(own)
    try:
        yield held.tensors
    finally:
        for undo in held.undo.values():
            undo()


def putting_back(module: nn.Module) -> Callable[[], None]:
    """What puts a module's own attributes, their contents, and the tables in it back to what they are now."""
    tables = _Tables(module.modules(), TABLES)
    own = {name: value for name, value in own_attributes(module).items() if name not in MODULE_TABLES}
    held = _Held()
    held.hold_all(own)

    def put_back() -> None:
        for undo in held.undo.values():
            undo()
        for name in [name for name in vars(module) if name not in MODULE_TABLES]:
            del vars(module)[name]
        vars(module).update(own)
        tables.put_back()

    return put_back


def as_it_is(model: nn.Module) -> Callable[[], None]:
    """What puts a model's buffers and attributes, and the random states, back to where they are now."""
    modules = [each for each in model.modules() if not isinstance(each, torch.jit.ScriptModule)]
    attributes = [(own, dict(own)) for own in map(own_attributes, modules)]
    tables, held = _Tables(modules, TABLES), _Held()
    for _, before in attributes:
        held.hold_all(before)
    tensors = [each for each in (*model.buffers(), *held.tensors) if not is_lazy(each)]
    contents = [(each, each.detach().clone()) for each in tensors]
    cuda = torch.cuda.default_generators if torch.cuda.is_initialized() else ()
    states = [(each, each.get_state()) for each in (torch.default_generator, *cuda)]
    python, numpy = random.getstate(), getattr(sys.modules.get("numpy"), "random", None)
    numpy_state = numpy.get_state() if numpy is not None else None

    def back() -> None:
        for undo in held.undo.values():
            undo()
        for own, before in attributes:
            own.clear()
            own.update(before)
        tables.put_back()
        with torch.no_grad():
            for tensor, content in contents:  # batch normalization writes its buffers in secret
                with nullcontext() if tensor.is_inference() else version_kept(tensor):
                    tensor.detach().copy_(content)
        for generator, state in states:
            generator.set_state(state)
        random.setstate(python)
        if numpy is not None:
            numpy.set_state(numpy_state)

    return back


class _Held:
    """What modules hold besides modules: what puts it back, by identity, and the tensors in it.

    Contents are put back by the methods of Python's own classes, for a subclass may refuse changes; and only
    where they have changed.
    """

    def __init__(self) -> None:
        self.undo: dict[int, Callable[[], Any]] = {}
        self.tensors: list[Tensor] = []
        self._alive: list[Any] = []  # or identities could be given again

    def hold_all(self, attributes: Mapping[str, Any]) -> None:
        """Note what there is to put back of a module's attributes."""
        for name, value in attributes.items():
            if name not in MODULE_TABLES:
                self.hold(value)

    def hold(self, value: Any) -> None:
        """Note what there is to put back of a value, and of what is in it."""
        if isinstance(value, Tensor):
            self.tensors.append(value)
        if (
            isinstance(value, (Tensor, nn.Module, type))
            or id(value) in self.undo
            or len(self.undo) >= MOST_HELD
        ):
            return
        kind = next((each for each in type(value).__mro__ if each in CONTAINERS), None)
        restore: Callable[[], Any] | None = None
        if kind is not None:
            restore = partial(_put_back, value, kind, _content(value))
        elif (reset := _generator(value) or _array(value)) is not None:
            restore = reset
        is_users = bool(type(value).__flags__ & HEAP_TYPE) or issubclass(type(value), SimpleNamespace)
        if is_users and isinstance(getattr(value, "__dict__", None), dict):
            inner = restore
            attributes = partial(_put_back, vars(value), dict, _content(vars(value)))
            restore = attributes if inner is None else lambda: (inner(), attributes())[1]
        if restore is None:
            return
        self.undo[id(value)] = restore
        self._alive.append(value)
        if kind is not None:
            for item in value.values() if isinstance(value, dict) else value:
                self.hold(item)
        for item in vars(value).values() if hasattr(value, "__dict__") else ():
            self.hold(item)


def _content(value: Any) -> list[Any]:
    return [each for pair in dict.items(value) for each in pair] if isinstance(value, dict) else list(value)


def _put_back(value: Any, kind: Any, content: list[Any]) -> None:
    now = _content(value)
    if len(now) == len(content) and all(map(is_, now, content)):
        return
    kind.clear(value)
    if kind is set:
        set.update(value, content)
    elif kind in (list, deque):
        kind.extend(value, content)
    else:
        for key, item in zip(content[::2], content[1::2], strict=True):
            kind.__setitem__(value, key, item)


def _array(value: Any) -> Callable[[], Any] | None:
    """What puts the numbers of an array of numpy's back; None of anything else, and of one that is large."""
    numpy = sys.modules.get("numpy")
    if numpy is None or not isinstance(value, numpy.ndarray) or value.size > MOST_HELD:
        return None
    return partial(numpy.copyto, value, value.copy()) if value.flags.writeable else None


def _generator(value: Any) -> Callable[[], Any] | None:
    """What sets a generator of random numbers back to where it stands; None of anything else."""
    if isinstance(value, torch.Generator):
        return partial(value.set_state, value.get_state())
    if isinstance(value, random.Random):
        # The system's has no state.
        return None if isinstance(value, random.SystemRandom) else partial(value.setstate, value.getstate())
    numpy = sys.modules.get("numpy.random")
    if numpy is None or not isinstance(value, (numpy.Generator, numpy.RandomState, numpy.BitGenerator)):
        return None
    bits: Any = getattr(value, "bit_generator", None) or getattr(value, "_bit_generator", value)
    return partial(setattr, bits, "state", copy.deepcopy(bits.state))
