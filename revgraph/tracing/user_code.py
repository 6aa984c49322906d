"""The user's code: what a code object tells of its function before it runs, and which line is running.

A graph knows only what traced values went through. What a function takes from elsewhere (globals, free
variables, attributes of classes) stands in its instructions, and so does what it compares by `is`.
"""

from __future__ import annotations

import builtins
import dis
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from types import CodeType, FrameType, ModuleType
from typing import Any

import torch
from torch.fx import Proxy

ISINSTANCE = builtins.isinstance  # a trace puts another one in its place
SKIPPED = frozenset(("CACHE", "EXTENDED_ARG", "NOP", "PRECALL", "PUSH_NULL", "COPY_FREE_VARS", "RESUME"))
ATTRIBUTES = frozenset(("LOAD_ATTR", "LOAD_METHOD"))
GLOBALS = frozenset(("LOAD_GLOBAL", "LOAD_NAME"))
FREE = frozenset(("LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_DEREF"))
ASKING = frozenset(("getattr", "hasattr"))
KINDS_ASKED = frozenset(("isinstance", "issubclass"))
CALLS = frozenset(("CALL", "CALL_FUNCTION"))
COPIES = frozenset(("COPY", "DUP_TOP"))
# What torch needs runs in its own functions, which `torch.export` leaves in sight.
NEEDED = {
    "typing_extensions",
    "filelock",
    "fsspec",
    "jinja2",
    "markupsafe",
    "mpmath",
    "networkx",
    "opt_einsum",
}
LIBRARY = sys.stdlib_module_names
NOT_OPENED = LIBRARY | NEEDED | {"torch", "revgraph", "numpy", "optree", "sympy", "yaml"}
MOST_NAMES = 4  # that stand for one another, one after another
# What `is` finds equal of a tensor's metadata; an operand of another kind is compared with none of it.
IDENTICAL = (bool, torch.dtype, torch.layout, torch.memory_format)


@dataclass(frozen=True, slots=True)
class Chain:
    """Something that is loaded, with the attributes taken of it: `Config.depth.first`.

    Of what `isinstance` compares a kind with nothing more is taken.
    """

    root: str
    attributes: tuple[str, ...]
    is_global: bool
    is_constant: bool = False
    constant: Any = None
    is_kind_asked: bool = False


@dataclass(frozen=True, slots=True)
class CodeFacts:
    """What a function reads by the names of globals and of its variables, and its comparisons by `is`.

    Of its free variables those are `assigned` that it gives values to. An operand that is more than a `Chain`
    is None. Comparisons with None are not among them.
    """

    chains: tuple[Chain, ...]
    free: tuple[str, ...]
    comparisons: tuple[tuple[Chain | None, Chain | None], ...]
    assigned: tuple[str, ...] = ()


def may_compare(frame: FrameType, kind: type) -> bool:
    """Whether running code may compare a thing of this kind by `is`."""
    comparisons = facts_of(frame.f_code).comparisons
    return any(all(_may_be(each, frame, kind) for each in pair) for pair in comparisons)


def _may_be(chain: Chain | None, frame: FrameType, kind: type) -> bool:
    """Whether an operand may be of a kind: of constants, globals and free variables it is known."""
    if chain is None:
        return True
    if chain.is_constant:
        return type(chain.constant) is kind
    names = frame.f_globals if chain.is_global else frame.f_locals
    is_fixed = chain.is_global or chain.root in frame.f_code.co_freevars
    if not is_fixed or chain.root not in names:
        return True
    value = names[chain.root]
    for name in chain.attributes:
        if not isinstance(value, ModuleType) or not hasattr(value, name):
            return True
        value = getattr(value, name)
    return issubclass(type(value), (kind, Proxy))


@lru_cache(maxsize=4096)
def facts_of(code: CodeType) -> CodeFacts:
    """The facts of a code object."""
    instructions = _instructions(code)
    chains: list[Chain] = []
    ends: dict[int, tuple[int, Chain]] = {}
    comparisons: list[tuple[Chain | None, Chain | None]] = []
    place = 0
    while place < len(instructions):
        start, name = place, instructions[place].opname
        if chain := _chain(instructions, place):
            place += 1 + len(chain.attributes)
            asks = _asks_for_kind(instructions, start, place, ends)
            chains += (
                [replace(chain, is_kind_asked=True)] if asks else _asked(chain, instructions, start, place)
            )
            ends[place] = start, chain
            continue
        if name == "IS_OP":
            begins, right = ends.get(place, (-1, None))
            _, left = ends.get(begins, (-1, None))
            pair = left, right
            if not any(each is not None and each.is_constant and each.constant is None for each in pair):
                comparisons.append(pair)
        place += 1
    chains += _types(instructions)
    chains += _assigned(instructions, ends)
    chains += _of_other_names(chains, _other_names(instructions, ends))
    found = tuple(dict.fromkeys(each for each in chains if not each.is_constant))
    free = tuple(name for name in code.co_freevars if name != "__class__")
    stored = {each.argval for each in instructions if each.opname == "STORE_DEREF"}
    return CodeFacts(found, free, tuple(comparisons), tuple(name for name in free if name in stored))


