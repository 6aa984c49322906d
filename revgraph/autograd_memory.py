"""What autograd holds from forward to backward, by module and operator: `rg.saved`.

Bytes are those of storages, each counted once, with the first operator that saved it in the order of the
forward. Parameters, buffers and the caller's inputs would be there without autograd, and are told apart.

How modules are found. The graph does not know them, and a call leaves no trace once it has returned. There
are two ways, by what the caller gives:

- A function that runs the forward: hooks around the calls of modules note autograd's sequence number, by
  which each node belongs to the innermost call in which it was made. This is exact, for a forward that runs
  in one thread (each counts by itself) and is not compiled.
- Outputs and a model: a node that reads a parameter belongs to the module that owns it. Any other belongs to
  the deepest module around its nearest neighbours of that kind, towards the inputs and towards the outputs:
  what lies between `layers.3.up` and `layers.3.down` is listed as `layers.3`. This is an inference, but needs
  no second forward. A parameter with several owners counts as the first one's.

Hooks that stay on the model would make the second way exact too, but every forward would pay for them. The
stack traces of anomaly mode cost more still, and name lines of code instead of modules.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as calls
from torch.utils._python_dispatch import _disable_current_modes, is_traceable_wrapper_subclass

from revgraph.autograd_graph import (
    Content,
    Hook,
    Node,
    behind,
    content_of,
    graph_of,
    leaf_of,
    operator_of,
    tensors_in,
)
from revgraph.errors import GraphError
from revgraph.planning import Plan
from revgraph.saved_table import Kind, SavedRow, SavedTable
from revgraph.storages import PARTS

Marks = Sequence[tuple[int, str]]
# What these make of a parameter is still that parameter to whoever reads it.
SAME = (
    *("t", "transpose", "permute", "view", "reshape_alias", "unsafe_view", "expand", "unsqueeze", "squeeze"),
    *("slice", "select", "split", "split_with_sizes", "unbind", "alias", "clone", "to_copy"),
)


def saved(outputs: Any, model: nn.Module | None = None, inputs: Any = None) -> SavedTable:
    """What autograd holds for these outputs from forward to backward, by module and operator, for any model.

    Ask before the backward, which frees. Nothing is replayed or differentiated. Tensors on `meta`, or fake
    ones, count with the bytes that they would have.

    Args:
        outputs: a loss, or tensors in tuples, lists, dictionaries or dataclasses; or a function without
            arguments that runs the forward and returns them.
        model: whose modules to name. With a function they are found by their calls, otherwise by the
            parameters that operators read: one that reads none is listed under the deepest module around
            those before and after it that do. A reversible net brings its plan's `held_bytes` along.
        inputs: the caller's tensors, which are not counted as held. Those that require a gradient are known.

    Raises:
        GraphError: none of the outputs has a `grad_fn`, so autograd holds nothing for them.

    Example:
        >>> import torch, revgraph as rg
        >>> from torch import nn
        >>> layers = (nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8)) for _ in range(12))
        >>> model, x = nn.Sequential(*layers), torch.randn(16, 8)
        >>> print(rg.saved(lambda: model(x).sum(), model, inputs=x))
        53.5 KiB held in 36 tensors; parameters 25.9 KiB, inputs 512 B
        <BLANKLINE>
               bytes   %  module  operator(saved)  form
        2.0 KiB x 12  45  0-11.1  gelu(self)       16x32 f32
        2.0 KiB x 12  45  0-11.2  addmm(mat1)      16x32 f32
          512 B x 11  10  1-11.0  addmm(mat1)      16x8 f32
             4 B x 1   0          output           scalar f32
    """
    if isinstance(outputs, nn.Module):
        raise GraphError(
            f"rg.saved looks at what a forward returned, not at a module ({type(outputs).__name__}). Give "
            "the loss, or a function that computes it: rg.saved(lambda: loss(model(x)), model)."
        )
    marks: Marks | None = None
    if callable(outputs):
        outputs, marks = _run(outputs, model)
    with torch.no_grad(), _disable_current_modes(), torch._C.DisableTorchFunctionSubclass():
        given = list(tensors_in(outputs))
        nodes = graph_of(tensor.grad_fn for tensor in given if tensor.grad_fn is not None)
        if not nodes:
            raise GraphError(
                "autograd holds nothing for these outputs: none of them has a grad_fn. Run the forward with "
                "gradients on, on parameters or inputs that require one, and give the loss before detach()."
            )
        contents = {node: content_of(node) for node in nodes}
        homes = _homes(nodes, model, inputs)
        paths = _paths_by_parameters(contents, homes) if marks is None else _paths_by_calls(nodes, marks)
        counting = _Counting(homes, contents)
        counting.add_graph(contents, paths)
        for tensor in given:
            counting.add(tensor, SavedRow("", "output", "", "output"))
    planned = counting.planned
    if planned is None and isinstance(plan := getattr(model, "plan", None), Plan):
        planned = plan.held_bytes
    return SavedTable(
        counting.rows(),
        planned,
        sum(content.is_freed for content in contents.values()),
        Counter(operator_of(node) for node, content in contents.items() if content.is_unseen),
        "" if model is None else "parameters" if marks is None else "calls",
    )


def _run(function: Callable[[], Any], model: nn.Module | None) -> tuple[Any, Marks]:
    """What the function returns, and which module runs from which of autograd's sequence numbers on.

    The hooks are those on every module's call, so that the model's own tables stay as they are.
    """
    number: Callable[[], int] = torch._C._autograd._get_sequence_nr  # pyright: ignore[reportAttributeAccessIssue]
    paths = {id(module): path for path, module in model.named_modules()} if model is not None else {}
    running, marks = [""], [(number(), "")]

    def enter(module: nn.Module, _args: Any) -> None:
        running.append(paths.get(id(module), running[-1]))
        marks.append((number(), running[-1]))

    def leave(_module: nn.Module, _args: Any, _result: Any) -> None:
        running.pop()
        marks.append((number(), running[-1]))

    handles = [
        calls.register_module_forward_pre_hook(enter),
        calls.register_module_forward_hook(leave, always_call=True),
    ]
    try:
        return function(), marks
    finally:
        for handle in handles:
            handle.remove()


def _paths_by_calls(nodes: Iterable[Node], marks: Marks) -> dict[Node, str]:
    """The module in whose call each node was made."""
    starts = [start for start, _ in marks]
    places = {node: bisect_right(starts, node._sequence_nr()) - 1 for node in nodes}
    return {node: marks[place][1] if place >= 0 else "" for node, place in places.items()}


def _paths_by_parameters(contents: Mapping[Node, Content], homes: Mapping[int, _Home]) -> dict[Node, str]:
    """The module whose parameters a node reads, or the deepest one around those before and after it."""
    own: dict[Node, str] = {}
    same: set[Node] = set()  # nodes whose result is still a parameter
    before: dict[Node, str] = {}
    after: dict[Node, str] = {}
    sources = {node: [each for each, _ in node.next_functions if each is not None] for node in contents}
    for node, content in contents.items():
        read = [tensor for saved in content.saved for tensor in saved.tensors]
        read += [leaf for source in sources[node] if (leaf := leaf_of(source)) is not None]
        owners = [homes.get(key) for tensor in read for key, _ in _storages(tensor)]
        at = [home.path for home in owners if home is not None and home.path is not None]
        at += [own[source] for source in sources[node] if source in same]
        if at:
            own[node] = _around(at)
            if len(sources[node]) == 1 and operator_of(node) in SAME:
                same.add(node)
        reached = [own.get(source, before.get(source)) for source in sources[node] if source not in same]
        if known := [path for path in reached if path is not None]:
            before[node] = _around(known)
    for node in reversed(contents):
        reader = own.get(node, after.get(node))
        if reader is not None:
            for source in sources[node]:
                after[source] = _around([reader, after.get(source, reader)])
    between = {node: _around([path, after[node]]) for node, path in before.items() if node in after}
    return {node: own.get(node, between.get(node, "")) for node in contents}


def _around(paths: Iterable[str]) -> str:
    """The deepest module around some modules."""
    levels = zip(*(path.split(".") for path in paths), strict=False)
    return ".".join(names[0] for names in takewhile(lambda names: len(set(names)) == 1, levels))


@dataclass(frozen=True, slots=True)
class _Home:
    """What a storage is that would be there without autograd; `path` is its module, None if not known."""

    kind: Kind
    path: str | None = None
    name: str = ""


def _homes(nodes: Iterable[Node], model: nn.Module | None, inputs: Any) -> dict[int, _Home]:
    """The storages of parameters, buffers and inputs, by their keys."""
    homes: dict[int, _Home] = {}

    def add(tensor: Tensor | None, home: _Home) -> None:
        if tensor is not None:
            for key, _ in _storages(tensor):
                homes.setdefault(key, home)

    for path, module in model.named_modules() if model is not None else ():
        for name, parameter in module._parameters.items():
            add(parameter, _Home("parameter", path, name))
        for name, buffer in module._buffers.items():
            add(buffer, _Home("buffer", path, name))
    for tensor in tensors_in(inputs):
        add(tensor, _Home("input"))
    for node in nodes:
        if (leaf := leaf_of(node)) is not None:
            add(leaf, _Home("parameter" if isinstance(leaf, nn.Parameter) else "input"))
    return homes


class _Counting:
    """Rows for storages, each with the first operator that holds it."""

    def __init__(self, homes: Mapping[int, _Home], nodes: Iterable[Node]) -> None:
        self.planned: int | None = None
        self._homes = homes
        self._seen = set(nodes)
        self._known: dict[int, Any] = {}
        self._rebuilders = {"revgraph", "torch.utils.checkpoint"}
        self._rows: list[SavedRow] = []
        self._shares: list[dict[str, None]] = []
        self._row_of: dict[int, int] = {}

    def rows(self) -> tuple[SavedRow, ...]:
        return tuple(
            replace(row, kind="rebuilt" if row.packed_by in self._rebuilders else "packed")
            if row.kind == "packed"
            else replace(row, shares=tuple(shares))
            for row, shares in zip(self._rows, self._shares, strict=True)
        )

    def add_graph(self, contents: Mapping[Node, Content], paths: Mapping[Node, str]) -> None:
        """All that the nodes hold, in their order; what is behind a hook with the first it packed for."""
        packed: dict[tuple[int, ...], list[tuple[Any, str]]] = {}
        for node, content in contents.items():
            for saved in content.saved:
                if saved.hook is not None and not saved.tensors:
                    packed.setdefault(saved.hook.key, []).append((saved.packed, paths[node]))
        for node, content in contents.items():
            for saved in content.saved:
                hook = saved.hook
                row = SavedRow(
                    paths[node], operator_of(node), saved.field, "activation", packed_by=_packer(hook)
                )
                for tensor in saved.tensors:
                    self.add(tensor, row)
                if hook is None or saved.tensors:
                    continue
                if (group := packed.pop(hook.key, None)) is not None:
                    objects, around = zip(*group, strict=True)
                    self._add_hook(hook, objects, _around(around))
                self._append(replace(row, kind="packed"))
            if (leaf := leaf_of(node)) is not None:
                self.add(leaf, SavedRow("", "input", "", "input"))

    def add(self, tensor: Tensor, row: SavedRow) -> None:
        """Count a tensor's storages, as far as they are new, in a row like this."""
        parts = _storages(tensor)
        new = {key: size for key, size in parts if key not in self._row_of and size}
        if not new:
            if row.kind in ("activation", "stored"):
                for key, _ in parts:
                    self._share(key, f"{row.path} {row.label}".strip())
            return
        self._row_of.update(dict.fromkeys(new, len(self._rows)))
        home = self._homes.get(next(iter(new)))
        if home is None and isinstance(tensor if tensor._base is None else tensor._base, nn.Parameter):
            home = _Home("parameter")  # a frozen one, which no node of the graph stands for
        if home is not None:
            row = SavedRow(home.path or "", home.kind, home.name, home.kind)
        self._append(
            replace(
                row,
                nbytes=sum(new.values()),
                shape=tuple(size if isinstance(size, int) else -1 for size in tensor.shape),
                dtype=str(tensor.dtype).removeprefix("torch."),
                device=str(tensor.device),
                is_part=len(parts) == 1 and parts[0][1] != tensor.numel() * tensor.element_size(),
            )
        )

    def _add_hook(self, hook: Hook, packed: Iterable[Any], path: str) -> None:
        """Count what a hook holds, as far as it is not known already."""
        packer = _packer(hook)
        for each in behind(hook, packed, self._seen, self._known):
            if isinstance(each, Tensor):
                self.add(each, SavedRow(path, "", "", "stored", packed_by=packer))
                continue
            self._rebuilders.add(packer)
            plan = getattr(each, "plan", None)
            given = plan.graph.inputs if isinstance(plan, Plan) else ()
            if isinstance(plan, Plan):
                self.planned = (self.planned or 0) + plan.held_bytes
            for name, tensor in each.held_for_backward():
                kind: Kind = "input" if name in given else "stored"
                self.add(tensor, SavedRow(name, kind, "", kind, packed_by=packer))

    def _append(self, row: SavedRow) -> None:
        self._rows.append(row)
        self._shares.append({})

    def _share(self, key: int, label: str) -> None:
        index = self._row_of.get(key)
        if index is not None:
            self._shares[index][label] = None


def _packer(hook: Hook | None) -> str:
    module = "" if hook is None else hook.module
    return "revgraph" if module.split(".")[0] == "revgraph" else module


def _storages(tensor: Tensor) -> list[tuple[int, int]]:
    """What identifies each storage of a tensor, and its bytes; several for sparse tensors and wrappers."""
    found: list[tuple[int, int]] = []
    for each in _plain_parts(tensor):
        try:
            storage = each.untyped_storage()
            found.append((storage._cdata, storage.nbytes()))
        except (NotImplementedError, RuntimeError, ValueError):  # opaque: mkldnn, uninitialized, and the like
            found.append((each._cdata, each.numel() * each.element_size()))
    return found


def _plain_parts(tensor: Tensor) -> Iterator[Tensor]:
    if is_traceable_wrapper_subclass(tensor):
        names, _ = tensor.__tensor_flatten__()
        inner = [getattr(tensor, name, None) for name in names]
    else:
        inner = [getattr(tensor, name)() for name in PARTS.get(tensor.layout, ())]
    if not inner:
        yield tensor
    for each in inner:
        if isinstance(each, Tensor):
            yield from _plain_parts(each)
