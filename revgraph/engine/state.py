"""State restored before recomputation: contexts, random numbers, training flags, buffers; with its checks.

A replay has to repeat its forward. What a function may read besides its inputs is noted in the forward, and
put back for as long as the replay runs, only where it differs, for that takes time:

- `Ambient`, once a forward: autocast, function modes (a default device is one), the default dtype, the
  kernels and algorithms that torch may take. Dispatch modes observe, as a rule: they are not entered again,
  and where the backward runs under others, replays are tried without these, too (`BackwardPass.run`).
- `RandomStream`: the state of torch's generators, for nodes that drew.
- `ModuleState`, once a node: training flags; buffers that the forward wrote, as they were before. Writes do
  not always show in version counters (`.data`, BatchNorm's own kernel), so contents are compared. Numbers and
  the like that the forward assigned to attributes are put back likewise. A module that writes one of its
  buffers is taken to write all of them: what does not change on one input may on the next.

Parameters are not put back but checked, unless the node itself writes them: a replay on others than the
forward's is refused. `Probes` show edits that no version counts. Locks (`turn`) keep threads that train on
the CPU from meeting in the middle of a replay, for generators and buffers are everybody's.
"""

from __future__ import annotations

import operator
import os
import sys
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad

from revgraph.engine import _torch
from revgraph.engine.sharding import NO_SHARDS, Shards, shard_versions
from revgraph.errors import ReplayError
from revgraph.storages import memory_key, parts_of

DEVICES = ("cpu", "cuda")
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
is_exporting: Callable[[], bool] = getattr(torch.compiler, "is_exporting", lambda: False)  # from torch 2.7 on
HALF = (torch.float16, torch.bfloat16)
NOTHING: AbstractContextManager[None] = nullcontext()

Autocast = tuple[torch.dtype | None, ...]
ABSENT, UNKNOWN = object(), object()
PLAIN = frozenset((int, float, bool, str, type(None)))
NO_AUTOCAST: Autocast = (None,) * len(DEVICES)


# The compiler, and transforms


def compiles() -> bool:
    """Whether the compiler reads this code now, or would compile the functions that are called from here."""
    return torch.compiler.is_compiling() or _torch.frame_callback() is not None


def compiler_name() -> str:
    """The name of the backend that torch.compile reads this code for; "" for one without a name."""
    return _torch.compiler_name()


# torch.compile calls it while it reads, and takes its result for a constant.
compiler_name._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]


