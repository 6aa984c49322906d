"""State of modules restored before recomputation: training flags, buffers, attributes; with its checks.

A replay has to repeat its forward. `ModuleState` notes, once a node, what its modules are like, and puts
back for as long as the replay runs what differs, and no more, for that takes time: training flags; buffers
that the forward wrote, as they were before; numbers and the like that the forward assigned to attributes.
Writes do not always show in version counters (`.data`, BatchNorm's own kernel), so contents are compared. A
module that writes one of its buffers is taken to write all of them: what does not change on one input may on
the next.

Parameters are not put back but checked, unless the node itself writes them: a replay on others than the
forward's is refused. `Probes` show edits that no version counts.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from revgraph.engine import _torch
from revgraph.engine.sharding import NO_SHARDS, Shards, shard_versions
from revgraph.errors import ReplayError
from revgraph.storages import memory_key, parts_of

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
ABSENT, UNKNOWN = object(), object()
PLAIN = frozenset((int, float, bool, str, type(None)))
# What is looked at of every parameter, without a frame of Python's for each.
VERSION: Callable[[Tensor], int] = Tensor._version.__get__  # pyright: ignore
REQUIRES_GRAD: Callable[[Tensor], bool] = Tensor.requires_grad.__get__  # pyright: ignore
STORAGE = Tensor.untyped_storage
ADDRESS = operator.attrgetter("_cdata")
TRAINING = operator.attrgetter("training")
MAKE_UP = operator.attrgetter(
    "_modules", "_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks"
)


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
        self._make_up: tuple[list[Any], set[int]] = ([], set())
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
        """Let go of the copies of buffers and attributes that did not change.

        Hooks count that are there by now: libraries put some on in a module's first forward, for it to note
        what its layers give. Replays are compared with the first forwards, so one that did more would show.
        """
        self._make_up = make_up_of(self._node.modules)
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
