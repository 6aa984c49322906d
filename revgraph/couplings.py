"""Couplings: half-steps `y = x (+) F(others)` that give x back once y and the others are known."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn


class Boundary(nn.Module):
    """A module that is always one node of the graph, whatever its forward does inside."""


class Coupling(nn.Module, ABC):
    """One half-step for every function: `y_i = x_i (+) F_i(the other streams)`.

    With one function, `coupling(x, *others)` is one half-step and returns y alone. With n >= 2 functions,
    `coupling(x_1, ..., x_n)` changes the streams in turn, each from the newest state of all the others in
    their order, and returns all n. Keyword arguments go to every function. With no function it is a bijection
    of one stream, with parameters of its own.

    For a coupling of your own, inherit and give `couple` and `uncouple`; gradients come from autograd.

    Example:
        >>> import torch, revgraph as rg
        >>> class Negate(rg.Coupling):
        ...     def couple(self, x, term):
        ...         return term - x
        ...     def uncouple(self, y, term):
        ...         return term - y
        >>> half_step = Negate(torch.nn.Identity())
        >>> half_step(torch.tensor([1.0]), torch.tensor([5.0]))
        tensor([4.])
    """

    def __init__(self, *functions: nn.Module) -> None:
        super().__init__()
        self.names = function_names(len(functions))
        for name, function in zip(self.names, functions, strict=True):
            if not isinstance(function, nn.Module):
                raise TypeError(
                    f"{type(self).__name__} takes modules as functions, not {type(function).__name__}"
                )
            self.add_module(name, function)

    @abstractmethod
    def couple(self, x: Tensor, term: Any) -> Tensor:
        """y of x's shape, from x and what the function returned (None where there is no function)."""

    @abstractmethod
    def uncouple(self, y: Tensor, term: Any) -> Tensor:
        """x, from y and the same term: the inverse of `couple`."""

    def couple_with_log_det(self, x: Tensor, term: Any) -> tuple[Tensor, Tensor | None]:
        """What `couple` gives, and log |det dy/dx| per sample ([N]); None where volume is preserved.

        A normalizing flow needs it (`net.with_log_det`); other networks never call it.
        """
        raise NotImplementedError

    def forward(self, *streams: Tensor, **extras: Any) -> Any:
        if not streams and len(self.names) < 2:
            raise ValueError(f"{type(self).__name__} takes at least one stream, and none was given")
        if not self.names:
            (x,) = streams
            return self.couple(x, None)
        if len(self.names) == 1:
            x, *others = streams
            return self.couple(x, self.get_submodule(self.names[0])(*others, **extras))
        if len(streams) != len(self.names):
            raise ValueError(
                f"{type(self).__name__} with {len(self.names)} functions takes as many streams, "
                f"not {len(streams)}"
            )
        state = list(streams)
        for index, name in enumerate(self.names):
            others = state[:index] + state[index + 1 :]
            state[index] = self.couple(state[index], self.get_submodule(name)(*others, **extras))
        return tuple(state)


class Additive(Coupling):
    """The additive coupling (NICE; Gomez et al. 2017, section 3.1).

    `Additive(f, g)` is the paper's block: it takes x1 and x2 and returns y1 and y2, all of one shape a
    stream.
    """

    def couple(self, x: Tensor, term: Tensor) -> Tensor:
        return x + term  # y1 = x1 + F(x2)

    def uncouple(self, y: Tensor, term: Tensor) -> Tensor:
        return y - term  # x1 = y1 - F(x2)

    def couple_with_log_det(self, x: Tensor, term: Tensor) -> tuple[Tensor, None]:
        return x + term, None


class Affine(Coupling):
    """The affine coupling of RealNVP (Dinh et al. 2017): `y = x * exp(s) + t`.

    The function returns the pair (s, t), or both as the halves of one tensor along `dim`. The log-scale s is
    bounded smoothly to (-bound, bound) by `bound * tanh(s / bound)`, so that neither exp(s) nor its inverse
    overflows.
    """

    def __init__(self, *functions: nn.Module, bound: float = 2.0, dim: int = 1) -> None:
        super().__init__(*functions)
        if not bound > 0:
            raise ValueError(f"bound must be above 0, not {bound}")
        self.bound = bound
        self.dim = dim

    def couple(self, x: Tensor, term: Any) -> Tensor:
        s, t = self._scale_and_shift(term)
        return x * torch.exp(s) + t

    def couple_with_log_det(self, x: Tensor, term: Any) -> tuple[Tensor, Tensor]:
        s, t = self._scale_and_shift(term)
        return x * torch.exp(s) + t, s.expand_as(x).flatten(1).sum(1)

    def uncouple(self, y: Tensor, term: Any) -> Tensor:
        s, t = self._scale_and_shift(term)
        return (y - t) * torch.exp(-s)

    def _scale_and_shift(self, term: Any) -> tuple[Tensor, Tensor]:
        s, t = torch.chunk(term, 2, dim=self.dim) if isinstance(term, Tensor) else term
        return self.bound * torch.tanh(s / self.bound), t


class Gated(Coupling):
    """The update of a reversible recurrent cell (MacKay et al. 2018): `y = z * h + (1 - z) * tanh(g)`.

    The function returns the pair of tensors from which the gate z = floor + (1 - floor) * sigmoid(.) and the
    candidate tanh(g) are made, or both as the halves of one tensor along `dim`. A gate that may close
    altogether forgets, which nothing undoes: `floor` bounds what a step may forget, and errors grow by at
    most 1 / floor when it is undone.
    """

    def __init__(self, *functions: nn.Module, floor: float = 0.5, dim: int = 1) -> None:
        super().__init__(*functions)
        if not 0 < floor <= 1:
            raise ValueError(f"floor must be above 0 and at most 1, not {floor}")
        self.floor = floor
        self.dim = dim

    def couple(self, x: Tensor, term: Any) -> Tensor:
        z, candidate = self._gate_and_candidate(term)
        return z * x + (1 - z) * candidate

    def uncouple(self, y: Tensor, term: Any) -> Tensor:
        z, candidate = self._gate_and_candidate(term)
        return (y - (1 - z) * candidate) / z

    def couple_with_log_det(self, x: Tensor, term: Any) -> tuple[Tensor, Tensor]:
        z, candidate = self._gate_and_candidate(term)
        return z * x + (1 - z) * candidate, z.expand_as(x).log().flatten(1).sum(1)

    def _gate_and_candidate(self, term: Any) -> tuple[Tensor, Tensor]:
        gate, candidate = torch.chunk(term, 2, dim=self.dim) if isinstance(term, Tensor) else term
        return self.floor + (1 - self.floor) * torch.sigmoid(gate), torch.tanh(candidate)


def function_names(count: int) -> tuple[str, ...]:
    """What a coupling calls its functions: f; f and g; f1, f2, f3 and so on."""
    return ("f", "g")[:count] if count <= 2 else tuple(f"f{index + 1}" for index in range(count))
