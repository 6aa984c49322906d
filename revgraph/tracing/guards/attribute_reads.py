"""Attributes of modules, and of the objects that these hold, that user code reads while it is traced.

`AttributeReads` patches `__getattribute__` of `nn.Module`, and of each class of whose objects the model holds
one that code reads, for as long as a trace lasts. A read counts if user code asks (not torch, nor revgraph)
and if that code is opened: what runs inside a call that is one node is that node's matter.

- Numbers, flags, strings, None and bound methods are noted by value and type.
- Lists, dictionaries and the like are noted with a snapshot of their content.
- Tensors that are no buffers, functions and other objects are noted by identity. Where code then reads
  attributes of such an object (a configuration), these reads are seen as well.
- A property is noted by identity, and what it reads is seen.
- Code that asks for all attributes at once (`vars(self)`) reads each, and the names of all.
- What is None until the first forward settles it is a setting (`settings.py`).

Code that changes what it has read cannot be a graph, nor code that reads a clock or an iterator: the module
stays one node, or the trace is refused. Reads belong to the module call (`ModuleScope`) in which they
happened; when that call is rolled back, or folded into one node, they go with it.
"""

from __future__ import annotations

import enum
import inspect
import sys
import weakref
from collections.abc import Callable, Collection, Container, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import Context, ContextVar, copy_context
from dataclasses import dataclass, field, replace
from itertools import islice
from types import FunctionType, MemberDescriptorType, MethodType, ModuleType
from typing import Any, TypeAlias, TypeVar
from unittest.mock import patch

from torch import Tensor, nn

from revgraph.isolation import HEAP_TYPE, MODULE_TABLES
from revgraph.tracing.guards.fixed_values import (
    CONTAINERS,
    MISSING,
    PLAIN,
    AttributeNames,
    ContextValue,
    Namespace,
    Read,
    snapshot,
    version_of,
)
from revgraph.tracing.guards.guards import Forms, Guards
from revgraph.tracing.guards.random_sources import is_clock, read_once, source_behind
from revgraph.tracing.guards.settings import Setting, Settings, setting_of
from revgraph.tracing.guards.torch_state import TORCH_STATE, call_text
from revgraph.tracing.modes import GRADIENT_MODE, modes
from revgraph.tracing.proxies import Untraceable, is_proxy
from revgraph.tracing.user_code import is_opened, is_users

HOLDERS = (*CONTAINERS, weakref.ref, type)
# Whose code may ask for all attributes of a module and sees nothing that a graph would hold.
NOT_ASKING = frozenset((*sys.stdlib_module_names, "revgraph"))
# Of modules whose code is running, the training flag is a traced value.
NEVER_ASKED = MODULE_TABLES - {"training"}
# Packages whose objects are no settings of a model's: they are held to their identity alone.
NOT_LOOKED_INTO = frozenset(
    ("torch", "revgraph", "builtins", "functools", "enum", "logging", "io", "_io", "threading", "warnings")
)
Mark: TypeAlias = tuple[int, int, int]
K = TypeVar("K")


