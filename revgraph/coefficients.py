"""The coefficients of a dual-residual network: alpha on its own connections, beta on the added ones."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from revgraph.couplings import Coupling
from revgraph.errors import GraphError


class DualCoefficients(Coupling):
    """The second stream of every block, `y' = beta * x`, and the coefficients that all blocks share.

    Both are buffers, so that they are saved with the weights and move between steps.

    Raises:
        GraphError: alpha is no finite number, or beta is none above 0.
    """

    alpha: Tensor
    beta: Tensor

    def __init__(self, alpha: float, beta: float) -> None:
        super().__init__()
        verify_coefficients(alpha, beta)
        self.register_buffer("alpha", torch.tensor(float(alpha)))
        self.register_buffer("beta", torch.tensor(float(beta)))

    def set(self, alpha: float, beta: float) -> None:
        """Use other coefficients from the next forward on."""
        verify_coefficients(alpha, beta)
        self.alpha = torch.full_like(self.alpha, alpha)
        self.beta = torch.full_like(self.beta, beta)

    def couple(self, x: Tensor, term: None) -> Tensor:
        return x * self.beta

    def uncouple(self, y: Tensor, term: None) -> Tensor:
        return y / self.beta

    def couple_with_log_det(self, x: Tensor, term: None) -> tuple[Tensor, Tensor]:
        log_det = self.beta.log() * x[0].numel()
        return self.couple(x, term), log_det.to(x.dtype).expand(x.shape[0])


def verify_coefficients(alpha: float, beta: float) -> None:
    """Refuse coefficients with which no block could be run and undone.

    Raises:
        GraphError: which one, and what it may be.
    """
    if not _is_number(alpha):
        raise GraphError(
            f"alpha is {alpha!r}, and must be a finite number: 1 is the pretrained network's own"
        )
    if not _is_number(beta) or not torch.tensor(float(beta)) > 0:
        raise GraphError(
            f"beta is {beta!r}, and must be a finite number above 0: undoing a block divides by it. For the "
            "pretrained network itself run the model that was converted."
        )


def _is_number(thing: object) -> bool:
    return (
        isinstance(thing, (int, float))
        and not isinstance(thing, bool)
        and math.isfinite(torch.tensor(float(thing)).item())
    )
