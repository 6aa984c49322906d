"""Inlining: a node's function with its layers opened, for the lean path.

`inlined` takes expressions whose every call is known here to be a plain function of its inputs and
parameters: torch's own layers, as long as nothing is hooked onto them. Layers are opened down to torch's
functions, which spares the module calls and the look-ups of parameters; those come as arguments, so that a
replay computes with the very parameters of its forward. Such a function draws no random numbers, keeps no
state besides BatchNorm's statistics, and every tensor that it saves stays asked for. That is what the lean
path rests on.

What a module call would hold to its end is held to its end here, too, so that the inlined function has the
memory profile of the calls as they stand.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from revgraph.blocks.ends import Stem
from revgraph.blocks.entries import Entry
from revgraph.blocks.shortcuts import PoolAndPad
from revgraph.blocks.units import ResidualUnit
from revgraph.engine._torch import pop_hooks, push_hooks, unseen
from revgraph.engine.writing import argument, bind, keyword_argument, maker, source_of
from revgraph.expressions import Call, Expression, module_at
from revgraph.looks import HOOKS
from revgraph.tracing.structures import check_structure
from revgraph.tracing.wiring.slices import cut

# torch's own C functions where `torch.nn.functional` only checks and passes on.
LINEAR = functional.linear
CONVOLUTIONS = {nn.Conv1d: torch.conv1d, nn.Conv2d: torch.conv2d, nn.Conv3d: torch.conv3d}

# Functions, by name, of their tensor arguments and nothing else: no state, no random numbers, no new tensors
# on a default device. Of what each saves, everything is asked for if its result is.
FUNCTIONS: frozenset[Any] = frozenset(
    found
    for owner, names in (
        (
            torch,
            "abs add cat chunk concat concatenate cos div divide erf exp flatten log log1p matmul mean mm "
            "mul multiply neg negative permute pow reciprocal relu reshape rsqrt sigmoid sin softmax sqrt "
            "square squeeze stack sub subtract sum swapaxes tanh transpose true_divide unbind unflatten "
            "unsqueeze bmm baddbmm addmm clamp_min split movedim",
        ),
        (
            functional,
            "linear relu gelu silu tanh sigmoid softplus leaky_relu elu softmax log_softmax layer_norm "
            "group_norm conv1d conv2d conv3d avg_pool1d avg_pool2d pad mish hardswish hardtanh selu celu "
            "relu6 normalize pixel_shuffle pixel_unshuffle logsigmoid",
        ),
        (operator, "add sub mul truediv neg matmul pow getitem"),
    )
    for name in names.split()
    if (found := getattr(owner, name, None)) is not None
) | {cut}
METHODS = frozenset(
    ("abs", "add", "chunk", "contiguous", "cos", "div", "exp", "expand", "flatten", "float", "double",
     "log", "matmul", "mean", "mm", "mul", "neg", "permute", "pow", "relu", "reshape", "rsqrt",
     "sigmoid", "sin", "softmax", "split", "sqrt", "square", "squeeze", "sub", "sum", "t", "tanh",
     "transpose", "unbind", "unflatten", "unsqueeze", "view", "bmm", "dim", "size", "movedim", "swapaxes")
)  # fmt: skip
# Modules that are called as they are, of which the same holds.
PLAIN_MODULES = (
    nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.Softplus, nn.Mish, nn.Hardswish, nn.Softmax, nn.LogSoftmax,
    nn.Softsign, nn.LogSigmoid, nn.ReLU6, nn.Hardtanh, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.MaxPool1d, nn.MaxPool2d,
    nn.MaxPool3d, nn.PixelShuffle, nn.PixelUnshuffle, nn.Unflatten, nn.ZeroPad2d, nn.ConstantPad2d,
    nn.Upsample,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Inlined:
    """A node's function from its inputs, its parameters, and `via`, to its one result or the tuple of them.

    `parameters` are the tables and names to take them from. `modules` are the modules that were opened or are
    called, for guards; `norms` those of batch normalization. Where `needs_via` is set, the function takes as
    its last argument a `Via`. `direct` gives the same without autograd, where that can be.
    """

    run: Callable[..., Any]
    source: str
    bound: dict[str, Any]
    direct: Direct | None
    parameters: tuple[tuple[dict[str, Tensor | None], str], ...]
    absent: tuple[tuple[dict[str, Tensor | None], str], ...]
    modules: tuple[nn.Module, ...]
    norms: tuple[nn.Module, ...]
    needs_via: bool
    is_single: bool
    flags: tuple[bool, ...]

    def is_clear(self) -> bool:
        """Whether all that was opened is as it was when the function was written."""
        return (
            all([is_clear(module) for module in self.modules])
            and tuple([module.training for module in self.modules]) == self.flags
            and not any([table.get(name) is not None for table, name in self.absent])
        )


@dataclass(frozen=True, slots=True)
class Direct:
    """A node's function without autograd, with what autograd would save besides parameters, in order.

    `run` gives the results and those `count` tensors, `capture` only these, and stops as soon as they are
    there.
    """

    run: Callable[..., tuple[Any, tuple[Tensor, ...]]]
    capture: Callable[..., tuple[Tensor, ...]]
    count: int


class Via:
    """How an inlined function takes what differs between its forward and a replay."""

    __slots__ = ()

    def norm(self, module: nn.Module, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """Batch normalization in training; in the forward it is the module's own."""
        return module(x)

    def heavy(self, index: int, function: Callable[..., Tensor], *args: Any) -> Tensor:
        """The result of a product or convolution that the plan keeps."""
        return function(*args)


