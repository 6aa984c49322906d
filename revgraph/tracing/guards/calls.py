"""The functions that run while user code is opened, and what they read from elsewhere.

A trace runs Python code once; a graph knows of it what traced values went through. Each function that opened
code enters is looked at by its code object (`user_code.py`), before it runs: globals, free variables, default
values that may change, attributes of classes and environment variables are guarded as the model's attributes
are (`attribute_reads.py`), at the values that they have. Functions that read a clock are refused.

`is`, `type(...)`, `id(...)` and `callable(...)` see a proxy for what it is and cannot be overloaded. Of the
functions, the globals of opened code have versions of their own meanwhile. For `is`, tensors that may be one
tensor are refused where it is asked; numbers and dtypes are no proxies there (`proxies.py`).
"""

from __future__ import annotations

import gc
import os
import random
import sys
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from operator import is_
from types import BuiltinFunctionType, CellType, CodeType, FrameType, FunctionType, ModuleType
from typing import Any

from torch import Tensor, nn

from revgraph.isolation import HEAP_TYPE
from revgraph.tracing.guards.attribute_reads import AttributeReads
from revgraph.tracing.guards.fixed_values import (
    CONTAINERS,
    ENVIRONMENT,
    MISSING,
    PLAIN,
    Cell,
    same,
    snapshot,
)
from revgraph.tracing.guards.namespaces import NamespaceWatch
from revgraph.tracing.guards.random_sources import CLOCKS, DATES, is_clock, read_once, source_behind
from revgraph.tracing.guards.stand_ins import INSTEAD, STAND_INS
from revgraph.tracing.guards.torch_state import ASKS_AUTOCAST, GETTERS
from revgraph.tracing.proxies import AsksIdentity, FakeProxy, Untraceable, is_proxy, is_tensor
from revgraph.tracing.user_code import (
    LIBRARY,
    Chain,
    CodeFacts,
    facts_of,
    is_opened,
    may_compare,
    taken_after,
)

ENVIRON: Any = type(os.environ)
ENVIRON_CODE: CodeType = ENVIRON.__getitem__.__code__
SEED_CODE: CodeType = random.Random.seed.__code__
# Names of the functions of C's that `_called_builtin` has to do with.
TELLING = DATES.union(("get",), (each.__name__ for each in (*ASKS_AUTOCAST, *GETTERS, *CLOCKS)))
# Modules whose functions stand in the place of torch's while a model is traced.
PATCHING = frozenset(("revgraph.tracing.patches",))
# Kinds of objects with attributes whose classes cannot be watched.
UNWATCHED = (FunctionType, threading.local)
# By which code comes to other classes, whose attributes are among those of the class.
BASES = frozenset(("__mro__", "__base__", "__bases__", "mro"))
METHODS = (classmethod, staticmethod, FunctionType)