@dataclass
class AttributeReads:
    """Sees the attributes that user code reads of a model's modules, and of the objects that these hold.

    `is_paused` tells when what runs is not opened code, `scope` which call of a module is being traced into;
    `random_source` hears of generators of random numbers. `settled` are the settings that were made before;
    while it is None, the code may settle some, which are `noted`.
    """

    modules: Mapping[str, nn.Module]
    is_paused: Callable[[], bool]
    scope: Callable[[], Any]
    random_source: Callable[[str, Any], None]
    reads: dict[tuple[int, int, str], tuple[Any, Read]] = field(default_factory=dict)
    opened: dict[tuple[int, int], tuple[Any, nn.Module, dict[str, Any]]] = field(default_factory=dict)
    paths: dict[int, str] = field(init=False)
    asked_gradient_mode: bool = False
    settled: Settings | None = field(default_factory=Settings)
    noted: dict[tuple[int, str], Setting] = field(default_factory=dict)
    _objects: dict[int, tuple[Any, str, bool]] = field(default_factory=dict)
    _namespaces: dict[int, Namespace] = field(default_factory=dict)
    _proxied: dict[int, nn.Module] = field(default_factory=dict)
    _patched: dict[type, Any] = field(default_factory=dict)
    _stack: ExitStack = field(default_factory=ExitStack)
    _whole: dict[int, AttributeNames] = field(default_factory=dict)
    _modes: tuple[Any, ...] = field(default_factory=modes)
    _arguments: dict[int, frozenset[str]] = field(default_factory=dict)
    _context: Context = field(default_factory=copy_context)
    _variables: dict[ContextVar[Any], ContextValue] = field(default_factory=dict)
    _unasked: dict[tuple[int, str], type] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.paths = {id(module): path for path, module in reversed([*self.modules.items()])}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """A block in which reads are seen."""
        with self._stack:
            self._watch_class(nn.Module)
            yield

    @contextmanager
    def through_proxies(self) -> Iterator[None]:
        """A block in which code may read attributes of things that share a module's `__dict__` and stand for
        it, as `torch.export` makes them."""
        self._proxied = {id(vars(module)): module for module in self.modules.values()}
        try:
            yield
        finally:
            self._proxied = {}

    def mark(self) -> Mark:
        """A point to go back to."""
        return len(self.reads), len(self.opened), len(self.noted)

    def forget(self, mark: Mark) -> None:
        """Drop what was seen since: the code was not opened after all."""
        seen: tuple[dict[Any, Any], ...] = self.reads, self.opened, self.noted
        for table, count in zip(seen, mark, strict=True):
            while len(table) > count:
                table.popitem()

    def check_unchanged(self, mark: Mark) -> None:
        """Refuse code that has changed what it read since the mark."""
        for key in _since(mark[0], self.reads):
            scope, each = self.reads[key]
            is_same = (
                each.name == "training"
                or isinstance(each.owner, ContextValue)
                or (each.holds() and each.version == version_of(each.value))
            )
            kind = self._unasked.get((id(each.owner), each.name))
            if not is_same and kind is not None:
                # It is in no graph: code that is none of the graph's changes it.
                self.reads[key] = scope, replace(each, name="__name__", value=kind.__name__)
            elif not is_same and not self._settles(each.owner, each.name, each.value):
                raise Untraceable(f"it changes {each.path}, which it also reads")
        for key in _since(mark[1], self.opened):
            _, module, before = self.opened[key]
            for name, value in attributes_of(module).items():
                was = before.get(name, MISSING)
                if was is not value and not self._settles(module, name, was):
                    path = ".".join(part for part in ("model", self.paths[id(module)], name) if part)
                    raise Untraceable(f"it assigns {path}, which a graph would not")

    def _settles(self, owner: Any, name: str, before: Any) -> bool:
        """Whether the change of an attribute settles it, and the code may."""
        setting = setting_of(owner, name, before, getattr(owner, name, None))
        if self.settled is not None or setting is None:
            return False
        self.noted[id(owner), name] = setting
        return True

    def settings(self, inputs: dict[str, Any]) -> Settings:
        """What was settled, for inputs of these forms, with what was read besides."""
        reads = [each for _, each in self.reads.values() if (id(each.owner), each.name) not in self.noted]
        return Settings((*self.noted.values(),), (*reads,), inputs)

    def open(self, module: nn.Module, forward: Any = None) -> None:
        """A module's forward is being traced into; given one, that is it."""
        scope = self.scope()
        self.opened[id(scope), id(module)] = scope, module, attributes_of(module)
        self._note(module, "forward", forward or module.forward)

    def guards(
        self,
        gone: Callable[[Any], bool],
        called: Container[str],
        opaque: Collection[str],
        forms: Forms | None = None,
    ) -> Guards:
        """The guards of a program: of all that was opened, but for calls that are `gone` from its graph.

        Modules that code only goes through (a `ModuleList`) belong to it; those `called` are looked into only
        for whether they change. What is in `opaque` ones is left alone: they may make modules as they run.
        """
        reads = {(id(each.owner), each.name): each for scope, each in self.reads.values() if not gone(scope)}
        opened = {id(module): module for scope, module, _ in self.opened.values() if not gone(scope)}
        through = list(opened.values())
        while through:
            for child in through.pop()._modules.values():
                path = self.paths.get(id(child))
                if child is not None and path is not None and path not in called and id(child) not in opened:
                    opened[id(child)] = child
                    through.append(child)
        inside = {
            id(module): module
            for path, module in self.modules.items()
            if id(module) not in opened and not any(f"{path}.".startswith(f"{each}.") for each in opaque)
        }
        settings = self.settled or Settings()
        return Guards(
            [*reads.values()], [*opened.values()], [*inside.values()], self.modules[""], settings, forms
        )

    def flag(self, path: str, value: bool) -> bool:
        """A training flag that decides the way of the code; its module holds a traced value meanwhile."""
        self._note(self.modules[path.rpartition(".")[0]], "training", value)
        return value

    def gradient_mode(self, enabled: bool) -> bool:
        """The gradient mode, which the code asked for."""
        self._keep(GRADIENT_MODE, "is_enabled", enabled, "torch.is_grad_enabled()")
        self.asked_gradient_mode = True
        return enabled

    def torch_state(self, text: str) -> Any:
        """What torch tells of its global state by this call, which the code made.

        Autocast that the code has switched on itself follows from the code.
        """
        value = getattr(TORCH_STATE, text)
        if modes()[2:] == self._modes[2:]:
            self._keep(TORCH_STATE, text, value, f"torch.{text}")
        return value

    def autocast(self, name: str, args: tuple[Any, ...]) -> Any:
        """What the code asked of autocast."""
        return self.torch_state(call_text(name, args))

    def _watch_class(self, kind: type) -> None:
        original: Any = getattr(kind, "__getattribute__", None)
        if original is None:  # a class whose own class answers for it
            return

        def read(owner: Any, name: str) -> Any:
            try:
                value = original(owner, name)
            except AttributeError:
                whose = self._stood_for(owner, original) if self._proxied else owner
                if self._is_asked(whose, name):
                    self._saw_none(whose, name)
                raise
            if name in NEVER_ASKED and not self._proxied:  # as torch does at every call of a module
                return value
            if self._proxied and name == "__dict__" and self._is_asked_whole(owner):
                raise Untraceable("it reads __dict__ of a module, whose attributes torch.export replaces")
            if self._proxied:
                return self._read_through(owner, name, value, self._stood_for(owner, original))
            if name == "__dict__" and self._is_asked_whole(owner):
                self._saw_whole(owner, value)
            return self._saw(owner, name, value) if self._is_asked(owner, name) else value

        self._patched[kind] = original
        try:
            self._stack.enter_context(patch.object(kind, "__getattribute__", read))
        except TypeError:  # a class of an extension module's: its objects are held to their identity
            return

    def _is_asked(self, owner: Any, name: str) -> bool:
        """Whether it is opened code that asks for this attribute, two calls up."""
        if name in NEVER_ASKED or name.startswith("__") or self.is_paused():
            return False
        if id(owner) not in self._objects and id(owner) not in self.paths:
            return False
        return is_users(sys._getframe(2).f_globals.get("__name__", ""))

    def _is_asked_whole(self, owner: Any) -> bool:
        """Whether it is opened code that asks for all attributes at once, two calls up."""
        if self.is_paused() or (id(owner) not in self._objects and id(owner) not in self.paths):
            return False
        name = sys._getframe(2).f_globals.get("__name__", "")
        return is_users(name) and name.partition(".")[0] not in NOT_ASKING

    def _saw_whole(self, owner: Any, attributes: dict[str, Any]) -> None:
        names = self._whole.setdefault(id(owner), AttributeNames(owner))
        known = self._objects.get(id(owner))
        path = known[1] if known else ".".join(part for part in ("model", self.paths[id(owner)]) if part)
        self._keep(names, "names", names.names, f"the attributes of {path}", self._is_outside(owner))
        for name, value in [*attributes.items()]:
            if (
                name != "forward"
                and not is_proxy(value)
                and (name == "training" or name not in MODULE_TABLES)
            ):
                self._look_into(value, self._note(owner, name, value), self._is_outside(owner))

    def _stood_for(self, owner: Any, original: Any) -> Any:
        """The module of which something has the attributes, or the thing itself."""
        return self._proxied.get(id(original(owner, "__dict__")), owner)

    def _read_through(self, owner: Any, name: str, value: Any, whose: Any) -> Any:
        """A read while `torch.export` runs code: of training flags, too, and by code of torch's layers."""
        if name in NEVER_ASKED or name.startswith("__") or self.is_paused():
            return value
        known = id(whose) in self._objects or id(whose) in self.paths
        reader = sys._getframe(2).f_globals.get("__name__", "")
        is_layers = reader.startswith("torch.nn.modules.") and reader != nn.Module.__module__
        if known and name != "forward" and (is_layers or is_users(reader)):  # that is noted when it is opened
            bound = type(value) is MethodType and value.__self__ is owner
            self._saw(whose, name, MethodType(value.__func__, whose) if bound else value)
        return value

    def _saw(self, owner: Any, name: str, value: Any) -> Any:
        if _is_computed(owner, name):
            kind = type(owner)
            how = getattr(kind, name, None)
            static = inspect.getattr_static(kind, name, None)
            if isinstance(static, (classmethod, staticmethod, property)):
                self._keep(kind, name, how, f"{kind.__name__}.{name}", True)
        elif id(owner) in self._arguments:
            kind = type(owner)
            if name not in self._arguments[id(owner)]:
                self.read_outside(kind, name, getattr(kind, name, MISSING), f"{kind.__name__}.{name}")
        elif not is_proxy(value):
            self._look_into(value, self._note(owner, name, value), self._is_outside(owner))
        return value

    def _saw_none(self, owner: Any, name: str) -> None:
        """An attribute that is not there, or a parameter or buffer that is None: code may go by that."""
        fallback = getattr(type(owner), "__getattr__", None)
        if id(owner) in self._arguments:
            return
        if isinstance(owner, nn.Module):
            tables = (owner._parameters, owner._buffers, owner._modules)
            value = next((table[name] for table in tables if name in table), MISSING)
            if fallback is nn.Module.__getattr__ and (value is None or value is MISSING):
                self._note(owner, name, value)
        elif fallback is None:
            self._note(owner, name, MISSING)

    def _look_into(self, value: Any, path: str, outside: bool) -> None:
        """Refuse what tells something new each time; see the attributes of objects that the value holds."""
        kind = type(value)
        if callable(value) and is_clock(value):
            raise Untraceable(read_once(value, path))
        source = source_behind(value)
        if source is not None:
            self.random_source(path, source)
        elif hasattr(kind, "__next__"):
            raise Untraceable(f"it reads the iterator {path}, which a graph would ask only once")
        elif id(value) in self._objects or id(value) in self.paths:
            return
        elif isinstance(value, type):
            self.read_class(value)
        elif issubclass(kind, CONTAINERS):
            held = [each for each in _items(value) if _holds(each)]
            if not held:
                return
            self._objects[id(value)] = value, path, outside
            for each in held:
                self._look_into(each, f"{path}[...]", outside)
        elif issubclass(kind, weakref.ref):
            self._look_into(value(), f"{path}()", True)  # copies refer to the same object
        elif _has_attributes(value):
            self._objects[id(value)] = value, path, outside
            if not any(base in self._patched for base in kind.__mro__):
                self._watch_class(kind)

    def _is_outside(self, owner: Any) -> bool:
        known = self._objects.get(id(owner))
        return known is not None and known[2]

    def _note(self, owner: Any, name: str, value: Any) -> str:
        known = self._objects.get(id(owner))
        whose = known[1] if known else ".".join(part for part in ("model", self.paths[id(owner)]) if part)
        return self._keep(owner, name, value, f"{whose}.{name}", self._is_outside(owner))

    def _keep(self, owner: Any, name: str, value: Any, path: str, outside: bool = False) -> str:
        scope = self.scope()
        key = id(scope), id(owner), name
        if key not in self.reads:
            self.reads[key] = scope, Read(owner, name, snapshot(value), path, version_of(value), outside)
        return path

    def read_outside(self, owner: Any, name: str, value: Any, path: str) -> None:
        """Opened code reads something of what is no part of the model."""
        self._unasked.pop((id(owner), name), None)
        key = id(self.scope()), id(owner), name
        if key not in self.reads and not is_proxy(value):
            self._look_into(value, self._keep(owner, name, value, path, True), True)

    def read_class(self, kind: type) -> None:
        """Opened code has a class in hand: whatever it takes of it, all its data is held to.

        That goes for objects which the code makes of it, too. What changes during the trace is let go.
        """
        key = id(self.scope()), id(kind), "__name__"
        if not kind.__flags__ & HEAP_TYPE or not is_opened(kind.__module__) or key in self.reads:
            return
        self.hold(kind, "__name__", kind.__name__, f"the name of {kind.__name__}")
        names = dict.fromkeys(
            name
            for base in kind.__mro__
            if is_opened(base.__module__)
            for name, value in vars(base).items()
            if not name.startswith("__") and not hasattr(type(value), "__get__")
        )
        for name in names:
            value = getattr(kind, name, MISSING)
            if is_proxy(value) or _tells_anew(value):
                continue
            self._unasked[id(kind), name] = kind
            self._keep(kind, name, value, f"{kind.__name__}.{name}", True)
            if _has_attributes(value):
                self._look_into(value, f"{kind.__name__}.{name}", True)

    def look_into(self, thing: Any, path: str) -> None:
        """See what opened code reads of something that is no part of the model."""
        if isinstance(thing, nn.Module):
            for each in thing.modules():
                if id(each) not in self.paths:
                    self._objects[id(each)] = each, path, True
        elif type(thing) is MethodType:
            self.look_into(thing.__self__, path)
        elif not isinstance(thing, (*PLAIN, Tensor)):
            self._look_into(thing, path, True)

    def look_into_argument(self, thing: Any, fields: Collection[str], path: str) -> None:
        """See what opened code reads of the class of an argument, whose own attributes are the call's."""
        self._objects[id(thing)] = thing, path, True
        self._arguments[id(thing)] = frozenset(fields)
        if not any(base in self._patched for base in type(thing).__mro__):
            self._watch_class(type(thing))

    def context_variable(self, variable: ContextVar[Any]) -> None:
        """A context variable that opened code reads; what the code itself has set follows from it."""
        now = variable.get(MISSING)
        if now is self._context.get(variable, MISSING):
            owner = self._variables.setdefault(variable, ContextValue(variable))
            self.hold(owner, "value", now, f"the context variable {variable.name!r}")

    def hold(self, owner: Any, name: str, value: Any, path: str) -> None:
        """Opened code goes by something of what is no part of the model, as the object that it is."""
        self.reads.setdefault(
            (id(self.scope()), id(owner), name), (self.scope(), Read(owner, name, value, path, 0, True))
        )

    def namespace(self, place: dict[str, Any]) -> Namespace:
        """The namespace that these globals are."""
        if id(place) not in self._namespaces:
            self._namespaces[id(place)] = Namespace(str(place.get("__name__", "")), place)
        return self._namespaces[id(place)]


