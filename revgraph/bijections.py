"""Bijections: couplings of one stream without a function, with parameters or coefficients of their own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from revgraph.couplings import Coupling


class Scale(Coupling):
    """`y = factor * x`, for a stream of any shape.

    The factor is a buffer, so that it is saved with the weights and a schedule can move it between steps.

    Raises:
        ValueError: the factor is 0, which nothing undoes.
    """

    factor: Tensor

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.register_buffer("factor", torch.tensor(_undoable(factor, "factor")))

    def set(self, factor: float) -> None:
        """Scale by another factor from the next forward on.

        Raises:
            ValueError: the factor is 0.
        """
        self.factor = torch.full_like(self.factor, _undoable(factor, "factor"))

    def couple(self, x: Tensor, term: None) -> Tensor:
        return x * self.factor

    def uncouple(self, y: Tensor, term: None) -> Tensor:
        return y / self.factor

    def couple_with_log_det(self, x: Tensor, term: None) -> tuple[Tensor, Tensor]:
        return self.couple(x, term), _per_sample(x, self.factor.abs().log() * x[0].numel())


class ActNorm(Coupling):
    """A scale and a shift for each channel: `y = x * exp(log_scale) + shift` (Glow; Kingma, Dhariwal 2018).

    Streams are [N, channels, ...]. It starts as the identity; `rg.initialize(net, batch)` gives each channel
    mean 0 and variance 1 on a first batch, as in section 3.1 there.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(channels))
        self.shift = nn.Parameter(torch.zeros(channels))

    def couple(self, x: Tensor, term: None) -> Tensor:
        return x * _channels(self.log_scale, x).exp() + _channels(self.shift, x)

    def uncouple(self, y: Tensor, term: None) -> Tensor:
        return (y - _channels(self.shift, y)) * (-_channels(self.log_scale, y)).exp()

    def couple_with_log_det(self, x: Tensor, term: None) -> tuple[Tensor, Tensor]:
        return self.couple(x, term), _per_sample(x, self.log_scale.sum() * _places(x))

    @torch.no_grad()
    def fit(self, x: Tensor) -> None:
        """Choose scale and shift so that each channel of this batch comes out with mean 0 and variance 1."""
        rows = x.transpose(0, 1).flatten(1)
        deviation = rows.std(1, correction=0).clamp_min(1e-6)
        self.log_scale.copy_(-deviation.log())
        self.shift.copy_(-rows.mean(1) / deviation)


class InvertibleConv1x1(Coupling):
    """A learned mixing of channels, `y = W x` at each place (Glow; Kingma, Dhariwal 2018, section 3.2).

    Streams are [N, channels, ...]; W is [channels, channels] and starts as a random rotation. Undoing it
    solves with W, which fails with torch's own error where W has become singular.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, channels))
        nn.init.orthogonal_(self.weight)

    def couple(self, x: Tensor, term: None) -> Tensor:
        return (self.weight @ x.reshape(*x.shape[:2], -1)).reshape(x.shape)

    def uncouple(self, y: Tensor, term: None) -> Tensor:
        # In double precision, since rounding grows with W's condition number.
        rows = y.reshape(*y.shape[:2], -1).double()
        return torch.linalg.solve(self.weight.double(), rows).to(y.dtype).reshape(y.shape)

    def couple_with_log_det(self, x: Tensor, term: None) -> tuple[Tensor, Tensor]:
        log_det = torch.linalg.slogdet(self.weight).logabsdet
        return self.couple(x, term), _per_sample(x, log_det * _places(x))


def _channels(parameter: Tensor, stream: Tensor) -> Tensor:
    """A number for each channel, in a shape that broadcasts over [N, channels, ...]."""
    return parameter.reshape(-1, *[1] * (stream.ndim - 2))


def _places(stream: Tensor) -> int:
    """How many places, such as pixels, each channel of a sample has."""
    return stream[0, 0].numel()


def _per_sample(stream: Tensor, log_det: Tensor) -> Tensor:
    return log_det.to(stream.dtype).expand(stream.shape[0])


def _undoable(factor: float, name: str) -> float:
    if not isinstance(factor, (int, float)) or factor == 0:
        raise ValueError(f"{name} must be a number other than 0, not {factor!r}")
    return float(factor)
