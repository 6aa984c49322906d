"""Rearrangements: how wiring nodes are undone, as data that names what was done."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from revgraph.errors import GraphError
from revgraph.expressions import attribute_at, leaves, map_leaves, module_at
from revgraph.joint_bijections import Packing
from revgraph.wiring import Wiring


class Rearrangement(ABC):
    """How a wiring node rebuilds its inputs from its outputs; `shapes` are those of its inputs."""

    @abstractmethod
    def inverse(
        self, root: nn.Module, outputs: Sequence[Tensor], shapes: Sequence[torch.Size]
    ) -> Sequence[Tensor]: ...


@dataclass(frozen=True, slots=True)
class Joined(Rearrangement):
    """Undoes a split along `dim`."""

    dim: int

    def inverse(
        self, root: nn.Module, outputs: Sequence[Tensor], shapes: Sequence[torch.Size]
    ) -> Sequence[Tensor]:
        return (torch.cat(list(outputs), dim=self.dim),)


@dataclass(frozen=True, slots=True)
class Parted(Rearrangement):
    """Undoes a concatenation along `dim`."""

    dim: int

    def inverse(
        self, root: nn.Module, outputs: Sequence[Tensor], shapes: Sequence[torch.Size]
    ) -> Sequence[Tensor]:
        return torch.split(outputs[0], [shape[self.dim] for shape in shapes], dim=self.dim)


@dataclass(frozen=True, slots=True)
class Reshaped(Rearrangement):
    """Undoes a change of shape that keeps the order of the elements."""

    def inverse(
        self, root: nn.Module, outputs: Sequence[Tensor], shapes: Sequence[torch.Size]
    ) -> Sequence[Tensor]:
        return (outputs[0].reshape(shapes[0]),)


@dataclass(frozen=True, slots=True)
class Transposed(Rearrangement):
    """Undoes a permutation of dimensions."""

    order: tuple[int, ...]

    def inverse(
        self, root: nn.Module, outputs: Sequence[Tensor], shapes: Sequence[torch.Size]
    ) -> Sequence[Tensor]:
        back = sorted(range(len(self.order)), key=self.order.__getitem__)
        return (outputs[0].permute(back),)


@dataclass(frozen=True, slots=True)
class Shuffled(Rearrangement):
    """Undoes space-to-depth (`unshuffled`) or depth-to-space by a factor."""

    factor: int
    unshuffled: bool

    def inverse(
        self, root: nn.Module, outputs: Sequence[Tensor], shapes: Sequence[torch.Size]
    ) -> Sequence[Tensor]:
        undo = torch.pixel_shuffle if self.unshuffled else torch.pixel_unshuffle
        return (undo(outputs[0], self.factor),)


@dataclass(frozen=True, slots=True)
class Stacked(Rearrangement):
    """Undoes taking a tensor apart along `dim`, which the parts no longer have."""

    dim: int

    def inverse(
        self, root: nn.Module, outputs: Sequence[Tensor], shapes: Sequence[torch.Size]
    ) -> Sequence[Tensor]:
        return (torch.stack(list(outputs), dim=self.dim),)


@dataclass(frozen=True, slots=True)
class Unstacked(Rearrangement):
    """Undoes stacking along a new `dim`."""

    dim: int

    def inverse(
        self, root: nn.Module, outputs: Sequence[Tensor], shapes: Sequence[torch.Size]
    ) -> Sequence[Tensor]:
        return outputs[0].unbind(self.dim)


@dataclass(frozen=True, slots=True)
class Called(Rearrangement):
    """Undoes a rearrangement of one tensor by a function with fixed arguments: flips, rolls."""

    function: Callable[..., Tensor]
    args: tuple[Any, ...] = ()

    def inverse(
        self, root: nn.Module, outputs: Sequence[Tensor], shapes: Sequence[torch.Size]
    ) -> Sequence[Tensor]:
        return (self.function(outputs[0], *self.args),)


@dataclass(frozen=True, slots=True)
class Owned:
    """A leaf of a key: the index tensor that the model has at this path."""

    path: str


@dataclass(frozen=True, slots=True)
class Placed(Rearrangement):
    """Undoes taking a tensor apart at `keys` that lie anywhere in it: each part is put back at its own."""

    keys: tuple[tuple[Any, ...], ...]

    def inverse(
        self, root: nn.Module, outputs: Sequence[Tensor], shapes: Sequence[torch.Size]
    ) -> Sequence[Tensor]:
        numel = sum(part.numel() for part in outputs)
        shape = list(shapes[0])
        if -1 in shape:  # where only the outputs tell how large the batch is
            rest = math.prod(size for size in shape if size != -1)
            shape[shape.index(-1)] = numel // rest if rest else 0
        whole = outputs[0].new_empty(shape)
        owned = {leaf: attribute_at(root, leaf.path) for leaf in leaves(self.keys) if type(leaf) is Owned}
        _check_indices(owned)
        for key, part in zip(self.keys, outputs, strict=True):
            place = map_leaves(lambda leaf: owned[leaf] if type(leaf) is Owned else leaf, key)
            if whole[place].shape != part.shape or numel != whole.numel():
                raise GraphError(
                    f"a tensor of shape {list(shape)} was taken apart in other places than when the net was "
                    "traced, so it cannot be put together again. Trace the net with an input of this size."
                )
            whole[place] = part
        return (whole,)


# Index tensors that were found good, with the versions that they had then.
_good_indices: Any = WeakIdKeyDictionary()


def _check_indices(owned: Mapping[Owned, Tensor]) -> None:
    """Check that index tensors hold no place twice, where they may have changed.

    Raises:
        GraphError: they do, so that another place would be left out.
    """
    if all(_good_indices.get(index) == index._version for index in owned.values()):
        return
    held = [index.nonzero() if index.dtype == torch.bool else index for index in owned.values()]
    places = torch.cat([index.flatten() for index in held])
    if places.unique().numel() != places.numel():
        names = ", ".join(repr(leaf.path) for leaf in owned)
        raise GraphError(
            f"{names}: an index holds a place more than once, which nothing undoes; when the net was traced "
            "it held each once. Load an order of all places, or trace the net again."
        )
    _good_indices.update({index: index._version for index in owned.values()})


@dataclass(frozen=True, slots=True)
class Packed(Rearrangement):
    """Undoes laying streams side by side."""

    packing: Packing

    def inverse(
        self, root: nn.Module, outputs: Sequence[Tensor], shapes: Sequence[torch.Size]
    ) -> Sequence[Tensor]:
        return self.packing.unpack(outputs[0])


@dataclass(frozen=True, slots=True)
class Unpacked(Rearrangement):
    """Undoes taking streams out of one tensor."""

    packing: Packing

    def inverse(
        self, root: nn.Module, outputs: Sequence[Tensor], shapes: Sequence[torch.Size]
    ) -> Sequence[Tensor]:
        return (self.packing.pack(*outputs).reshape(shapes[0]),)


@dataclass(frozen=True, slots=True)
class WiringModule(Rearrangement):
    """What the `Wiring` module at a path declares."""

    path: str

    def inverse(
        self, root: nn.Module, outputs: Sequence[Tensor], shapes: Sequence[torch.Size]
    ) -> Sequence[Tensor]:
        module = module_at(root, self.path)
        assert isinstance(module, Wiring)
        inputs = module.inverse(*outputs, shapes=shapes)
        return (inputs,) if isinstance(inputs, Tensor) else inputs