class CallWatch:
    """Sees calls of Python functions by the interpreter's profiling hook, and tells `reads` what they read.

    `distinct` hears of traced tensors of which code may ask whether they are one.
    """

    def __init__(self, reads: AttributeReads, distinct: Callable[[list[FakeProxy]], None]) -> None:
        self.reads = reads
        self._distinct = distinct
        self._start: FrameType | None = None
        self._aside: FrameType | None = None
        self._passed: dict[int, CodeType] = {}
        self._entered: dict[CodeType, dict[str, tuple[Any, Any]]] = {}
        self._cells: dict[int, Cell] = {}
        self._replaced: dict[int, tuple[dict[str, Any], dict[str, Any]]] = {}
        self._spaces = NamespaceWatch(self._read_of_module, is_opened)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """A block in which calls are seen."""
        before = sys.getprofile()
        stop, go_on = getattr(before, "disable", None), getattr(before, "enable", None)
        if stop is not None:
            stop()  # a profiler of C's, which cannot be set again by this name
        self._start, self._aside = sys._getframe(2), None
        self._spaces.watch_all()
        self.resume()
        try:
            yield
        finally:
            sys.setprofile(None if stop is not None else before)
            self._spaces.let_go()
            if go_on is not None:
                go_on()
            self._start = None
            for place, added in self._replaced.values():
                for name, function in added.items():
                    if place.get(name) is function:
                        del place[name]

    def resume(self) -> None:
        """See calls again: an error that the hook raises ends it."""
        if self._start is not None:
            sys.setprofile(self._saw)

    def mark(self) -> int:
        """A point to go back to."""
        return len(self._entered)

    def forget(self, mark: int) -> None:
        """Drop the functions entered since: their code was not opened after all."""
        while len(self._entered) > mark:
            self._entered.popitem()
        self.resume()

    def _saw(self, frame: FrameType, event: str, arg: Any) -> None:
        # For every call while a model is traced, those inside torch included: most end at the first look.
        if event == "call":
            if self._aside is None and id(frame.f_code) not in self._passed:
                self._looked_at(frame)
        elif event == "c_call":
            if self._aside is None and arg.__name__ in TELLING and not self.reads.is_paused():
                self._called_builtin(frame, arg)
        elif self._aside is not None and event == "return" and frame is self._aside:
            self._aside = None

    def _looked_at(self, frame: FrameType) -> None:
        """Take a call for one of the user's code, or pass its code by from now on."""
        code = frame.f_code
        if _is_by_chance(code):
            self._aside = frame
        elif code is SEED_CODE:
            self._seeded(frame)
        elif code is not ENVIRON_CODE and not is_opened(frame.f_globals.get("__name__", "")):
            self._passed[id(code)] = code
        elif not self.reads.is_paused():
            if code.co_name == "<module>":  # imported by the code that runs
                self._spaces.watch(sys.modules.get(frame.f_globals.get("__name__", "")))
            self._called(frame)

    def _seeded(self, frame: FrameType) -> None:
        """A generator of Python's takes its seed: refuse one that takes it from the system."""
        if frame.f_locals.get("a") is None and not self.reads.is_paused() and is_opened(_outer_name(frame)):
            raise Untraceable(
                "it makes a generator of Python's that the system seeds, whose numbers a graph would draw "
                "only once. Draw them by torch, or give them as an input"
            )

    def _called_builtin(self, frame: FrameType, arg: Any) -> None:
        """A function of C's is about to run: refuse clocks, and note what is asked of torch's state."""
        if arg.__name__ == "get":  # of dictionaries, mostly
            if type(arg.__self__) is ContextVar and is_opened(frame.f_globals.get("__name__", "")):
                self.reads.context_variable(arg.__self__)
            return
        if arg in ASKS_AUTOCAST and is_opened(frame.f_globals.get("__name__", "")):
            raise Untraceable(
                f"it asks for autocast by a name of its own for torch.{ASKS_AUTOCAST[arg]}; call it as "
                f"torch.{ASKS_AUTOCAST[arg]}"
            )
        if arg in GETTERS and is_opened(_asking_name(frame)):
            self.reads.torch_state(GETTERS[arg])
        if is_clock(arg):
            name = frame.f_globals.get("__name__", "")
            if is_opened(name) or (arg is os.urandom and is_opened(_outer_name(frame))):
                whose = arg.__module__ or getattr(arg.__self__, "__name__", "")
                raise Untraceable(read_once(arg, f"{whose}.{arg.__name__}"))

    def _called(self, frame: FrameType) -> None:
        code = frame.f_code
        if code is ENVIRON_CODE:
            if is_opened(_outer_name(frame)):
                name = frame.f_locals["key"]
                value = dict(ENVIRONMENT.place).get(name, MISSING)
                self.reads.read_outside(ENVIRONMENT, name, value, f"os.environ[{name!r}]")
            return
        facts = facts_of(code)
        for chain in facts.chains:
            # A class's own `__getattribute__` goes on to that of its base, and is itself seen.
            if chain.attributes[-1:] == ("__getattribute__",) and code.co_name != "__getattribute__":
                whose = ".".join((chain.root, *chain.attributes))
                raise Untraceable(f"it reads attributes by {whose}, where nothing sees it; write getattr")
            if chain.is_global:
                self._read_global(chain, frame.f_globals)
            elif len(chain.attributes) > 0:
                self._read_class(chain, frame)
        for name in facts.assigned:
            if not self._is_running(name, frame):
                raise Untraceable(f"it assigns the free variable {name!r}, which a graph would not")
        if code not in self._entered:
            self._entered[code] = self._taken(frame, facts)
            self._note_method(frame)
        if facts.free or code.co_argcount or code.co_kwonlyargcount:
            for name, value in frame.f_locals.items():
                source = None if is_proxy(value) else source_behind(value)
                if source is not None:
                    self.reads.random_source(f"{name} of {code.co_name}", source)
        if facts.comparisons:
            self._check_identities(frame)

    def _note_method(self, frame: FrameType) -> None:
        """Note of a method in which class it was found, which may get another one in its place."""
        code = frame.f_code
        owner = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
        if owner is None or is_proxy(owner):
            return
        kind = owner if isinstance(owner, type) else type(owner)
        for base in kind.__mro__:
            name = _name_in(base, code) if is_opened(base.__module__) else ""
            if name:
                self.reads.read_outside(base, name, getattr(base, name), f"{base.__name__}.{name}")
                if name == "__get__":  # a descriptor, which classes hold: what it reads is seen
                    self.reads.look_into(owner, f"a {base.__name__}")
                return

    # Globals and classes

    def _read_global(self, chain: Chain, place: dict[str, Any]) -> None:
        if chain.root in STAND_INS and chain.root not in place:
            added = self._replaced.setdefault(id(place), (place, {}))[1]
            place[chain.root] = added[chain.root] = STAND_INS[chain.root]
            return
        value = place.get(chain.root, MISSING)
        if value is MISSING or any(value is each for each in STAND_INS.values()):
            return
        self._read(place, chain.root, value, chain.attributes, chain.is_kind_asked)

    def _read_of_module(self, module: ModuleType, name: str, value: Any, frame: FrameType) -> None:
        """A name that running code takes of a module, by whatever way it came to that."""
        reader = frame.f_globals.get("__name__", "")
        if self._aside is not None or not is_opened(reader) or self.reads.is_paused():
            return
        if name == "__dict__":
            raise Untraceable(_all_at_once(module.__name__))
        if not name.startswith("__") and not is_proxy(value):
            for attributes in taken_after(frame) if isinstance(value, type) else ((),):
                self._read(vars(module), name, value, attributes)

    def _read(
        self,
        place: dict[str, Any],
        name: str,
        value: Any,
        attributes: tuple[str, ...],
        is_kind_asked: bool = False,
    ) -> None:
        """A name in a namespace, and what is taken of it where that is a module or a class."""
        whose = str(place.get("__name__", ""))
        if isinstance(value, type):
            self.reads.hold(self.reads.namespace(place), name, value, f"{whose}.{name}")
            if not is_kind_asked:
                self._read_attributes(value, attributes)
        elif not isinstance(value, ModuleType):
            self.reads.read_outside(self.reads.namespace(place), name, value, f"{whose}.{name}")
            if attributes:
                self._read_outside_attribute(value, attributes[0], f"{whose}.{name}")
        elif attributes and value.__name__.partition(".")[0] == "torch":
            self._read_function_of_torch(value, attributes)
        elif attributes and is_opened(value.__name__):
            inner = vars(value).get(attributes[0], MISSING)
            if inner is not MISSING:
                self._read(vars(value), attributes[0], inner, attributes[1:], is_kind_asked)

    def _read_function_of_torch(self, space: ModuleType, names: Sequence[str]) -> None:
        """A function of torch's, in whose place a program may put another one."""
        value = vars(space).get(names[0])
        if isinstance(value, ModuleType) and len(names) > 1:
            self._read_function_of_torch(value, names[1:])
        elif isinstance(value, (FunctionType, BuiltinFunctionType)) and value.__module__ not in PATCHING:
            place = self.reads.namespace(vars(space))
            self.reads.hold(place, names[0], value, f"{space.__name__}.{names[0]}")

    def _read_outside_attribute(self, value: Any, name: str, path: str) -> None:
        """An attribute of a function, or of what each thread has one of, whose class cannot be watched."""
        if type(value) in UNWATCHED and name in vars(value):
            self.reads.read_outside(value, name, getattr(value, name), f"{path}.{name}")

    def _read_attributes(self, kind: type, names: tuple[str, ...]) -> None:
        """Data and methods among the attributes of a class; all data where nothing tells what is taken."""
        if not names:
            self.reads.read_class(kind)
        for name in names:
            if not kind.__flags__ & HEAP_TYPE or not is_opened(kind.__module__):
                return
            if name == "__dict__":
                raise Untraceable(_all_at_once(kind.__name__))
            if name in BASES:
                self.reads.read_class(kind)
            if name.startswith("__"):
                return
            base = next((each for each in kind.__mro__ if name in vars(each)), kind)
            value = vars(base).get(name, MISSING)
            if not is_opened(base.__module__):  # torch's, which a trace replaces for its time
                return
            if isinstance(value, METHODS):
                value = getattr(kind, name)
            elif (value is MISSING and hasattr(kind, name)) or hasattr(type(value), "__get__"):
                return
            self.reads.read_outside(kind, name, value, f"{kind.__name__}.{name}")
            if not isinstance(value, type):
                return
            kind = value

    def _read_class(self, chain: Chain, frame: FrameType) -> None:
        """`cls.name`, `self.__class__.name` and `type(self).name`, and free variables that are classes."""
        if chain.root not in frame.f_locals:
            return
        value, names = frame.f_locals[chain.root], chain.attributes
        if is_proxy(value):
            return
        if names[0] == "__class__":
            value, names = type(value), names[1:]
        if isinstance(value, type):
            self._read_attributes(value, names)
        elif names:
            self._read_outside_attribute(value, names[0], chain.root)

    # Free variables and default values: of the functions, which are found when the trace is over

    def _taken(self, frame: FrameType, facts: CodeFacts) -> dict[str, tuple[Any, Any]]:
        """The free variables that are nobody's who is running, and containers among the arguments."""
        code, given = frame.f_code, frame.f_locals
        names = [name for name in facts.free if name in given and not self._is_running(name, frame)]
        count = code.co_argcount + code.co_kwonlyargcount
        changeable = [
            name
            for name in code.co_varnames[:count]
            if issubclass(type(given.get(name)), CONTAINERS) and type(given[name]) is not tuple
        ]
        return {name: (given[name], snapshot(given[name])) for name in (*names, *changeable)}

    def _is_running(self, name: str, frame: FrameType) -> bool:
        """Whether a free variable belongs to a call that is under way."""
        outer = frame.f_back
        while outer is not None and outer is not self._start:
            if name in outer.f_code.co_cellvars:
                return True
            outer = outer.f_back
        return False

    def check_unchanged(self, mark: int) -> None:
        """Refuse code that has changed what its free variables hold, since the mark."""
        for code, taken in list(self._entered.items())[mark:]:
            for name, (value, before) in taken.items():
                if name in code.co_freevars and not same(snapshot(value), before):
                    raise Untraceable(f"it changes the free variable {name!r}, which it also reads")

    def settle(self) -> None:
        """Note what the functions entered so far have: their code, free variables and default values."""
        for function in _functions_of(self._entered, self.reads.modules.values()):
            self._read_function(function, self._entered[function.__code__])

    def _read_function(self, function: FunctionType, taken: Mapping[str, tuple[Any, Any]]) -> None:
        name = function.__qualname__
        cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        read = [self._cell(cells[each]) for each in taken if each in cells]
        values = [value for each, (value, _) in taken.items() if each in cells]
        if not all(map(is_, (cell.content for cell in read), values)):
            return  # another function of the same code
        for cell, value in zip(read, values, strict=True):
            self.reads.read_outside(cell, "content", value, f"a free variable of {name}")
        # The code is another one where a notebook or a debugger loads an edited file again.
        self.reads.hold(function, "__code__", function.__code__, f"the code of {name}")
        given = {id(value): before for value, before in taken.values()}
        for which in ("__defaults__", "__kwdefaults__"):
            defaults = getattr(function, which)
            if not defaults:
                continue
            each = [*(defaults.values() if isinstance(defaults, dict) else defaults)]
            if not all(same(snapshot(value), given.get(id(value), snapshot(value))) for value in each):
                raise Untraceable(f"it changes a default value of {name}, which it also reads")
            # A tuple of what never changes is held to its identity, which takes far less time in each call.
            is_fixed = which == "__defaults__" and all(type(value) in PLAIN for value in each)
            hold = self.reads.hold if is_fixed else self.reads.read_outside
            hold(function, which, defaults, f"a default value of {name}")

    def _cell(self, holder: CellType) -> Cell:
        return self._cells.setdefault(id(holder), Cell(holder))

    # Identities

    def _check_identities(self, frame: FrameType) -> None:
        """Before code that compares by `is`: proxies of dtypes and the like become what they stand for."""
        given, tensors = frame.f_locals, dict[int, FakeProxy]()
        if any(isinstance(value, INSTEAD) for value in given.values()) and may_compare(frame, Tensor):
            raise AsksIdentity  # torch.export gives each its own stand-in
        for name, value in [*given.items()]:
            if not is_proxy(value):
                continue
            if is_tensor(value.fake):
                tensors[id(value)] = value
            elif may_compare(frame, type(value.fake)):
                given[name] = value.guarded_value()
        if len(tensors) > 1 and may_compare(frame, Tensor):
            self._distinct([*tensors.values()])

    def compares_tensors(self) -> bool:
        """Whether code that is running may ask whether two tensors are one."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame is not self._start:
            if is_opened(frame.f_globals.get("__name__", "")) and may_compare(frame, Tensor):
                return True
            frame = frame.f_back
        return False


def _name_in(kind: type, code: CodeType) -> str:
    """The name under which a class has a method of this code; "" if it has none."""
    own = vars(kind)
    for name in (code.co_name, *own):
        function = getattr(own.get(name), "__func__", own.get(name))
        if type(function) is FunctionType and function.__code__ is code:
            return name
    return ""


def _is_by_chance(code: CodeType) -> bool:
    """Whether the interpreter calls this at any time, in the middle of other code: the collector's callbacks
    and what goes with an object."""
    return code.co_name == "__del__" or any(code is getattr(each, "__code__", None) for each in gc.callbacks)


def _outer_name(frame: FrameType) -> str:
    """The module of the nearest call that is none of Python's own library."""
    outer: FrameType | None = frame
    while outer is not None:
        name = outer.f_globals.get("__name__", "")
        if name.partition(".")[0] not in LIBRARY or name == "__main__":
            return name
        outer = outer.f_back
    return ""


