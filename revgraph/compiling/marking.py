"""Marking: a program as straight-line code whose values, readings and terms pass marker operators.

A joint graph of forward and backward has operators of PyTorch's and no nodes or values of ours. So the code
that is compiled sends every value through `revgraph::mark` where it is made and once more where a node reads
it, and a coupling's term as well. Between the marks of what a node reads and of what it makes lie the
operators of that node alone. The derivative of a mark is `revgraph::mark_gradient`, so that the operators of
a node's backward lie between marks, too. Marks compute nothing, and `partition` takes them out.

The code is one function, written once for a program: nets of the same structure share its code object, and
with it what torch compiles for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from revgraph.couplings import Coupling
from revgraph.engine.contexts import widened
from revgraph.engine.executable import Executable, named_in
from revgraph.engine.writing import maker, source_of
from revgraph.expressions import leaves, map_leaves, module_at
from revgraph.program import Operation, Program, Sum
from revgraph.rearrangements import Owned, Placed, WiringModule
from revgraph.streams import streams_of


def _alike(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_strided(x.size(), x.stride(), dtype=x.dtype, device=x.device)


def _note_mark(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.mark, ctx.owned = inputs[2], len(inputs[1])


def _mark_backward(ctx: Any, gradient: Tensor | None) -> tuple[Any, ...]:
    marked = None if gradient is None else MARK_GRADIENT(gradient, ctx.mark)
    return marked, [None] * ctx.owned, None, None


_library = torch.library.Library("revgraph", "FRAGMENT")
if not hasattr(torch.ops.revgraph, "mark"):  # a module that is imported anew finds them there
    _library.define("mark(Tensor x, Tensor[] owned, int mark, int place) -> Tensor")
    _library.define("mark_gradient(Tensor x, int mark) -> Tensor")
    _library.impl("mark", lambda x, owned, mark, place: x.clone(), "CompositeExplicitAutograd")
    _library.impl("mark_gradient", lambda x, mark: x.clone(), "CompositeExplicitAutograd")
    torch.library.register_fake("revgraph::mark", _alike, lib=_library)
    torch.library.register_fake("revgraph::mark_gradient", _alike, lib=_library)
    torch.library.register_autograd("revgraph::mark", _mark_backward, setup_context=_note_mark, lib=_library)
MARK: Any = torch.ops.revgraph.mark.default
MARK_GRADIENT: Any = torch.ops.revgraph.mark_gradient.default


@dataclass(frozen=True, slots=True)
class Mark:
    """What passes a mark: a `value` where it is made, or where `node` `read`s it, or a leaf of its `term`.

    `alive` marks a result that values which lead to none hang on, so that they are not left out.
    """

    kind: Literal["value", "read", "term", "alive"]
    node: str
    value: str = ""


@dataclass(frozen=True, slots=True)
class Marked:
    """A program as a function to be compiled.

    `run` takes what `inputs` names, values and plain numbers, and returns what `outputs` names. `marks` are
    those in it, by the numbers that stand for them; without any it is the program as it is, for steps that
    nothing is differentiated in. `operations` are those with a node, by its name.
    """

    run: Callable[..., tuple[Any, ...]]
    source: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    marks: tuple[Mark, ...]
    operations: dict[str, Operation]
    functions: dict[str, Callable[..., tuple[Any, ...]]]
    root: nn.Module
    lines: tuple[str, ...]

    def node_in(self, text: str) -> str:
        """The node whose function the code calls at the place that an error's text tells."""
        name = re.escape(self.run.__code__.co_filename)
        told = re.search(rf'File "{name}", line ([0-9]+)', text)
        place = int(told[1]) - 3 if told else -1  # below the heads of two functions
        return self.lines[place] if 0 <= place < len(self.lines) else ""


def marked(executable: Executable, root: nn.Module, key: str, with_marks: bool = True) -> Marked:
    """The program of an executable as one function. Functions of other keys share no compiled code."""
    return _Marking(executable, root, with_marks).written(key)


def owned_by(operation: Operation, root: nn.Module) -> list[str]:
    """The paths of the parameters and buffers that undo an operation, besides its values."""
    if operation.law is not None:
        modules = [each for owner in operation.law.modules(root) for each in _without_functions(owner)]
    elif isinstance(operation.rearrangement, WiringModule):
        modules = [*module_at(root, operation.rearrangement.path).modules()]
    elif isinstance(operation.rearrangement, Placed):
        return [leaf.path for leaf in leaves(operation.rearrangement.keys) if type(leaf) is Owned]
    else:
        return []
    found = {id(module) for module in modules}
    return [
        f"{path}.{name}" if path else name
        for path, module in root.named_modules()
        if id(module) in found
        for table in (module._parameters, module._buffers)
        for name, each in table.items()
        if each is not None
    ]


def _without_functions(module: nn.Module) -> list[nn.Module]:
    """The modules in one; of a coupling without its functions, which have run when it joins their term."""
    if not isinstance(module, Coupling):
        return [*module.modules()]
    children = [child for name, child in module.named_children() if name not in module.names]
    return [module, *(each for child in children for each in child.modules())]


