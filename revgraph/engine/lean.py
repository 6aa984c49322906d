"""The lean path: nodes whose functions are inlined, evaluated with as little bookkeeping as is safe.

What the careful path notes, restores and compares is left out here only where it cannot matter: an inlined
function reads nothing but its inputs and parameters, draws nothing, and what it saves stays asked for. What
can change is looked at: once a forward, that all modules are as they were when the function was written
(hooks, classes, flags) and no context is in force; for each node, that its inputs are plain tensors; in a
replay, the versions and memory of parameters and stored values, and the number and shapes of what is saved.
Where a look fails, the node takes the careful path in that forward, and so it does in forwards that are to be
compared.

A saved tensor is packed as a number, counted over the whole forward. A replay puts what it captures into one
list, by these numbers.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from revgraph.couplings import Additive
from revgraph.engine import inlining
from revgraph.engine._torch import pop_hooks, push_hooks, set_grad_enabled
from revgraph.engine.executable import Joint, not_undone
from revgraph.engine.inlining import OVERRIDES, Inlined
from revgraph.engine.replay import BackwardPass, laid_out, switched_error
from revgraph.engine.saved_tensors import Enough
from revgraph.engine.selective_recompute import HandingOut, Keeping, KeptCalls
from revgraph.engine.state import ADDRESS, REQUIRES_GRAD, STORAGE, VERSION, stale
from revgraph.errors import ReplayError, add_note
from revgraph.expressions import module_at
from revgraph.looks import HOOKS
from revgraph.planning.plans import TERM
from revgraph.program import CouplingLaw

if TYPE_CHECKING:
    from revgraph.engine.executable import Executable, PlannedOperation, Replays, ReplayStep
    from revgraph.engine.tape import Tape

Parameter = nn.Parameter
Replay = Callable[[BackwardPass, bool], None]


class LeanNode:
    """A node on the lean path: its inlined function, and how its target and term are joined."""

    __slots__ = ("forward", "inlined", "joint", "operation")

    def __init__(self, operation: PlannedOperation, inlined: Inlined, joint: Joint | None) -> None:
        self.operation = operation
        self.inlined = inlined
        self.joint = joint
        self.forward = _forward_of(operation, inlined, joint)


class LeanNodes:
    """The nodes of an executable that may take the lean path, and what must be as it was for that."""

    def __init__(self, executable: Executable, model: nn.Module) -> None:
        self.by_index: dict[int, LeanNode] = {}
        self._replays: dict[int, list[Replay | None]] = {}
        modules: dict[nn.Module, None] = {}
        others: dict[nn.Module, None] = {}
        self._absent: list[tuple[dict[str, Any], str]] = []
        for operation in executable.operations:
            found = lean_node(operation, model)
            if found is not None:
                self.by_index[operation.index] = found
                modules.update(dict.fromkeys(found.inlined.modules))
                self._absent += found.inlined.absent
                if isinstance(operation.law, CouplingLaw):
                    modules[module_at(model, operation.law.path)] = None
            elif operation.decision in ("invert", "recompute"):
                others.update(dict.fromkeys(operation.modules.modules))
        self._modules = list(modules)
        self._hooks = [module.__dict__[name] for module in modules for name in HOOKS]
        self._own = [module.__dict__ for module in modules]
        self._classes = [*map(type, self._modules)]
        self._flags = [module.training for module in self._modules]
        # Those of nodes that have to take the careful path now, perhaps for a hook or a dropout.
        self._others = list(others)
        self._look = inlining.look_of(self._others)

    def replays(self, replays: Replays) -> list[Replay | None]:
        """What carries out each step on the lean path, as far as it was made by now."""
        found = self._replays.get(id(replays))  # the executable holds both
        if found is None:
            found = self._replays[id(replays)] = [None] * len(replays.steps)
        return found

    def replay(self, replays: Replays, place: int) -> Replay:
        """What carries out the step at a place, made now."""
        step = replays.steps[place]
        found = replay_of(step, self.by_index[step.operation.index])
        self._replays[id(replays)][place] = found
        return found

    def are_clear(self) -> bool:
        """Whether every function may run as it was written."""
        module = nn.modules.module
        return not (
            any(self._hooks)
            or any([not OVERRIDES.isdisjoint(own) for own in self._own])
            or [*map(type, self._modules)] != self._classes
            or [module.training for module in self._modules] != self._flags
            or inlining.look_of(self._others) != self._look
            or any([table.get(name) is not None for table, name in self._absent])
            or module._global_forward_hooks
            or module._global_forward_pre_hooks
            or module._global_backward_hooks
            or module._global_backward_pre_hooks
        )


def joint_in(model: nn.Module, operation: PlannedOperation) -> Joint | None:
    """The arithmetic of a coupling that only adds or subtracts; None of any other."""
    if type(operation.law) is not CouplingLaw:
        return operation.joint
    module = module_at(model, operation.law.path)
    kind = type(module)
    if kind.couple is Additive.couple and kind.uncouple is Additive.uncouple:  # pyright: ignore
        return (torch.add, torch.sub) if inlining.is_clear(module) else None
    return None


def lean_node(operation: PlannedOperation, model: nn.Module) -> LeanNode | None:
    """A node for the lean path; None where it has to take the careful one."""
    if operation.decision not in ("invert", "recompute") or TERM in operation.results:
        return None
    joint = joint_in(model, operation)
    if operation.law is not None and joint is None:
        return None
    inlined = inlining.inlined(operation.expression, model, operation.results)
    if inlined is None or (joint is not None and not inlined.is_single):
        return None
    return LeanNode(operation, inlined, joint)


def _forward_of(
    operation: PlannedOperation, inlined: Inlined, joint: Joint | None
) -> Callable[[Tape, list[Any]], bool]:
    index, reads, makes, target = operation.index, operation.reads, operation.makes, operation.target
    run, slots, needs_via, single = inlined.run, inlined.parameters, inlined.needs_via, inlined.is_single
    couple = None if joint is None else joint[0]
    inverts, statistics = operation.decision == "invert", operation.keeps_statistics

    def forward(tape: Tape, values: list[Any]) -> bool:
        """The node's forward; False, and nothing done, where its inputs ask for the careful path."""
        inputs = [values[number] for number in reads]
        for each in inputs:
            if type(each) is not Tensor or type(each._base) is Parameter:
                return False
        parameters: list[Any] = [table[name] for table, name in slots]
        tape.parameters[index] = (
            parameters,
            [*map(VERSION, parameters)],
            [*map(ADDRESS, map(STORAGE, parameters))],
            [*map(REQUIRES_GRAD, parameters)],
        )
        tape.flags[index] = [each.requires_grad for each in inputs]
        start = len(tape.forms)
        tape.starts.append(start)
        tape.lean_nodes.append(index)
        hook = partial(tape.unpack)  # held by what autograd saves of this node, and by nothing else
        tape.hooks.append(weakref.ref(hook))
        push_hooks(tape.pack, hook)
        del hook
        try:
            if needs_via:
                kept = tape.kept[index] = KeptCalls()
                with tape.turn:  # batch normalization reads and writes its running statistics
                    result = run(*inputs, *parameters, Keeping(tape, kept, statistics))
            else:
                result = run(*inputs, *parameters)
        except Exception as error:
            add_note(error, f"in the forward of {operation.describe()}")
            raise
        finally:
            pop_hooks()
        tape.ends[index] = (start, len(tape.forms))
        if couple is not None:
            x = values[target]  # pyright: ignore
            y = values[makes[0]] = couple(x, result)
            if inverts and y.shape != x.shape:
                raise not_undone(operation, x, y)
        elif single:
            values[makes[0]] = result
        else:
            for number, each in zip(makes, result, strict=True):
                values[number] = each
        return True

    return forward


