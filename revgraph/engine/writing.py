"""Writing: the function of a node as straight-line Python, with modules and constants bound to it.

A node's expression is a list of calls over registers; `written` makes of it what is called in every
evaluation: the calls in order, modules called as modules. Registers are let go where the expression says.
`inlining` opens modules besides, where it knows them.

Nothing but names of variables, attributes and keywords that are Python identifiers becomes code. All other
names, and all constants but numbers and strings, are bound as objects.
"""

from __future__ import annotations

import keyword
import linecache
import math
import operator
import re
import textwrap
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING, Any

from torch import nn

from revgraph.expressions import Expression, Register, fill, leaves
from revgraph.program import BijectionLaw, CouplingLaw, Sum

if TYPE_CHECKING:
    from revgraph.engine.executable import PlannedOperation, ReplayStep
    from revgraph.engine.inlining import Inlined

BUILTIN = type(len)
LITERALS = (int, bool, str, type(None), type(Ellipsis))


@dataclass(frozen=True, slots=True)
class Function:
    """A node's function, from its inputs to the tuple of its results.

    `source` is its Python, in which names stand for the objects that are `bound`.
    `modules` are those that it calls, `owners` those of which it reads attributes.
    """

    run: Callable[..., tuple[Any, ...]]
    source: str
    bound: dict[str, Any]
    modules: list[nn.Module]
    owners: list[nn.Module]


def written(expression: Expression, root: nn.Module) -> Function:
    """The function of an expression, with the modules below `root` bound to it."""
    model = root.__dict__.get("_model", root)  # not the root itself, which holds what is made here
    bound: dict[str, Any] = {}
    lines: list[str] = []
    modules: list[nn.Module] = []
    owners: list[nn.Module] = []
    for call in expression.calls:
        kind, target = call.kind, call.target
        if kind == "function":
            head = target.__name__ if type(target) is BUILTIN else ""
            if not head or bound.setdefault(head, target) is not target:
                head = bind(bound, target)
        elif kind == "method":
            head = ""
        else:
            path, _, name = target.rpartition(".") if kind == "attribute" else (target, "", "")
            module: Any = model
            for part in path.split(".") if path else ():
                module = module._modules[part]
            head = f"m{len(bound)}"
            bound[head] = module
            if kind == "attribute":
                owners.append(module)
                lines.append(f"x{call.result} = {attribute(head, name)}")
                continue
            modules.append(module)
        args: list[str] = []
        for arg in call.args:
            args.append(f"x{arg.index}" if type(arg) is Register else argument(bound, arg))
        for key, arg in call.kwargs.items():
            args.append(keyword_argument(bound, key, arg))
        if not head:
            head = attribute(args.pop(0), target)
        lines.append(f"x{call.result} = {head}({', '.join(args)})")
        for index in call.frees:
            lines.append(f"del x{index}")
    names = [*map("x{}".format, range(expression.size))]
    returned = (
        ", ".join([*operator.itemgetter(*expression.outputs, 0)(names)][:-1]) if expression.outputs else ""
    )
    lines.append(f"return ({returned},)" if returned else "return ()")
    source = source_of(bound, ", ".join(names[: expression.inputs]), lines)
    return Function(maker(source)(*bound.values()), source, bound, modules, owners)


def bind(bound: dict[str, Any], thing: Any) -> str:
    """A name for a function or constant."""
    name = getattr(thing, "__name__", "")
    name = name if isinstance(name, str) and name.isidentifier() and name not in ("via", "del") else "c"
    name = name.rstrip("_0123456789") or "c"
    tried, count = name, 0
    while tried in bound and bound[tried] is not thing:
        count += 1
        tried = f"{name}_{count}"
    bound[tried] = thing
    return tried


def keyword_argument(bound: dict[str, Any], key: str, value: Any) -> str:
    """A keyword argument; its name may be any text, and none becomes code."""
    if key.isidentifier() and not keyword.iskeyword(key):
        return f"{key}={argument(bound, value)}"
    return f"**{{{key!r}: {argument(bound, value)}}}"


def attribute(owner: str, name: str) -> str:
    """An attribute of a variable, whatever its name is."""
    if name.isidentifier() and not keyword.iskeyword(name):
        return f"{owner}.{name}"
    return f"getattr({owner}, {name!r})"


def argument(bound: dict[str, Any], tree: Any) -> str:
    """An argument as Python: registers as variables, plain containers and numbers as they are written."""
    kind = type(tree)
    if kind is Register:
        return f"x{tree.index}"
    if kind in LITERALS or (kind is float and math.isfinite(tree)):
        return repr(tree)
    if kind is tuple:
        return f"({''.join([f'{argument(bound, item)}, ' for item in tree]).rstrip()})"
    if kind is list:
        return f"[{', '.join([argument(bound, item) for item in tree])}]"
    if kind is slice:
        return f"slice({', '.join([argument(bound, part) for part in (tree.start, tree.stop, tree.step)])})"
    if kind is dict:
        return f"{{{', '.join([f'{argument(bound, k)}: {argument(bound, v)}' for k, v in tree.items()])}}}"
    registers = [leaf.index for leaf in leaves(tree) if type(leaf) is Register]
    if not registers:
        return bind(bound, tree)
    places = {index: place for place, index in enumerate(registers)}
    given = "".join([f"x{index}, " for index in places])
    return f"{bind(bound, _Filled(tree, tuple(places)))}({given.rstrip()})"