@lru_cache(maxsize=256)
def _instructions(code: CodeType) -> Sequence[dis.Instruction]:
    """The instructions that do something; those for two variables at once (since Python 3.13) as two."""
    found: list[dis.Instruction] = []
    for each in dis.get_instructions(code):
        if isinstance(each.argval, tuple) and "_FAST_" in each.opname:
            ways = each.opname.replace("_FAST", "").split("_")
            pairs = zip(ways, each.argval, strict=False)
            found += [each._replace(opname=f"{way}_FAST", argval=name) for way, name in pairs]
        elif each.opname not in SKIPPED:
            found.append(each)
    return found


def _chain(instructions: Sequence[dis.Instruction], place: int) -> Chain | None:
    """What is loaded from here on, with its attributes."""
    first = instructions[place]
    if first.opname == "LOAD_CONST":
        return Chain("", (), False, True, _comparable(first.argval))
    by_name = first.opname in GLOBALS or first.opname in FREE or first.opname.startswith("LOAD_FAST")
    if not by_name or not isinstance(first.argval, str):
        return None
    names: list[str] = []
    for each in instructions[place + 1 :]:
        if each.opname not in ATTRIBUTES:
            break
        names.append(each.argval)
    return Chain(first.argval, tuple(names), first.opname in GLOBALS)


def _asked(chain: Chain, instructions: Sequence[dis.Instruction], start: int, end: int) -> list[Chain]:
    """The chain, with the attribute that `getattr`, `hasattr` or `vars` is to take of it.

    Where the name may be but the beginning of one that is put together, or where there is a default, the bare
    chain is among them.
    """
    asking = [each for each in instructions[max(start - 1, 0) : start] if each.opname in GLOBALS]
    if asking and asking[0].argval == "vars":
        return [replace(chain, attributes=(*chain.attributes, "__dict__"))]
    named = [each.argval for each in instructions[end : end + 1] if each.opname == "LOAD_CONST"]
    if not asking or asking[0].argval not in ASKING or not named or not isinstance(named[0], str):
        return [chain]
    found = replace(chain, attributes=(*chain.attributes, named[0]))
    is_all = any(each.opname in CALLS and each.arg == 2 for each in instructions[end + 1 : end + 2])
    return [found] if is_all else [found, chain]


def _assigned(instructions: Sequence[dis.Instruction], ends: dict[int, tuple[int, Chain]]) -> list[Chain]:
    """What the code assigns, as if it read it: `Config.depth = 2`, `Config.depth += 1`."""
    found: list[Chain] = []
    for end, (_, chain) in ends.items():
        stored = [each for each in instructions[end : end + 2] if each.opname not in COPIES]
        if chain.is_constant or not stored:
            continue
        is_copied = instructions[end].opname in COPIES
        if stored[0].opname == "STORE_ATTR" or (is_copied and stored[0].opname in ATTRIBUTES):
            found.append(replace(chain, attributes=(*chain.attributes, stored[0].argval)))
    return found


def _asks_for_kind(
    instructions: Sequence[dis.Instruction], start: int, end: int, ends: dict[int, tuple[int, Chain]]
) -> bool:
    """Whether a chain is the second operand of `isinstance(x, Kind)`, where x is a chain, too."""
    called = instructions[end : end + 1]
    begins, _ = ends.get(start, (0, None))
    asking = instructions[begins - 1 : begins]
    return (
        bool(called and asking)
        and called[0].opname in CALLS
        and called[0].arg == 2
        and asking[0].opname in GLOBALS
        and asking[0].argval in KINDS_ASKED
    )


def _comparable(constant: Any) -> Any:
    """A constant as far as `is` matters; others would make facts unhashable."""
    return constant if constant is None or isinstance(constant, IDENTICAL) else ...