def _asking_name(frame: FrameType) -> str:
    """The module of the code that asks torch for its state, by functions around those of C's."""
    outer: FrameType | None = frame
    while outer is not None:
        name = outer.f_globals.get("__name__", "")
        if name not in ("torch", "revgraph.tracing.patches") and not name.startswith("torch.backends"):
            return name
        outer = outer.f_back
    return ""


def _functions_of(codes: Collection[CodeType], modules: Iterable[nn.Module]) -> list[FunctionType]:
    """The functions of these codes, of which frames do not tell.

    The collector knows of all but those that `gc.freeze` has put aside, which processes do that are about to
    fork. Those are looked for in the places of functions: from the namespaces and the modules' objects on.
    """
    names = {code.co_name for code in codes}  # of which a hash is known, as that of code is not
    functions = [each for each in gc.get_objects() if type(each) is FunctionType]
    found = [each for each in functions if each.__code__.co_name in names and each.__code__ in codes]
    missing = {*codes}.difference(each.__code__ for each in found)
    if missing and gc.get_freeze_count():
        found += _reachable(missing, [each.__dict__ for each in modules])
    return found


def _reachable(codes: Collection[CodeType], roots: Iterable[Any]) -> Iterator[FunctionType]:
    names = {code.co_filename for code in codes}
    spaces = [vars(each) for each in [*sys.modules.values()] if isinstance(each, ModuleType)]
    pending = [
        each for each in spaces if is_opened(str(each.get("__name__", ""))) and each.get("__file__") in names
    ]
    pending += [vars(sys.modules["__main__"]), *roots]
    seen: set[int] = set()
    while pending:
        held = pending.pop()
        if id(held) in seen or isinstance(held, (ModuleType, Tensor, str)):
            continue
        seen.add(id(held))
        if type(held) is FunctionType:
            if held.__code__ in codes:
                yield held
            pending += [held.__closure__, held.__dict__]  # not its globals, which are another namespace
        elif not isinstance(held, type) or is_opened(held.__module__):
            pending += gc.get_referents(held)


def _all_at_once(name: str) -> str:
    return f"it reads all names of {name} at once, where nothing sees what it takes; write the name itself"
