"""Folding: module calls that hold no coupling become single calls again.

A module's hooks, wrapping and compilation then stay its own, and the planner decides about it as a whole.
What is too coarse for it is left open: a module with several composite parts (the layers of an encoder, the
attention and the perceptron of a block), and a row of layers, one after another, in which a result may be
stored so that what follows it is cheap to compute again (convolution, normalization, activation); also where
that is joined to what it was made from.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn
from torch.nn.parameter import is_lazy

from revgraph.expressions import leaves, map_leaves
from revgraph.tracing.find_couplings.half_steps import HalfStep
from revgraph.tracing.proxies import holds_tensors, is_tensor
from revgraph.tracing.scopes import ModuleScope
from revgraph.tracing.structures import OTHER, STRUCTURE, leaf_structure, structure_of
from revgraph.tracing.tracer import Tracer
from revgraph.tracing.wiring.recognize import is_wiring

# Their backward asks for what they returned, or next to nothing: to store what they read gains nothing.
SAVE_RESULTS = (
    nn.ReLU,
    nn.Tanh,
    nn.Sigmoid,
    nn.Softmax,
    nn.LogSoftmax,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
    nn.Identity,
    nn.Flatten,
    nn.Unflatten,
)


def fold_modules(
    tracer: Tracer, graph: fx.Graph, kept_open: Set[fx.Node], half_steps: Mapping[fx.Node, HalfStep]
) -> None:
    """Replace module calls without any of the nodes `kept_open` by one opaque call each, outermost first.

    Stays open: what only rearranges tensors, has several composite parts, checkpoints (or that would go on),
    takes or returns objects of user code, or holds what stays open. A module that is part of a half-step's
    function is one call in it whatever its parts, for it is run as a whole.
    """
    owner = {node: half_step.addition for half_step in half_steps.values() for node in half_step.region}
    _Folding(tracer, graph, kept_open, owner).run()


@dataclass
class _ModuleCall:
    """A module call that was gone into, with those inside it."""

    scope: ModuleScope
    inner: list[_ModuleCall] = field(default_factory=list)
    is_open: bool = False
    is_row: bool = False


@dataclass
class _Folding:
    tracer: Tracer
    graph: fx.Graph
    kept_open: Set[fx.Node]
    owner: Mapping[fx.Node, fx.Node]

    def run(self) -> None:
        calls = _as_trees(self.tracer.scopes)
        for call in calls:
            self._settle(call)
        # Later calls first: their arguments are what earlier ones gave, which is replaced after them.
        pending = list(calls)
        while pending:
            call = pending.pop()
            if (
                call.is_open
                or not self._computes(call.scope)
                or _leaks(call.scope)
                or _has_lost_argument(call.scope)
            ):
                pending += call.inner
            else:
                _replace(self.tracer, self.graph, call.scope)

    def _settle(self, call: _ModuleCall) -> None:
        """Say of a call and those inside whether they stay open."""
        for inner in call.inner:
            self._settle(inner)
        scope = call.scope
        if scope.checkpoints or scope.objects or not self.kept_open.isdisjoint(scope.nodes):
            call.is_open = True
        elif not self._is_in_function(scope):
            call.is_row = self._is_row(call)
            call.is_open = call.is_row or self._has_parts(call)

    def _is_in_function(self, scope: ModuleScope) -> bool:
        """Whether a call is computed as part of one half-step's function."""
        results = [leaf for leaf in leaves(scope.result) if isinstance(leaf, fx.Node)]
        owners = {self.owner.get(node) for node in results if node.op != "get_attr" and node.users}
        return len(owners) == 1 and owners != {None}

    def _has_parts(self, call: _ModuleCall) -> bool:
        """Whether a call is planned better part by part: not for a row that is the least of it."""
        if any(inner.is_open and not inner.is_row for inner in call.inner):
            return True
        if sum(_weights(part) > 1 for part in self._parts(call)) > 1:
            return True
        module = self._module(call)
        if isinstance(module, nn.Sequential) and any(_is_nested(self.tracer, child) for child in module):
            return True
        in_rows = sum(_weights(self._module(inner)) for inner in call.inner if inner.is_row)
        return 2 * in_rows > _weights(module)

    def _is_row(self, call: _ModuleCall) -> bool:
        """Whether what a call computes follows one from another, and some of it is worth storing."""
        if sum(not isinstance(part, SAVE_RESULTS) for part in self._parts(call)) < 2:
            return False
        if any(map(is_lazy, self._module(call).parameters())):
            return False
        nodes = [node for node in call.scope.nodes if node.op != "get_attr"]
        computed = [node for node in nodes if _makes_tensors(self.tracer, node)]
        if len(computed) > 1 and is_wiring(computed[-1], self.tracer.root):
            computed.pop()  # what was made is joined to what was given, as in layers of a DenseNet
        read = [[each for each in node.all_input_nodes if each.op != "get_attr"] for node in computed]
        return all(len(inputs) == 1 for inputs in read) and all(
            inputs[0] is before for inputs, before in zip(read[1:], computed, strict=False)
        )

    def _module(self, call: _ModuleCall) -> nn.Module:
        return self.tracer.root.get_submodule(call.scope.path)

    def _parts(self, call: _ModuleCall) -> list[nn.Module]:
        """The modules that a call calls directly."""
        root = self.tracer.root
        within = {node for inner in call.inner for node in inner.scope.nodes}
        leaf_calls = [node for node in call.scope.nodes if node.op == "call_module" and node not in within]
        paths = [*(str(node.target) for node in leaf_calls), *(inner.scope.path for inner in call.inner)]
        return [root.get_submodule(path) for path in paths]

    def _computes(self, scope: ModuleScope) -> bool:
        return any(
            node.op.startswith("call_")
            and _makes_tensors(self.tracer, node)
            and not is_wiring(node, self.tracer.root)
            for node in scope.nodes
        )


