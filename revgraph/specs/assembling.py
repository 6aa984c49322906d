"""From layers to modules: repeats are written out, names become numbered values, modules are made."""

from __future__ import annotations

import re
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from revgraph.errors import SpecError
from revgraph.specs import registry
from revgraph.specs.arity import made
from revgraph.specs.hints import listed, meant
from revgraph.specs.limits import Limits
from revgraph.specs.networks import Function, LayerGroup, Network, Step, network_type, with_frees
from revgraph.specs.scopes import Scope, Values
from revgraph.specs.syntax import Body, Group, Layer, ModuleCall, Use

Written = TypeVar("Written", Network, Function)


def check(body: Body, limits: Limits) -> None:
    """Goes through a whole network on the meta device: no memory for parameters, one module a declaration.

    Raises:
        SpecError: a name or number of values is wrong, a module refuses its arguments, or the parameters are
            too many.
    """
    _network(body, _Workshop(limits, checking=True))


def assemble(body: Body, limits: Limits) -> Network:
    """The network of a body that `check` found good, with its parameters initialized."""
    return _network(body, _Workshop(limits, checking=False))


class _Workshop:
    """Makes the modules that calls and functions describe.

    While checking, each is made once on the meta device and serves wherever its declaration is repeated.
    """

    def __init__(self, limits: Limits, checking: bool) -> None:
        self.limits = limits
        self.checking = checking
        self.elements = 0
        self._made: dict[int, nn.Module] = {}
        self._sizes: dict[int, int] = {}

    def make(self, what: ModuleCall | Body) -> nn.Module:
        if self.checking and id(what) in self._made:
            return self._made[id(what)]
        module = _function(what, self) if isinstance(what, Body) else self._create(what)
        if self.checking:
            self._made[id(what)] = module
        return module

    def _create(self, call: ModuleCall) -> nn.Module:
        positional = [self._argument(value) for value in call.positional]
        keywords = {key: self._argument(value) for key, value in call.keywords}
        if not self.checking:
            return registry.create(call.name, positional, keywords, call.where)
        if not registry.is_users(call.name):
            with torch.device("meta"):
                return registry.create(call.name, positional, keywords, call.where)
        # A factory of the user's own may draw random numbers, or need real ones.
        with torch.random.fork_rng(devices=[]):
            try:
                with torch.device("meta"):
                    return registry.create(call.name, positional, keywords, call.where)
            except SpecError:
                return registry.create(call.name, positional, keywords, call.where)

    def _argument(self, value: Any) -> Any:
        if isinstance(value, (ModuleCall, Body)):
            return self.make(value)
        return tuple(self._argument(item) for item in value) if isinstance(value, tuple) else value

    def count(self, module: nn.Module, where: str) -> None:
        """Adds a module of the network to the account of parameters."""
        if not self.checking:
            return
        if id(module) not in self._sizes:
            self._sizes[id(module)] = _elements(module)
        self.elements += self._sizes[id(module)]
        if self.elements > self.limits.parameters:
            raise SpecError(
                f"{where}: up to here the network has {self.elements} parameters; the limit is "
                f"{self.limits.parameters}. Make it smaller, or raise `limits.parameters`."
            )


