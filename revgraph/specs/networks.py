"""The modules that a specification becomes: steps over values, run one after another."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from torch import nn

from revgraph.errors import add_note


@dataclass(frozen=True, slots=True)
class Step:
    """One call: the module at `module`, from the values numbered `reads` to those numbered `makes`.

    `extras` are the values given by keyword. `frees` are the values that nothing after this step needs.
    `where` is the place in the specification.
    """

    module: str
    reads: tuple[int, ...]
    extras: tuple[tuple[str, int], ...]
    makes: tuple[int, ...]
    frees: tuple[int, ...]
    where: str

    @property
    def operands(self) -> tuple[int, ...]:
        """All values that the step reads."""
        return (*self.reads, *(value for _, value in self.extras))


def with_frees(steps: Sequence[Step], outputs: Sequence[int]) -> tuple[Step, ...]:
    """The steps, each freeing the values whose last use it is."""
    last_use: dict[int, int] = {}
    for position, step in enumerate(steps):
        last_use.update(dict.fromkeys((*step.makes, *step.operands), position))
    frees: dict[int, list[int]] = {}
    for value, position in last_use.items():
        if value not in outputs:
            frees.setdefault(position, []).append(value)
    return tuple(replace(step, frees=tuple(frees.get(index, ()))) for index, step in enumerate(steps))


class LayerGroup(nn.Module):
    """Holds the modules of a group of layers under its name; the network calls them one by one."""


class _Layers(nn.Module):
    """Modules and the steps that call them; the inputs are the values numbered from 0."""

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        inputs: tuple[str, ...],
        steps: tuple[Step, ...],
        outputs: tuple[int, ...],
    ) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self._inputs, self._steps, self._outputs = inputs, steps, outputs

    @property
    def steps(self) -> tuple[Step, ...]:
        """What the forward does, in order."""
        return self._steps

    def _run(self, inputs: Sequence[Any]) -> Any:
        values = dict(enumerate(inputs))
        for step in self._steps:
            args = [values[index] for index in step.reads]
            extras = {key: values[index] for key, index in step.extras}
            try:
                result = self.get_submodule(step.module)(*args, **extras)
            except Exception as error:
                add_note(error, f"in layer {step.module!r}, declared at {step.where}")
                raise
            if type(result) in (tuple, list) and len(result) != len(step.makes):
                raise TypeError(
                    f"layer {step.module!r} returned {len(result)} values, but {len(step.makes)} are named: "
                    f"name them all with `out`, at {step.where}"
                )
            if len(step.makes) == 1:
                values[step.makes[0]] = result
            else:
                values.update((index, result[place]) for place, index in enumerate(step.makes))
            for index in step.frees:
                del values[index]
        outputs = tuple(values[index] for index in self._outputs)
        return outputs[0] if len(outputs) == 1 else outputs

    def _arguments(self, inputs: Sequence[Any], named: Mapping[str, Any]) -> list[Any]:
        """One value for each input: positional ones first, then those given by name."""
        rest = self._inputs[len(inputs) :]
        if len(inputs) > len(self._inputs) or set(rest) != set(named):
            by_name = f" and {', '.join(named)} by name" if named else ""
            raise TypeError(
                f"the inputs are {', '.join(self._inputs)}, but {len(inputs)} were given{by_name}"
            )
        return [*inputs, *(named[name] for name in rest)]


class Function(_Layers):
    """A function made of layers: F of a coupling."""

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return self._run(self._arguments(inputs, named))


class Network(_Layers):
    """A whole network, as an ordinary module.

    Takes its inputs in the order declared, or by name; returns one tensor, or a tuple where it has several
    outputs. Its class is one of `network_type`, so that its forward has the inputs' names in its signature.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return _bare, (self._inputs,), self.__dict__


@cache
def network_type(inputs: tuple[str, ...]) -> type[Network]:
    """The class of the networks with these inputs."""

    def forward(self: Network, *given: Any, **named: Any) -> Any:
        # Under plain torch.fx all inputs are one proxy, whose length is not known before it runs.
        values = self._arguments(given, named) if isinstance(given, tuple) else given
        return self._run([values[index] for index in range(len(inputs))])

    parameters = [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in ("self", *inputs)
    ]
    forward.__signature__ = inspect.Signature(parameters)
    return type(
        "Network", (Network,), {"forward": forward, "__module__": __name__, "__doc__": Network.__doc__}
    )


def _bare(inputs: tuple[str, ...]) -> Network:
    kind = network_type(inputs)
    return kind.__new__(kind)
