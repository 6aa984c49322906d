"""Costs on fake tensors: bytes and FLOPs of every node, without memory or arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from revgraph.expressions import attribute_at, module_at
from revgraph.graph import Cost, Graph
from revgraph.isolation import untouched
from revgraph.looks import form_of, look_of
from revgraph.program import CouplingLaw, Operation, Program
from revgraph.storages import StorageTracker


def with_costs(program: Program, model: nn.Module) -> Graph:
    """The program's graph with the cost of every node.

    Each distinct node (same modules, same shapes) runs once, forward and backward, on tensors without
    memory. A node that cannot run so (its path depends on values) costs nothing in predictions.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with untouched(model), mode:
        return _Costing(program, model, set(program.differentiable), mode).graph()


@dataclass
class _Costing:
    program: Program
    model: nn.Module
    needs_grad: set[str]
    mode: FakeTensorMode

    def graph(self) -> Graph:
        graph = self.program.graph
        known: dict[Any, _Measured | None] = {}
        costs: dict[str, Cost] = {}
        env: dict[str, Any] = dict(self.program.numbers)
        for name in graph.inputs:
            env[name] = self._tensor(name)
        for operation in self.program.operations:
            inputs = [env.get(name) for name in self._reads(operation)]
            if not operation.node:
                env.update(self._plain(operation, inputs))
                continue
            key = (_signature(self.model, operation), tuple(form_of(each) for each in inputs))
            if key not in known:
                known[key] = _measured(self.model, operation, inputs, self.mode)
            measured = known[key]
            if measured is not None:
                costs[operation.node] = measured.cost(self._reads(operation), operation.makes, graph)
                self.needs_grad.update(
                    name for name, flag in zip(operation.makes, measured.flags, strict=True) if flag
                )
            for name in operation.makes:
                env[name] = self._tensor(name) if name in graph.value else None
        nodes = tuple(replace(node, cost=costs.get(node.name, node.cost)) for node in graph.nodes)
        return replace(graph, nodes=nodes)

    def _plain(self, operation: Operation, inputs: list[Any]) -> dict[str, Any]:
        """An operation's results that are no tensors; None where they depend on values."""
        try:
            return dict(zip(operation.makes, operation.expression.run(self.model, inputs), strict=True))
        except Exception:
            return dict.fromkeys(operation.makes)

    def _reads(self, operation: Operation) -> tuple[str, ...]:
        return operation.reads if operation.target is None else (*operation.reads, operation.target)

    def _tensor(self, name: str) -> Tensor:
        value = self.program.graph.value[name]
        tensor = torch.empty(value.shape, dtype=getattr(torch, value.dtype), device=value.device)
        return tensor.requires_grad_(name in self.needs_grad)


@dataclass(frozen=True, slots=True)
class _Measured:
    """A distinct node's cost, with saved inputs and outputs by position."""

    bare: Cost
    saved_inputs: tuple[int, ...]
    saved_outputs: tuple[int, ...]
    flags: tuple[bool, ...]

    def cost(self, reads: Sequence[str], makes: Sequence[str], graph: Graph) -> Cost:
        names = [
            *(reads[index] for index in self.saved_inputs),
            *(makes[index] for index in self.saved_outputs),
        ]
        storages = dict.fromkeys(graph.value[name].storage for name in names if name in graph.value)
        return replace(self.bare, saved_values=tuple(storages))


def _measured(
    model: nn.Module, operation: Operation, inputs: Sequence[Any], mode: FakeTensorMode
) -> _Measured | None:
    saved: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[_key(tensor)] = tensor.detach()
        return tensor

    tensors = [each for each in inputs if isinstance(each, Tensor)]
    parameters = _parameters(model, operation)
    fakes = [mode.from_tensor(parameter) for parameter in parameters]
    tracker = StorageTracker([*tensors, *fakes])
    try:
        with tracker:
            counter = FlopCounterMode(display=False)
            with counter, saved_tensors_hooks(pack, lambda tensor: tensor):
                outputs = _run(model, operation, inputs)
            flops, peak = counter.get_total_flops(), tracker.peak()
            made = [each for each in outputs if isinstance(each, Tensor)]
            input_keys = {
                _key(tensor): index for index, tensor in enumerate(inputs) if isinstance(tensor, Tensor)
            }
            output_keys = {
                _key(each): index for index, each in enumerate(outputs) if isinstance(each, Tensor)
            }
            fixed = {_key(fake) for fake in fakes}
            internal = {
                key: tensor for key, tensor in saved.items()
                if key not in input_keys and key not in output_keys and key not in fixed
            }  # fmt: skip
            saved_bytes = sum(tensor.untyped_storage().nbytes() for tensor in internal.values())
            output_bytes = sum(
                each.untyped_storage().nbytes()
                for each in {_key(each): each for each in made}.values()
                if _key(each) not in input_keys
            )
            backward_bytes, backward_flops = _backward(tracker, [*tensors, *parameters], made)
    except Exception:
        return None
    bare = Cost(
        saved_bytes=saved_bytes,
        peak_bytes=max(peak - output_bytes, saved_bytes),
        backward_bytes=backward_bytes,
        flops=flops,
        backward_flops=backward_flops,
    )
    return _Measured(
        bare,
        tuple(index for key, index in input_keys.items() if key in saved),
        tuple(index for key, index in output_keys.items() if key in saved),
        tuple(isinstance(each, Tensor) and each.requires_grad for each in outputs),
    )


def _backward(tracker: StorageTracker, leaves: list[Tensor], outputs: list[Tensor]) -> tuple[int, int]:
    """The most bytes that a backward holds on top, parameter gradients left out, and its FLOPs."""
    roots = [output for output in outputs if output.requires_grad]
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    if not roots or not wanted:
        return 0, 0
    gradients = [torch.empty_like(root) for root in roots]
    start, before = tracker.now, tracker.live()
    counter = FlopCounterMode(display=False)
    with counter:
        found = torch.autograd.grad(roots, wanted, gradients, allow_unused=True)
    of_parameters = [
        gradient
        for leaf, gradient in zip(wanted, found, strict=True)
        if gradient is not None and isinstance(leaf, nn.Parameter)
    ]
    return max(0, tracker.peak(start, without=of_parameters) - before), counter.get_total_flops()


def _run(model: nn.Module, operation: Operation, inputs: Sequence[Any]) -> tuple[Any, ...]:
    if operation.law is None:
        return operation.expression.run(model, inputs)
    *others, target = inputs
    term = operation.expression.run(model, others)
    return (operation.law.couple(model, target, term[0] if term else None),)


def _modules(model: nn.Module, operation: Operation) -> list[nn.Module]:
    paths = list(operation.expression.module_paths)
    if isinstance(operation.law, CouplingLaw) and not paths:
        paths.append(operation.law.path)
    return [module_at(model, path) for path in paths]


def _parameters(model: nn.Module, operation: Operation) -> list[Tensor]:
    found: list[Tensor] = []
    for module in _modules(model, operation):
        found += [*module.parameters(), *module.buffers()]
    for path in operation.expression.attribute_paths:
        value = attribute_at(model, path)
        if isinstance(value, Tensor):
            found.append(value)
    return found


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _signature(model: nn.Module, operation: Operation) -> Any:
    """Equal for operations that cost the same on equal inputs."""
    calls = tuple(
        (
            call.kind,
            "" if call.kind in ("module", "attribute") else call.target,
            repr(call.args),
            repr(call.kwargs),
        )
        for call in operation.expression.calls
    )
    return calls, type(operation.law), tuple(look_of(module) for module in _modules(model, operation))