class NotInlined(Exception):
    """A call is not known to be a plain function."""


def inlined(expression: Expression, root: nn.Module, kept: Sequence[int]) -> Inlined | None:
    """The function of an expression if all that it calls is known to be plain; `kept` are results to keep."""
    try:
        return _Inlining(root, frozenset(kept)).write(expression)
    except NotInlined:
        return None


class _Inlining:
    """Writes an inlined function."""

    def __init__(self, root: nn.Module, kept: frozenset[int]) -> None:
        self.root = root
        self.kept = kept
        self.bound: dict[str, Any] = {}
        self.lines: list[str] = []
        self.saves: list[str] | None = []
        self.captured_by = 0
        self.parameters: list[tuple[dict[str, Tensor | None], str]] = []
        self.absent: list[tuple[dict[str, Tensor | None], str]] = []
        self.modules: list[nn.Module] = []
        self.norms: list[nn.Module] = []
        self.via = False
        self.heavy = 0
        self.made = 0

    def write(self, expression: Expression) -> Inlined:
        self.made = expression.size
        for call in expression.calls:
            self._call(call)
            self.lines += [f"del x{index}" for index in call.frees]
        if any(index >= self.heavy for index in self.kept):
            raise NotInlined
        outputs = [f"x{index}" for index in expression.outputs]
        single = len(outputs) == 1
        returned = outputs[0] if single else f"({''.join([f'{name}, ' for name in outputs]).rstrip()})"
        given = [
            *(f"x{index}" for index in range(expression.inputs)),
            *(f"p{index}" for index in range(len(self.parameters))),
            *(["via"] if self.via else []),
        ]
        source = source_of(self.bound, ", ".join(given), [*self.lines, f"return {returned}"])
        return Inlined(
            run=maker(source)(*self.bound.values()),
            source=source,
            bound=dict(self.bound),
            parameters=tuple(self.parameters),
            absent=tuple(self.absent),
            modules=tuple(dict.fromkeys(self.modules)),
            norms=tuple(dict.fromkeys(self.norms)),
            needs_via=self.via,
            is_single=single,
            flags=tuple([module.training for module in dict.fromkeys(self.modules)]),
            direct=self._direct(", ".join(given), returned),
        )

    def _direct(self, given: str, returned: str) -> Direct | None:
        saves = self.saves
        if saves is None or self.via:
            return None
        kept = {f"del {name}" for name in saves}
        lines = [line for line in self.lines if line not in kept]
        until = [line for line in self.lines[: self.captured_by] if line not in kept]
        tensors = f"({''.join([f'{name}, ' for name in saves]).rstrip()})"
        run = source_of(self.bound, given, [*lines, f"return {returned}, {tensors}"])
        capture = source_of(self.bound, given, [*until, f"return {tensors}"])
        return Direct(maker(run)(*self.bound.values()), maker(capture)(*self.bound.values()), len(saves))

    def _run(self, result: str, code: str, function: Any, args: Sequence[str]) -> None:
        """A line that calls a function, and what autograd saves of that."""
        rule = SAVES.get(function)
        if rule is not None and not all([arg.startswith("x") for arg in args[:1]]):
            rule = None
        if rule is not None and any([arg.startswith("x") for arg in args[1:]]) and function not in SUMS:
            rule = None
        if rule is None or not _holds(function):
            self.saves = None
        elif self.saves is not None and rule == "input":
            self.saves.append(args[0])
            self.captured_by = len(self.lines)
        self.lines.append(f"{result} = {code}")
        if self.saves is not None and rule == "result":
            self.saves.append(result)
            self.captured_by = len(self.lines)

    def _call(self, call: Call) -> None:
        args = [argument(self.bound, arg) for arg in call.args]
        result = f"x{call.result}"
        if call.kind == "module":
            if call.kwargs:
                raise NotInlined
            self._module(module_at(self.root, call.target), args, result)
            return
        args += [keyword_argument(self.bound, key, arg) for key, arg in call.kwargs.items()]
        if call.target is check_structure:
            self.lines.append(f"{bind(self.bound, call.target)}({', '.join(args)})")
        elif call.kind == "function" and call.target in FUNCTIONS and not _is_in_place(call):
            if call.target in HEAVY_FUNCTIONS and self.kept:
                raise NotInlined  # which of its results would be which is not known here
            code = f"{bind(self.bound, call.target)}({', '.join(args)})"
            self._run(result, code, call.target, args)
        elif call.kind == "method" and call.target in METHODS:
            if call.target in HEAVY_METHODS and self.kept:
                raise NotInlined
            code = f"{args[0]}.{call.target}({', '.join(args[1:])})"
            self._run(result, code, getattr(Tensor, call.target), args)
        else:
            raise NotInlined

    def _module(self, module: nn.Module, xs: Sequence[str], result: str) -> None:
        """Lines that put what a module makes of these variables into `result`."""
        base = _base_of(type(module))
        if base is None or not is_clear(module):
            raise NotInlined
        self.modules.append(module)
        if base in BLOCKS:
            BLOCKS[base](self, module, xs, result)
            return
        (x,) = xs
        if base in PLAIN_MODULES:
            if getattr(module, "inplace", False):
                raise NotInlined
            self._run(result, f"{self._bound(module)}({x})", None, [x])
        else:
            code = RULES[base](self, module, x)
            self._run(result, code, FUNCTION_OF.get(base), [x])

    def _fresh(self) -> str:
        self.made += 1
        return f"x{self.made - 1}"

    def _part(self, module: nn.Module, *xs: str) -> str:
        """A new variable for what a part of a module makes."""
        result = self._fresh()
        self._module(module, xs, result)
        return result

    def _sum(self, one: str, other: str, result: str) -> None:
        self._run(result, f"{one} + {other}", operator.add, [one, other])
        self.lines += [f"del {one}", f"del {other}"]

    # Modules of modules. What comes in is held to the end, as by the module's own call.

    def sequence(self, module: nn.Module, xs: Sequence[str], result: str) -> None:
        (x,) = xs
        before = x
        for child in module._modules.values():
            if child is None:
                raise NotInlined
            after = self._part(child, before)
            if before != x:
                self.lines.append(f"del {before}")
            before = after
        self.lines.append(f"{result} = {before}")
        if before != x:
            self.lines.append(f"del {before}")

    def entry(self, module: nn.Module, xs: Sequence[str], result: str) -> None:
        x1, x2 = xs
        parts: Any = module
        y1, y2 = self._fresh(), self._fresh()
        self._sum(self._part(parts.f, x2), self._part(parts.shortcut1, x1), y1)
        self._sum(self._part(parts.g, y1), self._part(parts.shortcut2, x2), y2)
        self.lines += [f"{result} = ({y1}, {y2})", f"del {y1}", f"del {y2}"]

    def residual_unit(self, module: nn.Module, xs: Sequence[str], result: str) -> None:
        (x,) = xs
        parts: Any = module
        self._sum(self._part(parts.f, x), self._part(parts.shortcut, x), result)

    def pool_and_pad(self, module: nn.Module, xs: Sequence[str], result: str) -> None:
        (x,) = xs
        own: Any = module
        pooled = self._fresh()
        pool, pad = bind(self.bound, functional.avg_pool2d), bind(self.bound, functional.pad)
        m = self._bound(module)
        code = f"{pool}({x}, {m}.stride)" if own.stride > 1 else x
        self._run(pooled, code, functional.avg_pool2d, [x])
        code = f"{pad}({pooled}, (0, 0, 0, 0, {m}.padding, {m}.padding))" if own.padding else pooled
        self._run(result, code, functional.pad, [pooled])
        self.lines.append(f"del {pooled}")

    def stem(self, module: nn.Module, xs: Sequence[str], result: str) -> None:
        (x,) = xs
        parts: Any = module
        convolved = self._part(parts.conv, x)
        normed = self._part(parts.norm, convolved)
        self.lines.append(f"del {convolved}")
        self._module(parts.relu, (normed,), result)
        self.lines.append(f"del {normed}")

    def _bound(self, module: nn.Module) -> str:
        for name, each in self.bound.items():
            if each is module:
                return name
        name = f"m{len(self.bound)}"
        self.bound[name] = module
        return name

    def parameter(self, module: nn.Module, name: str) -> str:
        """A parameter as an argument, or "None" for one that the module does without."""
        table: Any = module._parameters
        if name not in table:
            raise NotInlined
        slot = (table, name)
        if table[name] is None:
            self.absent.append(slot)
            return "None"
        for index, (other, taken) in enumerate(self.parameters):
            if other is table and taken == name:
                return f"p{index}"
        self.parameters.append(slot)
        return f"p{len(self.parameters) - 1}"

    def product(self, function: Callable[..., Any], args: str) -> str:
        """A call whose result the plan may keep."""
        index, self.heavy = self.heavy, self.heavy + 1
        head = bind(self.bound, function)
        if index not in self.kept:
            return f"{head}({args})"
        self.via = True
        return f"via.heavy({index}, {head}, {args})"

    # Rules: what a layer's forward calls, in torch's own terms.

    def linear(self, module: nn.Module, x: str) -> str:
        weight, bias = self.parameter(module, "weight"), self.parameter(module, "bias")
        return self.product(LINEAR, f"{x}, {weight}, {bias}")

    def convolution(self, module: nn.Module, x: str) -> str:
        if module.padding_mode != "zeros":
            raise NotInlined
        m, base = self._bound(module), _base_of(type(module))
        weight, bias = self.parameter(module, "weight"), self.parameter(module, "bias")
        rest = f"{weight}, {bias}, {m}.stride, {m}.padding, {m}.dilation, {m}.groups"
        return self.product(CONVOLUTIONS[base], f"{x}, {rest}")

    def batch_norm(self, module: nn.Module, x: str) -> str:
        counts = module.track_running_stats and all(each is not None for each in module._buffers.values())
        if not module.training or not counts or module.momentum is None:
            raise NotInlined
        self.via = True
        self.norms.append(module)
        weight, bias = self.parameter(module, "weight"), self.parameter(module, "bias")
        return f"via.norm({self._bound(module)}, {x}, {weight}, {bias})"

    def layer_norm(self, module: nn.Module, x: str) -> str:
        m, head = self._bound(module), bind(self.bound, functional.layer_norm)
        weight, bias = self.parameter(module, "weight"), self.parameter(module, "bias")
        return f"{head}({x}, {m}.normalized_shape, {weight}, {bias}, {m}.eps)"

    def group_norm(self, module: nn.Module, x: str) -> str:
        m, head = self._bound(module), bind(self.bound, functional.group_norm)
        weight, bias = self.parameter(module, "weight"), self.parameter(module, "bias")
        return f"{head}({x}, {m}.num_groups, {weight}, {bias}, {m}.eps)"

    def identity(self, module: nn.Module, x: str) -> str:
        return x

    def dropout(self, module: nn.Module, x: str) -> str:
        if module.training or module.inplace:
            raise NotInlined
        return x

    def relu(self, module: nn.Module, x: str) -> str:
        if module.inplace:
            raise NotInlined
        return f"{bind(self.bound, torch.relu)}({x})"

    def silu(self, module: nn.Module, x: str) -> str:
        if module.inplace:
            raise NotInlined
        return f"{bind(self.bound, functional.silu)}({x})"

    def gelu(self, module: nn.Module, x: str) -> str:
        return f"{bind(self.bound, functional.gelu)}({x}, approximate={self._bound(module)}.approximate)"

    def tanh(self, module: nn.Module, x: str) -> str:
        return f"{bind(self.bound, torch.tanh)}({x})"

    def sigmoid(self, module: nn.Module, x: str) -> str:
        return f"{bind(self.bound, torch.sigmoid)}({x})"

    def flatten(self, module: nn.Module, x: str) -> str:
        return f"{x}.flatten({self._bound(module)}.start_dim, {self._bound(module)}.end_dim)"