class _Writer:
    """Goes through the layers of one body and writes down the steps that run them."""

    def __init__(self, body: Body, workshop: _Workshop) -> None:
        self.body, self.workshop = body, workshop
        self.scope = Scope(body.inputs)
        self.root = LayerGroup()
        self.steps: list[Step] = []
        self.outputs: Values = ()
        self.used: set[int] = set()
        self._modules: dict[str, nn.Module] = {}

    def write(self) -> _Writer:
        """Writes all steps, and notes which values are used; returns itself."""
        for layer in self.body.layers:
            self._layer(layer, self.root, "")
        if self.body.outputs is None:
            self.outputs = self.scope.flowing(self.body.end)
        else:
            self.outputs = tuple(
                value for name in self.body.outputs for value in self.scope.named(name, self.body.end)
            )
        self.used = {*self.outputs, *(value for step in self.steps for value in step.operands)}
        for step in self.steps:
            if self.used.isdisjoint(step.makes):
                raise SpecError(
                    f"{step.where}: nothing reads what layer {step.module!r} makes. Name it after `in` in a "
                    "later layer or under `outputs`, or leave the layer out."
                )
        return self

    def into(self, kind: type[Written]) -> Written:
        """A module of this kind that runs the steps."""
        modules = {name: module for name, module in self.root._modules.items() if module is not None}
        return kind(modules, self.body.inputs, with_frees(self.steps, self.outputs), self.outputs)

    def _layer(self, layer: Layer, holder: nn.Module, path: str) -> None:
        for name in _names(layer):
            if isinstance(layer.what, Group):
                self._group(layer, layer.what, name, holder, path)
            else:
                self._step(layer, layer.what, name, holder, path)

    def _group(self, layer: Layer, group: Group, name: str, holder: nn.Module, path: str) -> None:
        inner = LayerGroup()
        self._add(holder, name, inner, layer.where)
        if layer.reads is not None:
            self.scope.flow = self.scope.read(layer)
        for each in group.layers:
            self._layer(each, inner, f"{path}{name}.")
        if layer.makes is not None:
            values = self.scope.flowing(layer.where)
            if len(values) != len(layer.makes):
                raise SpecError(
                    f"{layer.where}: the group makes {len(values)} values, but `out` names "
                    f"{len(layer.makes)}: {listed(layer.makes)}"
                )
            self.scope.bind(layer.makes, values)
        elif self.scope.flow is not None:
            self.scope.names[name] = self.scope.flow

    def _step(self, layer: Layer, what: ModuleCall | Use, name: str, holder: nn.Module, path: str) -> None:
        reads = self.scope.read(layer)
        extras = tuple(
            (key, self.scope.one(value, f"the keyword {key!r}", layer.where)) for key, value in layer.extras
        )
        if isinstance(what, Use):
            called, module = self._earlier(what.name, path, layer.where)
        else:
            called, module = f"{path}{name}", self.workshop.make(what)
            self._add(holder, name, module, layer.where)
            self._modules[called] = module
            self.workshop.count(module, layer.where)
        makes = self.scope.new(made(module, layer, len(reads), self.workshop.limits))
        self.steps.append(Step(called, reads, extras, makes, (), layer.where))
        self.scope.flow = None if layer.target is not None and layer.reads is not None else makes
        if layer.target is not None:
            self.scope.bind((layer.target,), makes)
        elif layer.makes is not None:
            self.scope.bind(layer.makes, makes)
        else:
            self.scope.names[name] = makes

    def _earlier(self, name: str, path: str, where: str) -> tuple[str, nn.Module]:
        """The module of an earlier layer: of the same group, or else of the groups around it."""
        outer = path
        while True:
            if (called := f"{outer}{name}") in self._modules:
                return called, self._modules[called]
            if not outer:
                break
            outer = outer[: outer.rstrip(".").rfind(".") + 1]
        names = [known.rpartition(".")[2] for known in self._modules]
        raise SpecError(f"{where}: `use` names an earlier layer, but {name!r} is none.{meant(name, names)}")

    @staticmethod
    def _add(holder: nn.Module, name: str, module: nn.Module, where: str) -> None:
        if name in holder._modules:
            raise SpecError(f"{where}: two layers here are called {name!r}. Give each a name of its own.")
        if hasattr(Network, name) or hasattr(holder, name):
            raise SpecError(
                f"{where}: a layer cannot be called {name!r}: PyTorch's modules use that name themselves"
            )
        holder.add_module(name, module)


def _network(body: Body, workshop: _Workshop) -> Network:
    writer = _Writer(body, workshop).write()
    for index, name in enumerate(body.inputs):
        if index not in writer.used:
            raise SpecError(
                f"{body.where}: no layer reads the input {name!r}. Name it after `in`, or leave it out."
            )
    return writer.into(network_type(body.inputs))


def _function(body: Body, workshop: _Workshop) -> Function:
    # Its parameters are counted once, as those of the layer that holds the function.
    counted = workshop.elements
    writer = _Writer(body, workshop).write()
    workshop.elements = counted
    return writer.into(Function)


def _names(layer: Layer) -> list[str]:
    """The layer's name, or the names of its repetitions: counted on from the name's number, or from 0."""
    if layer.repeat is None:
        return [layer.name]
    match = re.fullmatch(r"(.*?)([0-9]*)", layer.name)
    assert match is not None
    start = int(match[2] or 0)
    return [f"{match[1]}{start + index}" for index in range(layer.repeat)]


def _elements(module: nn.Module) -> int:
    """The elements of a module's parameters and buffers, a shared module's as often as it stands there."""
    return sum(
        tensor.numel()
        for _, part in module.named_modules(remove_duplicate=False)
        for tensor in (*part._parameters.values(), *part._buffers.values())
        if tensor is not None and not is_lazy(tensor)
    )