def _weights(module: nn.Module) -> int:
    """How many modules with parameters are at work in a module."""
    return sum(bool(each._parameters) for each in module.modules())


def _as_trees(scopes: list[ModuleScope]) -> list[_ModuleCall]:
    """The outermost calls in order, each with those inside. A call's scope comes after those inside it."""
    trees: list[_ModuleCall] = []
    for scope in scopes:
        call = _ModuleCall(scope)
        while trees and trees[-1].scope.caller is scope:
            call.inner.append(trees.pop())
        call.inner.reverse()
        trees.append(call)
    return trees


def _is_nested(tracer: Tracer, module: nn.Module) -> bool:
    return any(True for _ in module.children()) and not tracer.is_leaf_module(module, "")


def _makes_tensors(tracer: Tracer, node: fx.Node) -> bool:
    fake = tracer.fakes.get(node)
    return is_tensor(fake) or holds_tensors(fake)


def _leaks(scope: ModuleScope) -> bool:
    """Whether something made inside is read outside in another way than as the result."""
    nodes = set(scope.nodes)
    results = {leaf for leaf in leaves(scope.result) if isinstance(leaf, fx.Node)}
    return any(node not in results and any(user not in nodes for user in node.users) for node in scope.nodes)


def _has_lost_argument(scope: ModuleScope) -> bool:
    """Whether an argument is gone from the graph, for the module's code does not read it."""
    return any(isinstance(leaf, fx.Node) and leaf._erased for leaf in leaves((scope.args, scope.kwargs)))


def _replace(tracer: Tracer, graph: fx.Graph, scope: ModuleScope) -> None:
    nodes = set(scope.nodes)
    fake = map_leaves(lambda leaf: tracer.fakes[leaf] if isinstance(leaf, fx.Node) else leaf, scope.result)
    with graph.inserting_after(scope.nodes[-1]):
        call = graph.call_module(scope.path, scope.args, scope.kwargs)
    _describe(tracer, call, fake, scope.nodes[0])
    if not tracer.gives_as_many_always(call):
        call.meta[STRUCTURE] = structure_of(scope.result, lambda leaf: _structure_of_leaf(tracer, leaf))
    point = call

    def items(tree: Any, source: fx.Node) -> None:
        """Put what the call returns in the place of what was made inside, as far as it is read."""
        nonlocal point
        if isinstance(tree, fx.Node):
            if tree in nodes:
                tree.replace_all_uses_with(source, delete_user_cb=lambda user: user not in nodes)
            return
        pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
        for key, branch in pairs:
            if any(isinstance(leaf, fx.Node) and _is_read(leaf, nodes) for leaf in leaves(branch)):
                with graph.inserting_after(point):
                    item = graph.call_function(operator.getitem, (source, key))
                point = item
                _describe(tracer, item, tracer.fakes[source][key], scope.nodes[0])
                items(branch, item)

    items(scope.result, call)
    for node in reversed(scope.nodes):
        graph.erase_node(node)


def _structure_of_leaf(tracer: Tracer, leaf: Any) -> Any:
    """That of a value that the call gives; a number that is one of the graph's may be another one."""
    if isinstance(leaf, fx.Node):
        return leaf_structure(fake) if is_tensor(fake := tracer.fakes[leaf]) else OTHER
    return leaf_structure(leaf)


def _is_read(node: fx.Node, nodes: Set[fx.Node]) -> bool:
    return node in nodes and any(user not in nodes for user in node.users)


def _describe(tracer: Tracer, node: fx.Node, fake: Any, like: fx.Node) -> None:
    tracer.fakes[node] = fake
    tracer.where[node] = tracer.where[like]
    tracer.scope_of[node] = ""