@_torch.disable_dynamo
def uncompiled(run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What `run` returns: the engine's own code runs as it is, also where torch.compile is at work around it.

    To be called where `compiles()`; elsewhere call `run` itself.
    """
    return run(*args, **kwargs)


def is_exported() -> bool:
    """Whether a program is made here that runs elsewhere, by `torch.export` or `torch.jit.trace`."""
    return is_exporting() or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]


def is_transformed() -> bool:
    """Whether a transform of torch.func is running, or a forward-mode derivative.

    Under the one autograd takes no hooks for saved tensors, and with the other it saves those of tangents.
    """
    return _torch.interpreter_stack() is not None or forward_ad._current_level >= 0


# Contexts


# What is looked at of every parameter, without a frame of Python's for each.
VERSION: Callable[[Tensor], int] = Tensor._version.__get__  # pyright: ignore
REQUIRES_GRAD: Callable[[Tensor], bool] = Tensor.requires_grad.__get__  # pyright: ignore
STORAGE = Tensor.untyped_storage
ADDRESS = operator.attrgetter("_cdata")
TRAINING = operator.attrgetter("training")
MAKE_UP = operator.attrgetter(
    "_modules", "_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks"
)


class Ambient:
    """The contexts that a forward runs in."""

    __slots__ = ("autocast", "default_dtype", "dispatch_modes", "function_modes", "switches")

    def __init__(self) -> None:
        self.autocast = autocast_state()
        self.function_modes = [
            _torch.function_mode_at(index) for index in range(_torch.function_mode_count())
        ]
        self.dispatch_modes = dispatch_modes()
        self.default_dtype = torch.get_default_dtype()
        self.switches = switches_now()

    @property
    def is_plain(self) -> bool:
        """Whether functions that read nothing but their inputs compute as they do without any context."""
        return self.autocast == NO_AUTOCAST and not self.function_modes

    @property
    def is_in_force(self) -> bool:
        """Whether the contexts of now are the same."""
        return (
            self.autocast == autocast_state()
            and not self.function_modes
            and not _torch.function_mode_count()
            and self.default_dtype == torch.get_default_dtype()
            and self.switches == switches_now()
        )

    def restored(self) -> AbstractContextManager[Any]:
        """A block under these contexts, as far as they differ from today's."""
        stack = None
        if self.autocast != autocast_state():
            stack = ExitStack()
            stack.enter_context(_autocast_restored(self.autocast))
        if self.function_modes or _torch.function_mode_count():
            stack = stack or ExitStack()
            stack.enter_context(_function_modes_restored(self.function_modes))
        if self.default_dtype != torch.get_default_dtype() or self.switches != switches_now():
            stack = stack or ExitStack()
            stack.enter_context(_defaults_restored(self.default_dtype, self.switches))
        return stack or NOTHING


def dispatch_modes() -> list[Any]:
    """The dispatch modes in force, outermost first."""
    return [_torch.dispatch_mode_at(index) for index in range(_torch.dispatch_mode_count())]


def autocast_state() -> Autocast:
    """Autocast's precision for each kind of device, None where it is off."""
    if not _torch.autocast_is_on():
        return NO_AUTOCAST
    return tuple(
        [torch.get_autocast_dtype(each) if torch.is_autocast_enabled(each) else None for each in DEVICES]
    )


def switches_now() -> tuple[Any, ...]:
    """Which kernels and algorithms torch may take, such as those of attention, or only deterministic ones."""
    return tuple([get() for get, _ in _torch.switches])


def _set_switches(to: tuple[Any, ...]) -> None:
    for (get, put), value in zip(_torch.switches, to, strict=True):
        if get() != value:
            put(value)


def refuse_unrestorable() -> None:
    """Refuse a forward in a context that no replay could be put into.

    Raises:
        ReplayError: Transformer Engine's FP8 autocast is on, whose scaling factors move with every call.
    """
    for name in ("transformer_engine.pytorch.fp8", "transformer_engine.pytorch.quantization"):
        manager = getattr(sys.modules.get(name), "FP8GlobalStateManager", None)
        if manager is not None and manager.is_fp8_enabled():
            raise ReplayError(
                "the forward runs under fp8_autocast of transformer_engine, whose scaling factors a second "
                "run would move again. Leave that context around the net, or keep every node: "
                "net.plan = revgraph.keep_all(net.graph)."
            )


def widened(value: Any) -> Any:
    """A stream's first value in float32, where autocast made it in half precision."""
    if isinstance(value, Tensor) and value.dtype in HALF and torch.is_autocast_enabled(value.device.type):
        return value.float()
    return value


@contextmanager
def _autocast_restored(state: Autocast) -> Iterator[None]:
    """Run with autocast on or off as it was; casts of parameters are not shared with what runs around."""
    with ExitStack() as stack:
        for device, dtype in zip(DEVICES, state, strict=True):
            if dtype is not None or torch.is_autocast_enabled(device):
                stack.enter_context(
                    torch.autocast(device, dtype, enabled=dtype is not None, cache_enabled=False)
                )
        yield


@contextmanager
def _function_modes_restored(modes: Sequence[Any]) -> Iterator[None]:
    """Run with these function modes in place of those that are in force."""
    now = [_torch.pop_function_mode() for _ in range(_torch.function_mode_count())]
    for mode in modes:
        _torch.push_function_mode(mode)
    try:
        yield
    finally:
        for _ in modes:
            _torch.pop_function_mode()
        for mode in reversed(now):
            _torch.push_function_mode(mode)


@contextmanager
def _defaults_restored(dtype: torch.dtype, switches: tuple[Any, ...]) -> Iterator[None]:
    now = torch.get_default_dtype(), switches_now()
    torch.set_default_dtype(dtype)
    _set_switches(switches)
    try:
        yield
    finally:
        torch.set_default_dtype(now[0])
        _set_switches(now[1])


# Random numbers


def devices_of(tensors: Sequence[Any]) -> list[int]:
    """The GPUs that these tensors are on."""
    return sorted(
        {tensor.device.index for tensor in tensors if isinstance(tensor, Tensor) and tensor.is_cuda}
    )


class RandomStream:
    """The state of the random generators between nodes, read again only where it may have moved."""

    __slots__ = ("devices", "state")

    def __init__(self, devices: list[int]) -> None:
        self.devices = devices
        self.state: tuple[bytes, ...] | None = None

    def read(self) -> tuple[bytes, ...]:
        with _torch.unseen():
            cpu = torch.default_generator.get_state().numpy().tobytes()
            if not self.devices:
                return (cpu,)
            return (cpu, *(torch.cuda.get_rng_state(index).numpy().tobytes() for index in self.devices))

    def before(self) -> tuple[bytes, ...]:
        if self.state is None or threading.active_count() > 1:  # another thread may have drawn since
            self.state = self.read()
        return self.state

    def drawn_since(self, before: tuple[bytes, ...]) -> bool:
        if self.devices:
            self.state = self.read()
        else:
            with _torch.unseen():
                self.state = (torch.default_generator.get_state().numpy().tobytes(),)
        return self.state != before


@contextmanager
def random_restored(state: tuple[bytes, ...], devices: list[int]) -> Iterator[None]:
    """Run with the generators as they were; afterwards they are as before. One thread does so at a time."""
    with _DRAWS, _restored(state, devices):
        yield


@contextmanager
def _restored(state: tuple[bytes, ...], devices: list[int]) -> Iterator[None]:
    with _torch.unseen():
        fork = torch.random.fork_rng(devices)
        fork.__enter__()
        torch.default_generator.set_state(_tensor(state[0]))
        for index, part in zip(devices, state[1:], strict=True):
            torch.cuda.set_rng_state(_tensor(part), index)
    try:
        yield
    finally:
        with _torch.unseen():
            fork.__exit__(None, None, None)


def _tensor(state: bytes) -> Tensor:
    return torch.frombuffer(bytearray(state), dtype=torch.uint8)


# Modules


@dataclass(frozen=True, slots=True)
class NodeModules:
    """Every module that a node calls or reads attributes of, with submodules, once each.

    `parameters` and `buffers` are their slots: the module and the name under which it has one. Parameters
    that the node writes into (`written`) go with the buffers.
    """

    modules: tuple[nn.Module, ...]
    parameters: tuple[tuple[nn.Module, str], ...]
    buffers: tuple[tuple[nn.Module, str], ...]

    @staticmethod
    def of(modules: Sequence[nn.Module], written: Collection[tuple[nn.Module, str]] = ()) -> NodeModules:
        parameters: list[tuple[nn.Module, str]] = []
        buffers: list[tuple[nn.Module, str]] = []
        for module in modules:
            for name in module._parameters:
                (buffers if (module, name) in written else parameters).append((module, name))
            for name in module._buffers:
                buffers.append((module, name))
        return NodeModules(tuple(modules), tuple(parameters), tuple(buffers))


class Probes:
    """A few numbers of every parameter on the CPU, by which edits show that leave no version.

    Those are edits through `.data` and the steps of fused optimizers. Parameters elsewhere are left out: a
    GPU would have to be waited for.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self.parameters = [
            each
            for each in parameters
            if type(each) is nn.Parameter and each.is_cpu and each.layout is torch.strided and each.numel()
        ]
        self._memory = self._memory_now()
        self._views: list[list[Tensor]] = []
        self._indices: list[list[int]] = []
        with _torch.unseen(), _torch.without_overrides(), torch.no_grad():
            for dtype in {each.dtype for each in self.parameters}:
                indices = [index for index, each in enumerate(self.parameters) if each.dtype == dtype]
                self._indices.append(indices)
                self._views.append([_few_of(self.parameters[index]) for index in indices])

    def is_current(self) -> bool:
        """Whether all parameters are still where they were."""
        return self._memory_now() == self._memory

    def read(self) -> list[Tensor]:
        """The numbers of now."""
        with _torch.unseen(), _torch.without_overrides(), torch.no_grad():
            return [torch.cat(views).view(torch.uint8) for views in self._views]

    def edited_since(self, before: list[Tensor]) -> set[int]:
        """The ids of the parameters whose numbers are others than those read before."""
        found: set[int] = set()
        with _torch.unseen(), _torch.without_overrides(), torch.no_grad():
            for one, two, views, indices in zip(before, self.read(), self._views, self._indices, strict=True):
                if not torch.equal(one, two):
                    sizes = [each.numel() * each.element_size() for each in views]
                    pairs = zip(one.split(sizes), two.split(sizes), strict=True)
                    found.update(
                        id(self.parameters[index])
                        for index, (old, new) in zip(indices, pairs, strict=True)
                        if not torch.equal(old, new)
                    )
        return found

    def _memory_now(self) -> list[int]:
        return [*map(ADDRESS, map(STORAGE, self.parameters))]


def _few_of(parameter: Tensor) -> Tensor:
    """Up to three elements, from the beginning, the middle and near the end."""
    flat = parameter.detach()
    if not flat.is_contiguous():
        return flat[(0,) * flat.dim()].view(1)
    flat = flat.view(-1)
    return flat[:: max(1, flat.numel() // 3)][:3]


class ModuleState:
    """Training flags, parameter versions and buffers of a node's modules, taken before its forward.

    Buffers that the forward changes are held as they were, except those of torch's own batch normalization in
    training, which writes its running statistics without reading them.
    """

    __slots__ = (
        "_attributes",
        "_before",
        "_copies",
        "_flags",
        "_make_up",
        "_node",
        "_parameters",
        "_requires_grad",
        "_shards",
        "_versions",
    )

    def __init__(
        self,
        node: NodeModules,
        shielded: bool = False,
        shards: Shards = NO_SHARDS,
        has_buffers: bool = True,
    ) -> None:
        """Where it is `shielded`, whatever runs is kept from writing buffers, in the forward too.

        Parameters among the `shards` are told by these. What is inlined has no buffers to care for.
        """
        self._node = node
        self._flags = [*map(TRAINING, node.modules)]
        self._make_up = make_up_of(node.modules)
        self._shards = _own(node, shards) if shards else NO_SHARDS
        self._parameters = self._parameters_now()
        self._requires_grad = [*map(REQUIRES_GRAD, self._parameters)]
        self._versions = self._versions_of(self._parameters)
        tables = [module.__dict__ for module in node.modules] if has_buffers else []
        self._attributes: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._before = [(table, _plain_attributes(table)) for table in tables]
        self._copies: list[_Copy] = []
        for module, name in node.buffers if has_buffers else ():
            buffer = _table(module, name).get(name)
            if buffer is not None:
                self._copies.append(_Copy(module, name, buffer, shielded))

    def after_forward(self) -> None:
        """Let go of the copies of buffers and attributes that did not change."""
        differing = ((table, _differing(before, table)) for table, before in self._before)
        self._attributes = [(table, old) for table, old in differing if old]
        self._before = []
        if self._copies:
            changed = {copy.module for copy in self._copies if copy.has_changed()}
            for copy in self._copies:
                copy.settle(copy.module in changed)
        if self._shards:  # FSDP lays out its shards anew in the first forward
            self._parameters = self._parameters_now()
            self._versions = self._versions_of(self._parameters)

    def unread_storages(self) -> set[int]:
        """The storages of buffers that the forward writes without reading them."""
        return {memory_key(copy.buffer) for copy in self._copies if copy.is_unread} if self._copies else set()

    def check(self, node: str) -> None:
        """Refuse a replay on parameters, buffers or modules that changed since the forward.

        Raises:
            ReplayError: one did.
        """
        now = self._parameters_now()
        if (
            not all(map(operator.is_, now, self._parameters))
            or self._versions_of(now) != self._versions
            or (self._copies and any([copy.is_stale() for copy in self._copies]))
        ):
            raise stale(node)
        children, hooks = make_up_of(self._node.modules)
        if children != self._make_up[0] or not hooks <= self._make_up[1]:  # one fewer does no harm
            raise ReplayError(
                f"a module of node {node!r} was replaced, or a hook was added to it, between forward and "
                "backward, so its replay would not repeat the forward. Do that before the forward or "
                f"after the backward, or keep the node: decisions {{{node!r}: 'keep'}}."
            )

    def buffers_held(self) -> Iterator[tuple[str, Tensor]]:
        """The buffers, by name, of which the forward's contents are held for replays."""
        return ((copy.name, copy.before) for copy in self._copies if copy.before is not None)

    def switched(self) -> list[str]:
        """The parameters that require a gradient now and did not in the forward, or the other way round."""
        flags = {id(each): flag for each, flag in zip(self._parameters, self._requires_grad, strict=True)}
        return [
            name
            for module, name in self._node.parameters
            if (now := module._parameters.get(name)) is not None
            and now.requires_grad != flags.get(id(now), now.requires_grad)
        ]

    def differs(self) -> bool:
        """Whether there is anything to restore."""
        if self._attributes:
            return True
        if self._copies and any([copy.changed for copy in self._copies]):
            return True
        return [*map(TRAINING, self._node.modules)] != self._flags

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Run with flags, buffers and attributes as the forward found them; what is written is dropped."""
        modules = self._node.modules
        flags = [module.training for module in modules]
        changed = [copy for copy in self._copies if copy.changed]
        now = [copy.table[copy.name] for copy in changed]
        attributes = [
            (table, {name: table.get(name, ABSENT) for name in old}) for table, old in self._attributes
        ]
        try:
            for module, flag in zip(modules, self._flags, strict=True):
                module.training = flag
            for copy, buffer in zip(changed, now, strict=True):
                copy.table[copy.name] = copy.for_replay(buffer)
            _put(self._attributes)
            yield
        finally:
            _put(attributes)
            for module, flag in zip(modules, flags, strict=True):
                module.training = flag
            for copy, buffer in zip(changed, now, strict=True):
                copy.table[copy.name] = buffer

    def _parameters_now(self) -> list[Tensor]:
        """The parameters that are there, without sharded ones, which come and go."""
        shards = self._shards
        found: list[Tensor] = []
        for module, name in self._node.parameters:
            parameter = module._parameters.get(name)
            if parameter is not None and not (shards and (module, name) in shards):
                found.append(parameter)
        return found

    def _versions_of(self, parameters: list[Tensor]) -> list[Any]:
        """What changes when a parameter is edited, or given other memory (`.data = ...`)."""
        try:
            found = [*map(VERSION, parameters), *map(ADDRESS, map(STORAGE, parameters))]
        except (RuntimeError, NotImplementedError):  # of inference tensors, or sparse ones
            found = [(version_of(each), memory_key(each)) for each in parameters]
        return [*found, *shard_versions(self._shards)] if self._shards else found


def _plain_attributes(table: dict[str, Any]) -> dict[str, Any]:
    """Numbers, strings and the like among a module's attributes. What holds memory is not held on to."""
    return {name: value if type(value) in PLAIN else UNKNOWN for name, value in table.items()}


def _differing(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """The plain attributes that have changed, as they were; the training flag is seen to by itself."""
    found: dict[str, Any] = {}
    for name, value in now.items():
        old = before.get(name, ABSENT)
        if old is not value and type(value) in PLAIN and old is not UNKNOWN and name != "training":
            found[name] = old
    return found


def _put(attributes: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
    """Give modules these attributes."""
    for table, values in attributes:
        for name, value in values.items():
            if value is ABSENT:
                table.pop(name, None)
            else:
                table[name] = value


def make_up_of(modules: Sequence[nn.Module]) -> tuple[list[Any], set[int]]:
    """The submodules of all modules in order, and the numbers of the hooks on them."""
    children: list[Any] = []
    hooks: set[int] = set()
    for own, *tables in map(MAKE_UP, modules):
        children += own.values()
        hooks.update(*tables)
    return children, hooks


def stale(node: str) -> ReplayError:
    """The error of a replay on other parameters or buffers than its forward's."""
    return ReplayError(
        f"a parameter or buffer of node {node!r} was changed or replaced between forward and backward (by an "
        "optimizer step, for example), so its replay would not repeat the forward. Run backward before the "
        f"change, or keep the node: decisions {{{node!r}: 'keep'}}."
    )


def _table(module: nn.Module, name: str) -> dict[str, Tensor | None]:
    """Where a module has a buffer, or a parameter that is treated as one."""
    return module._buffers if name in module._buffers else module._parameters  # pyright: ignore


class _Copy:
    """A buffer before a forward; `changed` says, after it, whether the forward changed it."""

    __slots__ = ("_version", "before", "buffer", "changed", "is_unread", "module", "name", "table")

    def __init__(self, module: nn.Module, name: str, buffer: Tensor, shielded: bool) -> None:
        self.module = module
        self.name = name
        self.table = _table(module, name)
        self.buffer = buffer
        self.is_unread = type(module) in BATCH_NORMS and module.training
        self.before = None if self.is_unread or shielded else buffer.detach().clone()
        self.changed = self.is_unread or shielded
        self._version = version_of(buffer)

    def has_changed(self) -> bool:
        if self.changed or self.before is None:
            return self.changed
        now = self.table.get(self.name)
        if now is None or now is not self.buffer or version_of(now) != self._version:
            return True
        return not equal(now, self.before)

    def settle(self, changed: bool) -> None:
        self.changed = changed
        if not changed:
            self.before = None

    def is_stale(self) -> bool:
        """Whether a buffer that the forward left alone has changed since."""
        if self.changed:
            return False
        now = self.table.get(self.name)
        return now is None or now is not self.buffer or version_of(now) != self._version

    def for_replay(self, now: Tensor | None) -> Tensor | None:
        source = now if self.before is None else self.before
        if source is None:
            return None
        other = source.detach().clone()
        # Autograd's saved parameters are held as they are, and told by their type.
        return nn.Parameter(other, now.requires_grad) if isinstance(now, nn.Parameter) else other


def version_of(tensor: Tensor) -> int:
    """A tensor's version counter; -1 for inference tensors, which have none."""
    return -1 if tensor.is_inference() else tensor._version


def versions_of(tensors: list[Tensor]) -> list[int]:
    """Their version counters."""
    try:
        return [*map(VERSION, tensors)]
    except RuntimeError:
        return [*map(version_of, tensors)]


def equal(one: Tensor, two: Tensor) -> bool:
    """Whether two tensors hold the same numbers, as far as they have any."""
    with _torch.unseen():
        return all(
            [
                isinstance(a, FakeTensor) or a.is_meta or (a.shape == b.shape and torch.equal(a, b))
                for a, b in zip(parts_of(one), parts_of(two), strict=True)
            ]
        )


def _own(node: NodeModules, shards: Shards) -> Shards:
    return {slot: shards[slot] for slot in node.parameters if slot in shards}


# Threads

_NODES, _DRAWS = threading.RLock(), threading.RLock()
if hasattr(os, "register_at_fork"):
    for lock in (_NODES, _DRAWS):
        os.register_at_fork(after_in_child=lock._at_fork_reinit)  # pyright: ignore[reportAttributeAccessIssue]


def turn(values: Iterable[Any]) -> AbstractContextManager[Any]:
    """What to hold while a node of a net with these inputs runs.

    A replay puts the forward's random numbers and buffers back for a moment. Both belong to the whole
    process, so another thread's node must not run meanwhile: it would draw numbers that were drawn before,
    and update buffers that are thrown away. On other devices than the CPU it is nothing: there a backward
    pass runs in threads of its own, which a forward that differentiates may have to wait for.
    """
    on_cpu = all([value.device.type in ("cpu", "meta") for value in values if isinstance(value, Tensor)])
    return _NODES if on_cpu else nullcontext()