def _other_names(
    instructions: Sequence[dis.Instruction], ends: dict[int, tuple[int, Chain]]
) -> list[tuple[str, Chain]]:
    """Variables to which the code gives what a chain stands for: `kind = Config`, `kind = type(self)`."""
    found: list[tuple[str, Chain]] = []
    standing: list[Chain] = []  # what lies on top of the stack, as far as it is known
    for place, each in enumerate(instructions):
        if place in ends and not ends[place][1].is_constant:
            standing = [ends[place][1]]
        asked = _types(instructions[max(place - 3, 0) : place + 1])
        standing = asked or standing
        if each.opname.startswith("STORE_FAST"):
            found += [(each.argval, chain) for chain in standing]
        elif each.opname not in COPIES:
            standing = []
    return found


def _of_other_names(chains: list[Chain], names: list[tuple[str, Chain]]) -> list[Chain]:
    """What is taken by the other names, as it would be taken of what they stand for."""
    found: list[Chain] = []
    pending = list(chains)
    for _ in range(MOST_NAMES):
        pending = [
            replace(stands_for, attributes=(*stands_for.attributes, *each.attributes))
            for name, stands_for in names
            for each in pending
            if each.root == name and not each.is_global and not each.is_constant and each.attributes
        ]
        found += pending
    return found


def taken_after(frame: FrameType) -> list[tuple[str, ...]]:
    """The attributes that running code takes of what it gets now, there and by a variable that it sets."""
    instructions = _instructions(frame.f_code)
    place = next((at for at, each in enumerate(instructions) if each.offset == frame.f_lasti), None)
    if place is None:
        return [()]
    names: list[str] = []
    for each in instructions[place + 1 :]:
        if each.opname in ATTRIBUTES:
            names.append(each.argval)
        elif each.opname.startswith("STORE_FAST") and each.argval is not None:
            taken = [chain for chain in facts_of(frame.f_code).chains if not chain.is_global]
            later = [chain.attributes for chain in taken if chain.root == each.argval]
            return [tuple(names), *((*names, *attributes) for attributes in later)]
        else:
            break
    return [tuple(names)]


def _types(instructions: Sequence[dis.Instruction]) -> list[Chain]:
    """What is taken of `type(x)`, as of `x.__class__`."""
    found: list[Chain] = []
    for place, each in enumerate(instructions[:-3]):
        loaded, called = instructions[place + 1], instructions[place + 2]
        if each.opname not in GLOBALS or each.argval != "type" or called.opname not in CALLS:
            continue
        if called.arg == 1 and loaded.opname.startswith("LOAD_FAST") and isinstance(loaded.argval, str):
            names = tuple(
                other.argval for other in instructions[place + 3 : place + 4] if other.opname in ATTRIBUTES
            )
            found.append(Chain(loaded.argval, ("__class__", *names), False))
    return found


def caller() -> str:
    """The line of the user's code that is running, as "file.py:12"; for a spec's layer, the spec's line."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name == "revgraph.specs.networks" and "step" in frame.f_locals:
            return frame.f_locals["step"].where
        if is_users(name):
            return _place(frame.f_code.co_filename, frame.f_lineno)
        frame = frame.f_back
    return ""


def place_of(error: BaseException) -> str:
    """The last line of the user's code that an error came through, as " at file.py:12"."""
    place = ""
    trace = error.__traceback__
    while trace is not None:
        if is_users(trace.tb_frame.f_globals.get("__name__", "")):
            place = " at " + _place(trace.tb_frame.f_code.co_filename, trace.tb_lineno)
        trace = trace.tb_next
    return place


class OwnCode:
    """A block of the tracer's own code: its calls are not watched, and `isinstance` is Python's own.

    Not a generator, for it is entered at every operation of a trace.
    """

    __slots__ = ("asked", "watch")

    def __enter__(self) -> None:
        self.asked, self.watch = builtins.isinstance, sys.getprofile()
        builtins.isinstance = ISINSTANCE
        if callable(self.watch):
            sys.setprofile(None)

    def __exit__(self, *_: object) -> None:
        if callable(self.watch):
            sys.setprofile(self.watch)
        builtins.isinstance = self.asked


def is_opened(name: str) -> bool:
    """Whether a module's code is a user's, and not of Python's own library."""
    return is_users(name) and name.partition(".")[0] not in NOT_OPENED


def is_users(module: str) -> bool:
    return not module.startswith(
        (
            "torch.",
            "revgraph.tracing",
            "revgraph.loading",
            "revgraph.engine",
            "revgraph.isolation",
            "revgraph.expressions",
            "contextlib",
        )
    )


def _place(file: str, line: int) -> str:
    name = file.replace("\\", "/").rsplit("/", 1)[-1]
    return f"{name}:{line}"