def _since(mark: int, table: dict[K, Any]) -> list[K]:
    """The keys that came into a table since it had so many, in order; those before are not gone through.

    What was rolled back in between may have left it with fewer.
    """
    return [*islice(reversed(table), max(len(table) - mark, 0))][::-1]


def attributes_of(module: nn.Module) -> dict[str, Any]:
    """A module's attributes, with its own parameters, buffers and modules."""
    own = {name: value for name, value in module.__dict__.items() if name not in MODULE_TABLES}
    return {**own, **module._parameters, **module._buffers, **module._modules}


def _is_computed(owner: Any, name: str) -> bool:
    """Whether an attribute is a property or the like: then what it reads is seen instead."""
    found = next((vars(base)[name] for base in type(owner).__mro__ if name in vars(base)), None)
    if not hasattr(type(found), "__get__") or isinstance(found, FunctionType):
        return False
    is_slot = isinstance(found, MemberDescriptorType)
    return not is_slot and (hasattr(type(found), "__set__") or name not in getattr(owner, "__dict__", ()))


def _items(container: Any) -> list[Any]:
    return [*(container.values() if isinstance(container, dict) else container)]


def _holds(value: Any) -> bool:
    """Whether something in a container is to be looked into."""
    return issubclass(type(value), HOLDERS) or _has_attributes(value) or source_behind(value) is not None


def _tells_anew(value: Any) -> bool:
    """Whether code that asks for a value gets another one each time."""
    return hasattr(type(value), "__next__") or source_behind(value) is not None or is_clock(value)


def _has_attributes(value: Any) -> bool:
    """Whether a value is an object of user code, with attributes of its own to be seen."""
    kind = type(value)
    return bool(kind.__flags__ & HEAP_TYPE) and (
        not issubclass(kind, (Tensor, type, ModuleType, enum.Enum, *PLAIN, *CONTAINERS))
        and kind.__module__.partition(".")[0] not in NOT_LOOKED_INTO
    )