def replay_of(step: ReplayStep, node: LeanNode) -> Replay:
    """What carries out an instruction of a node on the lean path (lines 1 to 3 of Algorithm 1)."""
    operation, inlined, joint = step.operation, node.inlined, node.joint
    index, reads, makes, target = operation.index, operation.reads, operation.makes, operation.target
    run, needs_via, single = inlined.run, inlined.needs_via, inlined.is_single
    gives_target = target is not None and target in step.wanted
    gives_outputs = any([number in step.wanted for number in makes])
    gives = gives_target or gives_outputs
    output, direct = makes[0], inlined.direct

    def replay(on: BackwardPass, captures: bool) -> None:
        tape, values = on.tape, on.values
        parameters, versions, memory, _ = tape.parameters[index]
        if [*map(VERSION, parameters)] != versions or [*map(ADDRESS, map(STORAGE, parameters))] != memory:
            raise stale(operation.node)
        start, end = tape.ends[index]
        if captures and not gives and start == end:
            on.done.add(index)
            return
        enabled = torch.is_grad_enabled()
        if direct is not None and captures and direct.count == end - start:
            set_grad_enabled(False)
            try:
                inputs = [on.get(number) for number in reads]
                if gives:
                    result, saved = direct.run(*inputs, *parameters)
                else:
                    result, saved = None, direct.capture(*inputs, *parameters)
                on.take(index, start, saved)
                made = give(on, result)
                del saved, result, inputs
                lay_out(tape, values, made)
            except Exception as error:
                add_note(error, f"while replaying {operation.describe()}")
                raise
            finally:
                set_grad_enabled(enabled)
            return
        inputs = [
            on.get(number).detach().requires_grad_(flag)
            for number, flag in zip(reads, tape.flags[index], strict=True)
        ]
        on.next, on.end = start, end
        stops = captures and not gives
        set_grad_enabled(True)
        hook = on.capture_until_end if stops else on.capture if captures else drop
        via = None
        push_hooks(hook, refuse)
        try:
            if needs_via:
                kept = tape.kept[index] if captures else None
                via = HandingOut(kept, hook, on.releases)
                result = run(*inputs, *parameters, via)
            else:
                result = run(*inputs, *parameters)
        except Enough:
            result = None
        except Exception as error:
            add_note(error, f"while replaying {operation.describe()}")
            raise
        finally:
            pop_hooks()
            set_grad_enabled(False)
        try:
            if captures:
                if on.next != on.end:
                    raise saves_others(on, operation)
                on.done.add(index)
            made = give(on, result)
            del result, inputs, via
            lay_out(tape, values, made)
        finally:
            set_grad_enabled(enabled)

    def give(on: BackwardPass, result: Any) -> dict[int, Tensor]:
        """What the instruction makes."""
        made: dict[int, Tensor] = {}
        if gives_target:
            made[target] = joint[1](on.get(output), result)  # pyright: ignore
        if gives_outputs:
            if joint is not None:
                result = joint[0](on.get(target), result)  # pyright: ignore
            for number, each in zip(makes, (result,) if single else result, strict=True):
                if number in step.wanted:
                    made[number] = each.detach()
        return made

    def lay_out(tape: Tape, values: list[Any], made: dict[int, Tensor]) -> None:
        """Put it among the values, with the strides of the forward."""
        for number in made:
            made[number] = laid_out(made[number], tape.strides.get(number))
            if number in step.makes:
                values[number] = made[number]

    return replay


def drop(tensor: Tensor) -> None:
    """The hook of a replay that captures nothing."""


def refuse(packed: Any) -> Tensor:
    raise ReplayError("a node that is not kept differentiates inside its own replay. Keep that node.")


def saves_others(on: BackwardPass, operation: PlannedOperation) -> ReplayError:
    """What to raise where a replay saves other tensors than its forward."""
    tape = on.tape
    parameters, _, _, flags = tape.parameters[operation.index]
    switched = [
        name
        for module in operation.modules.modules
        for name, parameter in module._parameters.items()
        for each, flag in zip(parameters, flags, strict=True)
        if each is parameter and each.requires_grad != flag
    ]
    if switched:
        return switched_error(operation, switched)
    start, end = tape.ends[operation.index]
    return ReplayError(
        f"the replay of {operation.describe()} differs from its forward: it saved {end - start} tensors in "
        f"the forward, and {on.next - start} like them now. Keep the node: "
        f"decisions {{{operation.node!r}: 'keep'}}."
    )