class _Filled:
    """A container of another kind, as a function of the registers in it."""

    def __init__(self, tree: Any, registers: tuple[int, ...]) -> None:
        self.tree = tree
        self.registers = registers

    def __call__(self, *values: Any) -> Any:
        found: list[Any] = [None] * (max(self.registers) + 1)
        for index, value in zip(self.registers, values, strict=True):
            found[index] = value
        return fill(self.tree, found)


def source_of(bound: dict[str, Any], given: str, lines: Sequence[str]) -> str:
    body = "\n        ".join(lines)
    return f"def make({', '.join(bound)}):\n    def function({given}):\n        {body}\n    return function\n"


@lru_cache(maxsize=4096)
def maker(source: str) -> Callable[..., Callable[..., Any]]:
    """What a source defines; alike nodes share one, and tracebacks show its lines."""
    name = f"<revgraph function {zlib.crc32(source.encode()):08x}>"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    scope: dict[str, Any] = {}
    exec(compile(source, name, "exec"), scope)  # the source is written above, from a traced graph's own calls
    return scope["make"]


# To be read


def listing(
    title: str,
    nodes: Sequence[tuple[PlannedOperation, Function | Inlined]],
    replays: Sequence[ReplayStep],
    names: Sequence[str],
    paths: Mapping[int, str],
) -> str:
    """All that runs as Python: the functions of nodes, the forward, and the replays of a whole backward.

    `names` are those of values by number, `paths` those of modules by their identity.
    """
    show = _Listing(names, paths)
    return "\n".join(
        [
            f"# {title}: {len(nodes)} nodes, {len(replays)} replays in the backward",
            *chain.from_iterable(show.function(*each) for each in nodes),
            "",
            "# The forward",
            *(show.forward(operation) for operation, _ in nodes),
            "",
            "# The backward: what is replayed, in the order in which autograd asks for it",
            *map(show.replay, replays),
        ]
    )


class _Listing:
    def __init__(self, names: Sequence[str], paths: Mapping[int, str]) -> None:
        self.names = names
        self.paths = paths

    def function(self, operation: PlannedOperation, function: Function | Inlined) -> list[str]:
        modules = (
            f"#   {name} = {self.paths[id(thing)] or 'the model'}"
            for name, thing in function.bound.items()
            if id(thing) in self.paths
        )
        where = f" ({operation.where})" if operation.where else ""
        return [
            "",
            f"# {' '.join(operation.node.split())}{where}",
            *modules,
            _renamed(function.source, f"run_{_identifier(operation.node)}"),
        ]

    def forward(self, operation: PlannedOperation) -> str:
        result = self._join(operation) if operation.law is not None else self._call(operation)
        stored = self._values(operation.stored)
        note = f", stores {stored}" if stored else ""
        return f"{self._values(operation.makes) or '_'} = {result}  # {operation.decision}{note}"

    def replay(self, step: ReplayStep) -> str:
        operation = step.operation
        if step.action == "invert_wiring":
            result = f"{_identifier(operation.node)}.inverse({self._values(operation.makes)})"
        elif operation.law is None or not step.makes:
            result = self._call(operation)
        else:
            result = self._join(operation, backwards=operation.target in step.makes)
        captures = ", captures" if step.captures else ""
        frees = f", frees {self._values(step.frees)}" if step.frees else ""
        return f"{self._values(step.makes) or '_'} = {result}  # {step.action}{captures}{frees}"

    def _join(self, operation: PlannedOperation, backwards: bool = False) -> str:
        """A coupling's output from its target, or backwards, by its law."""
        assert operation.target is not None
        given = self._values(operation.makes[:1] if backwards else (operation.target,))
        term, law = self._call(operation), operation.law
        if type(law) is Sum:
            factor = "" if law.alpha == 1 else f"{law.alpha} * "
            return f"{given} {'-' if backwards else '+'} {factor}{term}"
        name = _identifier(law.path) if isinstance(law, (BijectionLaw, CouplingLaw)) else type(law).__name__
        return f"{name}.{'uncouple' if backwards else 'couple'}({given}, {term})"

    def _call(self, operation: PlannedOperation) -> str:
        return f"run_{_identifier(operation.node)}({self._values(operation.reads)})"

    def _values(self, numbers: Iterable[int]) -> str:
        return ", ".join([_identifier(self.names[number]) for number in numbers])


def _identifier(name: str) -> str:
    """A name as an identifier of Python's, to be read."""
    found = re.sub(r"\W", "_", name)
    return f"_{found}" if found[:1].isdigit() or keyword.iskeyword(found) else found


def _renamed(source: str, name: str) -> str:
    """A written function alone, under a name of its own."""
    lines = textwrap.dedent("\n".join(source.splitlines()[1:-1])).splitlines()
    return "\n".join([lines[0].replace("function", name, 1), *lines[1:]])
