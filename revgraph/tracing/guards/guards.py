"""`Guards`: what a program takes for granted of its model, and whether it still holds.

`Guards.hold` runs at each call of a net, so it has to be quick: all reads of a program are one generated
function, which gathers the values as they are now, those compared by value and those compared by identity,
for two comparisons of whole tuples. Besides the reads:

- The children of opened modules are held to their identity, their hooks to their number. Where modules that
  are single calls have other children than they had (adapters, say), the program is right, but its graph and
  costs are outdated.
- The gradient mode is held to what it was, where code asks for it.
- Where `torch.export` read code, shapes and dtypes are constants of the graph: see `Forms`.

Guards are copied and pickled with the net. What a copy cannot find again does not hold, so that the first
call of the copy traces the model, which is slow and right.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from revgraph.looks import HOOKS, form_of
from revgraph.tracing.guards.fixed_values import MISSING, Read, Snapshot, is_held_by_value, snapshot
from revgraph.tracing.guards.settings import Settings
from revgraph.tracing.proxies import OtherForm


@dataclass(frozen=True)
class Forms:
    """The forms of a call's inputs, by name, and of a model's parameters and buffers.

    With them and the gradient mode, and without autocast, all that code can ask of a tensor but its numbers
    is as it was.
    """

    inputs: dict[str, Any]
    owners: tuple[nn.Module, ...]
    own: tuple[tuple[Any, ...], ...]

    @classmethod
    def of(cls, given: Mapping[str, Any], modules: Iterable[nn.Module]) -> Forms:
        """The forms that these inputs and the modules' tensors have."""
        owners = tuple(each for each in modules if each._parameters or each._buffers)
        return cls({name: form_of(each) for name, each in given.items()}, owners, tuple(map(_own, owners)))

    def hold(self) -> bool:
        """Whether the model's tensors have these forms."""
        return all(_own(owner) == form for owner, form in zip(self.owners, self.own, strict=True))

    def check(self, given: Mapping[str, Any]) -> None:
        """Hold inputs to these forms, and autocast to being off.

        Raises:
            OtherForm: they have other forms.
        """
        if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
            raise OtherForm("autocast is on, and the graph was made without it")
        for name, form in self.inputs.items():
            if name not in given or form_of(given[name]) != form:
                raise OtherForm(
                    f"{name} has another form than in the trace", f"the input {name} (its number or shape)"
                )


def _own(module: nn.Module) -> tuple[Any, ...]:
    tables = (module._parameters, module._buffers)
    return tuple(_form(each) for table in tables for each in table.values())


def _form(tensor: Tensor | None) -> Any:
    if tensor is None or is_lazy(tensor):
        return None
    return form_of(tensor)


class Guards:
    """What a program takes for granted of its model.

    Hooks of the `root` are none of it: a net has the model's, and its own call runs them. `modules` were
    opened, what is `inside` belongs to modules that are single calls. `forms` are those of tensors that parts
    of the graph were made for.
    """

    def __init__(
        self,
        reads: list[Read],
        modules: list[nn.Module],
        inside: list[nn.Module],
        root: nn.Module,
        settings: Settings,
        forms: Forms | None = None,
    ) -> None:
        self.forms = forms
        self.reads = reads
        self.settings = settings
        self.modules = modules
        self.inside = inside
        self.root = root
        self.children = [dict(module._modules) for module in modules]
        self.children_inside = [dict(module._modules) for module in inside]
        self.hooks = self._hook_counts()
        self._made: tuple[Any, ...] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Without the generated function, which is made anew."""
        return {**self.__dict__, "_made": None}

    def hold(self) -> bool:
        """Whether nothing that the trace fixed has changed since."""
        made = self._made or self._make()
        read, plain, kinds, fixed, tables, hooks, counts = made
        if tables != self.children or [*map(_count, hooks)] != counts:
            return False
        if self.forms is not None and not self.forms.hold():
            return False
        try:
            values, others = read()
            return values == plain and [*map(type, values)] == kinds and all(map(is_, others, fixed))
        except Exception:  # an attribute that is gone, or that cannot be compared
            return False

    def modules_hold(self) -> bool:
        """Whether the opened modules have the children that they had."""
        return [module._modules for module in self.modules] == self.children

    def is_outdated(self) -> bool:
        """Whether modules that are single calls have other children than they had."""
        return [module._modules for module in self.inside] != self.children_inside

    def flag_is_broken(self) -> bool:
        """Whether what has changed is a flag, of which there are no more than two forms."""
        return next((type(each.value) is bool for each in self.reads if not each.holds()), False)

    def broken(self) -> str:
        """What has changed, for a message."""
        for each in self.reads:
            if not each.holds():
                return each.path
        if self.forms is not None and not self.forms.hold():
            return "the form of a parameter or buffer"
        return "the modules or their hooks"

    def _hook_tables(self) -> list[Any]:
        modules = [module for module in self.modules if module is not self.root]
        return [module.__dict__[name] for module in modules for name in HOOKS]

    def _hook_counts(self) -> list[int]:
        return [*map(_count, self._hook_tables())]

    def _make(self) -> tuple[Any, ...]:
        owners: dict[int, str] = {}
        bound: dict[str, Any] = {"snapshot": snapshot, "MISSING": MISSING}
        texts: tuple[list[str], list[str]] = ([], [])
        values: tuple[list[Any], list[Any]] = ([], [])
        for each in self.reads:
            owner = owners.setdefault(id(each.owner), f"o{len(owners)}")
            bound[owner] = each.asked()
            text = each.text(owner)
            text = f"snapshot({text})" if isinstance(each.value, Snapshot) else text
            by_identity = not is_held_by_value(each.value)
            value = each.value
            if isinstance(value, (float, complex)) and (not value or value != value):
                text, value = f"repr({text})", repr(value)  # `==` takes -0.0 for 0.0, and no nan for another
            texts[by_identity].append(text)
            values[by_identity].append(value)
            if isinstance(each.value, Tensor) and not each.value.is_inference():
                # What code computes of a tensor besides traced ones is a constant, so edits in place count.
                texts[False].append(f"{text}._version")
                values[False].append(each.version)
        source = "lambda: ((" + "".join(f"{text}, " for text in texts[0]) + "), ("
        source += "".join(f"{text}, " for text in texts[1]) + "))"
        read = eval(source, bound)  # of names that are attributes, and of nothing else
        self._made = (
            read,
            tuple(values[0]),
            [*map(type, values[0])],
            values[1],
            [module._modules for module in self.modules],
            self._hook_tables(),
            self.hooks,
        )
        return self._made


def _count(hooks: Mapping[int, Any]) -> int:
    """How many hooks there are, but for sharding's: the engine gathers parameters where it uses them."""
    if not hooks:
        return 0
    owners = [type(getattr(hook, "__self__", None)).__module__ for hook in hooks.values()]
    return sum(not owner.startswith("torch.distributed") for owner in owners)