RULES: dict[type[nn.Module], Callable[[_Inlining, nn.Module, str], str]] = {
    nn.Linear: _Inlining.linear,
    **dict.fromkeys(CONVOLUTIONS, _Inlining.convolution),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), _Inlining.batch_norm),
    nn.LayerNorm: _Inlining.layer_norm,
    nn.GroupNorm: _Inlining.group_norm,
    nn.Identity: _Inlining.identity,
    **dict.fromkeys((nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d), _Inlining.dropout),
    nn.ReLU: _Inlining.relu,
    nn.SiLU: _Inlining.silu,
    nn.GELU: _Inlining.gelu,
    nn.Tanh: _Inlining.tanh,
    nn.Sigmoid: _Inlining.sigmoid,
    nn.Flatten: _Inlining.flatten,
}
# What autograd saves for a function, besides parameters: its first input, its result, or nothing. What it is
# for others, it finds out by itself; on the lean path their replays run under autograd.
SAVES: dict[Any, str] = {
    LINEAR: "input",
    torch.relu: "result",
    functional.relu: "result",
    torch.tanh: "result",
    functional.tanh: "result",
    Tensor.tanh: "result",
    torch.sigmoid: "result",
    functional.sigmoid: "result",
    Tensor.sigmoid: "result",
    functional.gelu: "input",
    functional.silu: "input",
    torch.sin: "input",
    torch.cos: "input",
    torch.exp: "result",
    **dict.fromkeys((torch.add, torch.sub, operator.add, operator.sub, Tensor.add, Tensor.sub), "nothing"),
}
SUMS: frozenset[Any] = frozenset((torch.add, torch.sub, operator.add, operator.sub, Tensor.add, Tensor.sub))
FUNCTION_OF: dict[type[nn.Module], Any] = {
    nn.Linear: LINEAR,
    nn.ReLU: torch.relu,
    nn.Tanh: torch.tanh,
    nn.Sigmoid: torch.sigmoid,
    nn.GELU: functional.gelu,
    nn.SiLU: functional.silu,
}
BLOCKS: dict[type[nn.Module], Callable[[_Inlining, nn.Module, Sequence[str], str], None]] = {
    nn.Sequential: _Inlining.sequence,
    Entry: _Inlining.entry,
    ResidualUnit: _Inlining.residual_unit,
    PoolAndPad: _Inlining.pool_and_pad,
    Stem: _Inlining.stem,
}
OPENED = (*BLOCKS, *PLAIN_MODULES, *RULES)
HEAVY_FUNCTIONS: frozenset[Any] = frozenset(
    getattr(owner, name)
    for owner, name in (
        (torch, "matmul"), (torch, "mm"), (torch, "bmm"), (torch, "baddbmm"), (torch, "addmm"),
        (operator, "matmul"), (functional, "linear"), (functional, "conv1d"), (functional, "conv2d"),
        (functional, "conv3d"),
    )
)  # fmt: skip
HEAVY_METHODS = frozenset(("matmul", "mm", "bmm"))
# What a subclass of a layer may define and still have its forward.
ADDED = frozenset(
    ("__module__", "__doc__", "__init__", "__annotations__", "__parameters__", "__static_attributes__",
     "__firstlineno__", "__orig_bases__", "reset_parameters", "extra_repr", "_version", "__constants__",
     "__abstractmethods__", "_abc_impl")
)  # fmt: skip
OVERRIDES = frozenset(("forward", "_conv_forward", "_check_input_dim", "couple", "uncouple"))


