"""Flows: couplings with log-determinants, invertible convolutions, autoregressive masks, residual flows."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from planning.corpus.registry import net
from torch import Tensor, nn


def rows() -> tuple[Tensor]:
    return (torch.randn(4, 6),)


@net(rows)
class AffineFlow(nn.Module):
    """RealNVP, with its log-determinant and its likelihood."""

    def __init__(self) -> None:
        super().__init__()
        self.nets = nn.ModuleList(
            nn.Sequential(nn.Linear(3, 7), nn.Tanh(), nn.Linear(7, 6)) for _ in range(4)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_det = x.new_zeros(x.shape[0])
        a, b = x.chunk(2, -1)
        for f in self.nets:
            s, t = f(b).chunk(2, -1)
            s = torch.tanh(s)
            a, b = b, a * torch.exp(s) + t
            log_det = log_det + s.sum(-1)
        return torch.cat([a, b], -1), log_det


@net(rows)
class AdditiveFlow(nn.Module):
    """NICE: alternating halves by masks, a diagonal at the end, and the likelihood."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", (torch.arange(6) % 2).float())
        self.f = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
        self.log_scale = nn.Parameter(torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        mask = self.mask
        for f in self.f:
            x = x + (1 - mask) * torch.tanh(f(mask * x))
            mask = 1 - mask
        z = x * self.log_scale.exp()
        return (-0.5 * (z**2 + math.log(2 * math.pi)).sum(-1) + self.log_scale.sum()).mean()


@net(lambda: (torch.randn(2, 4, 4, 4),))
class Glow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.log_s, self.b = nn.Parameter(torch.zeros(1, 4, 1, 1)), nn.Parameter(torch.zeros(1, 4, 1, 1))
        self.w = nn.Parameter(torch.linalg.qr(torch.randn(4, 4))[0])
        self.f = nn.Sequential(nn.Conv2d(2, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 4, 3, padding=1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(())
        for _ in range(2):
            x = (x + self.b) * self.log_s.exp()
            x = F.conv2d(x, self.w.view(4, 4, 1, 1))
            total = total + 16 * (self.log_s.sum() + torch.linalg.slogdet(self.w)[1])
            a, b = x.chunk(2, 1)
            shift, scale = self.f(a).chunk(2, 1)
            scale = torch.sigmoid(scale + 2)
            x = torch.cat([a, (b + shift) * scale], 1)
            total = total + scale.log().sum((1, 2, 3)).mean()
        return x, total


@net(rows)
class MaskedAutoregression(nn.Module):
    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.tril(torch.ones(6, 6), -1))
        self.w1, self.w2 = nn.Parameter(torch.randn(6, 6) * 0.4), nn.Parameter(torch.randn(6, 6) * 0.4)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            mean = F.linear(x, self.w1 * self.mask)
            log_scale = torch.tanh(F.linear(x, self.w2 * self.mask))
            x = ((x - mean) * torch.exp(-log_scale)).flip(-1)
        return x


@net(lambda: (torch.randn(2, 4, 4, 4),))
class MultiScaleFlow(nn.Module):
    """Squeezes, and a half that leaves on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.pixel_unshuffle(x, 2)
        a, b = x.chunk(2, 1)
        a = a + torch.tanh(self.one(b))
        b, out = b.chunk(2, 1)
        b = b + self.two(out)
        return torch.cat([a, b], 1), out


@net(rows)
class ContinuousFlow(nn.Module):
    """A differential equation by Heun's steps, with an exact trace."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.u = nn.Parameter(torch.randn(6, 9) * 0.3), nn.Parameter(torch.randn(9, 6) * 0.3)

    def slope(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(x @ self.w)
        trace = ((1 - h**2) * (self.w.t() * self.u).sum(1)).sum(-1)
        return h @ self.u, trace

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(x.shape[0])
        for _ in range(2):
            one, trace_one = self.slope(x)
            two, trace_two = self.slope(x + 0.25 * one)
            x = x + 0.125 * (one + two)
            total = total + 0.125 * (trace_one + trace_two)
        return x, total