class _Marking:
    def __init__(self, executable: Executable, root: nn.Module, with_marks: bool) -> None:
        self.program: Program = executable.program
        self.executable = executable
        self.root = root
        self.with_marks = with_marks
        self.values = self.program.graph.value
        self.marks: list[Mark] = []
        self.bound: dict[str, Any] = {"mark": MARK, "mark_leaves": mark_leaves, "widened": widened}
        self.variables: dict[str, str] = {}
        self.begins = set(streams_of(self.program).beginnings)

    def written(self, key: str) -> Marked:
        program = self.program
        inputs = tuple(dict.fromkeys((*program.graph.inputs, *program.numbers)))
        given = [self.variable(name) for name in inputs]
        lines = [f"# {key}"]
        for name in program.graph.inputs:
            lines += self.made(name, self.variable(name))
        nodes = [""] * len(lines)
        for operation, planned in zip(program.operations, self.executable.operations, strict=True):
            lines += self.operation(operation, planned.function.run)
            nodes += [operation.node] * (len(lines) - len(nodes))
        outputs = tuple(named_in(program.results))
        lines += self.kept_alive(outputs)
        lines.append(f"return ({''.join(f'{self.variable(name)}, ' for name in outputs)})")
        source = source_of(self.bound, ", ".join(given), lines)
        operations = {each.node: each for each in program.operations if each.node}
        functions = {each.node: each.function.run for each in self.executable.operations if each.node}
        run = maker(source)(*self.bound.values())
        return Marked(
            run, source, inputs, outputs, tuple(self.marks), operations, functions, self.root, tuple(nodes)
        )

    def kept_alive(self, outputs: Sequence[str]) -> Iterator[str]:
        """Hang the stored values that lead to no result on a result: the backward may begin from them."""
        graph, live = self.program.graph, {*outputs}
        for node in reversed(graph.nodes):
            if not live.isdisjoint(node.outputs):
                live.update(node.inputs)
        dead = [f"{self.variable(name)}.detach()" for name in self.executable.plan.stored if name not in live]
        results = [name for name in outputs if name in self.values]
        if dead and results and self.with_marks:
            variable = self.variable(results[0])
            yield f"{variable} = mark({variable}, [{', '.join(dead)}], {self.mark('alive', '')}, 0)"

    def operation(self, operation: Operation, function: Callable[..., Any]) -> Iterator[str]:
        node = operation.node
        run = self.bind("run", function)
        given = ", ".join([self.read(node, name) for name in operation.reads])
        results = [f"r{len(self.bound)}_{place}" for place in range(len(operation.expression.outputs))]
        yield f"{''.join(f'{each}, ' for each in results)}= {run}({given})" if results else f"{run}({given})"
        owned = self.tensors(owned_by(operation, self.root)) if node and self.with_marks else "[]"
        if operation.law is not None and operation.target is not None:
            term = results[0] if results else "None"
            if self.with_marks and results:
                yield f"{term} = mark_leaves({term}, {self.mark('term', node)}, [0])"
            x = self.read(node, operation.target)
            if isinstance(operation.law, Sum) and operation.law.alpha == 1:
                joined = f"{x} + {term}"
            else:
                joined = (
                    f"{self.bind('law', operation.law)}.couple({self.bind('root', self.root)}, {x}, {term})"
                )
            results[:1] = [joined]
        for name, result in zip(operation.makes, results, strict=True):
            yield from self.made(name, result, owned)
            owned = "[]"

    def made(self, name: str, result: str, owned: str = "[]") -> Iterator[str]:
        variable = self.variable(name)
        if name in self.begins:
            result = f"widened({result})"
        if name in self.values and self.with_marks:
            result = f"mark({result}, {owned}, {self.mark('value', self.maker(name), name)}, 0)"
        if result != variable:
            yield f"{variable} = {result}"

    def read(self, node: str, name: str) -> str:
        variable = self.variable(name)
        if not node or name not in self.values or not self.with_marks:
            return variable
        return f"mark({variable}, [], {self.mark('read', node, name)}, 0)"

    def maker(self, name: str) -> str:
        return self.program.graph.producer[name].name

    def mark(self, kind: Any, node: str, value: str = "") -> int:
        self.marks.append(Mark(kind, node, value))
        return len(self.marks) - 1

    def tensors(self, paths: Sequence[str]) -> str:
        names: list[str] = []
        for path in paths:
            owner, _, name = path.rpartition(".")
            names.append(f"{self.bind('module', module_at(self.root, owner))}.{name}")
        return f"[{', '.join(names)}]"

    def variable(self, name: str) -> str:
        return self.variables.setdefault(name, f"v{len(self.variables)}")

    def bind(self, kind: str, thing: Any) -> str:
        for name, each in self.bound.items():
            if each is thing and name.startswith(kind):
                return name
        name = f"{kind}{len(self.bound)}"
        self.bound[name] = thing
        return name


def mark_leaves(tree: Any, mark: int, count: list[int]) -> Any:
    """The tree with its tensors marked, each with its place among them."""
    if isinstance(tree, Tensor):
        count[0] += 1
        return MARK(tree, [], mark, count[0] - 1)
    if isinstance(tree, tuple):
        return tuple([mark_leaves(each, mark, count) for each in tree])
    if isinstance(tree, list):
        return [mark_leaves(each, mark, count) for each in tree]
    if isinstance(tree, dict):
        return {key: mark_leaves(each, mark, count) for key, each in tree.items()}
    return tree


def filled(tree: Any, tensors: Sequence[Any]) -> Any:
    """The tree with its tensors, in the order of their marks, replaced by these."""
    given = iter(tensors)
    return map_leaves(lambda leaf: next(given) if isinstance(leaf, Tensor) else leaf, tree)