def is_clear(module: nn.Module) -> bool:
    """Whether a module's call is its class's forward and nothing else."""
    own = module.__dict__
    return not any([own[name] for name in HOOKS]) and OVERRIDES.isdisjoint(own)


def look_of(modules: Iterable[nn.Module]) -> list[tuple[bool, bool]]:
    """Of each module what may keep a function from being inlined now, and not another time."""
    return [(module.training, is_clear(module)) for module in modules]


@lru_cache(maxsize=1024)
def _base_of(kind: type[nn.Module]) -> type[nn.Module] | None:
    """The layer of torch's whose forward instances of a class have; None for any other."""
    for position, base in enumerate(kind.__mro__):
        if base in OPENED:
            added = [name for each in kind.__mro__[:position] for name in vars(each) if name not in ADDED]
            return None if any(hasattr(base, name) for name in added) else base
    return None


@lru_cache(maxsize=256)
def _holds(function: Any) -> bool:
    """Whether this build of torch saves for a function what is said of it here, and gives the same without
    gradients: tried once, on a few numbers."""
    with unseen(), torch.device("cpu"), torch.enable_grad():
        x = torch.linspace(-2, 2, 12).view(3, 4).requires_grad_()
        rest: tuple[Tensor, ...] = ()
        if function is LINEAR:
            rest = (nn.Parameter(torch.linspace(-1, 1, 8).view(2, 4)), nn.Parameter(torch.ones(2)))
        elif function in SUMS:
            rest = (torch.ones(3, 4, requires_grad=True),)
        saved: list[Tensor] = []
        push_hooks(lambda tensor: saved.append(tensor), lambda packed: packed)
        try:
            result = function(x, *rest)
        finally:
            pop_hooks()
        with torch.no_grad():
            plain = function(x, *rest)
        found = [
            each for each in saved if not isinstance(each if each._base is None else each._base, nn.Parameter)
        ]
        expected = {"input": [x], "result": [result], "nothing": []}[SAVES[function]]
        return (
            torch.equal(plain, result)
            and len(found) == len(expected)
            and all(map(torch.equal, found, expected))
        )


def _is_in_place(call: Call) -> bool:
    return any(call.kwargs.get(name) for name in ("inplace", "out"))
