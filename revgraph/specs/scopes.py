"""Names of values while layers are gone through: the newest value under each name, and what flows on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from revgraph.errors import SpecError
from revgraph.specs.hints import listed, meant
from revgraph.specs.syntax import Layer

Values: TypeAlias = "tuple[int, ...]"


class Scope:
    """The values of one body. A name stands for what was last made under it: one value or several."""

    def __init__(self, inputs: Sequence[str]) -> None:
        self.names: dict[str, Values] = {name: (index,) for index, name in enumerate(inputs)}
        self.count = len(inputs)
        # What a layer without `in` reads, to begin with the first input; None after a half-step, which leaves
        # other streams beside it.
        self.flow: Values | None = (0,)

    def new(self, count: int) -> Values:
        """The numbers of as many new values."""
        self.count += count
        return tuple(range(self.count - count, self.count))

    def named(self, name: str, where: str) -> Values:
        """The values under a name.

        Raises:
            SpecError: nothing above made any.
        """
        if name not in self.names:
            hint = meant(name, self.names) or f" The values so far are {listed([*self.names][-12:])}."
            raise SpecError(f"{where}: no value is named {name!r} at this point.{hint}")
        return self.names[name]

    def read(self, layer: Layer) -> Values:
        """The values that a layer reads: its target, then those after `in` or `others`; or what flows on.

        Raises:
            SpecError: one of them does not exist, the target is among the `others`, or nothing flows on.
        """
        if layer.reads is not None or layer.target is not None:
            target = (
                ()
                if layer.target is None
                else (self.one(layer.target, "the target of a half-step", layer.where),)
            )
            reads = {name: self.named(name, layer.where) for name in layer.reads or ()}
            for name, values in reads.items():
                if target and target[0] in values:
                    raise SpecError(
                        f"{layer.where}: {name!r} among `others` is the target {layer.target!r} itself. A "
                        "half-step's function reads the other streams alone, or nothing could undo it: leave "
                        "it out, or make an ordinary layer of it, with `in` and `out`."
                    )
            return target + tuple(value for name in layer.reads or () for value in reads[name])
        return self.flowing(layer.where)

    def flowing(self, where: str) -> Values:
        """What the layer before made."""
        if self.flow is None:
            raise SpecError(
                f"{where}: after a half-step, which changes one of several streams, say which values are "
                "meant: in: [x1, x2], or at the network's end outputs: [x1, x2]"
            )
        return self.flow

    def bind(self, names: Sequence[str], values: Values) -> None:
        """Puts each value under a name of its own."""
        self.names.update((name, (value,)) for name, value in zip(names, values, strict=True))

    def one(self, name: str, what: str, where: str) -> int:
        """The one value under a name; `what` it is wanted for."""
        values = self.named(name, where)
        if len(values) != 1:
            raise SpecError(
                f"{where}: {name!r} stands for {len(values)} values, but {what} is one: name them one by one "
                "with `out` where they are made"
            )
        return values[0]
