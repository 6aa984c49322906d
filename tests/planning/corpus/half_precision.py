"""Nets in bfloat16 and float16, wholly or in part, and under autocast."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from planning.corpus.registry import net
from torch import Tensor, nn


def half(module: nn.Module, dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    return module.to(dtype)


@net(lambda: (torch.randn(4, 12, dtype=torch.bfloat16),), options={"half_streams": True})
class BrainFloatCouplings(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.f = nn.ModuleList(
            half(nn.Sequential(nn.Linear(6, 9), nn.GELU(), nn.Linear(9, 6))) for _ in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        for f in self.f:
            a, b = b, a + f(b)
        return torch.cat([a, b], -1)


@net(lambda: (torch.randn(2, 3, 6, 6, dtype=torch.bfloat16),))
class BrainFloatConvolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = half(nn.Conv2d(3, 6, 3, padding=1)), half(nn.BatchNorm2d(6))
        self.body = nn.ModuleList(half(nn.Conv2d(6, 6, 3, padding=1)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        for conv in self.body:
            x = x + conv(F.relu(x))
        return x.mean((2, 3))


@net(lambda: (torch.randn(4, 8, dtype=torch.float16),))
class HalfPerceptron(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = half(nn.Linear(8, 16), torch.half), half(nn.Linear(16, 8), torch.half)
        self.norm = half(nn.LayerNorm(8), torch.half)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = x + self.two(F.silu(self.one(self.norm(x))))
        return x


@net(lambda: (torch.randn(2, 5, 8, dtype=torch.bfloat16),), float64=False)
class BrainFloatAttention(nn.Module):
    """Attention in bfloat16, with norms and softmax in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = half(nn.Linear(8, 24)), half(nn.Linear(8, 8))
        self.scale = nn.Parameter(torch.ones(8, dtype=torch.bfloat16))

    def norm(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.scale * wide.to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
            weights = F.softmax((q @ k.mT).float() * 0.3, dim=-1).to(v.dtype)
            x = x + self.out(weights @ v)
        return x


@net(lambda: (torch.randn(2, 5, 8, dtype=torch.bfloat16),), options={"half_streams": True})
class BrainFloatDotProducts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = half(nn.Linear(8, 24)), half(nn.Linear(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        b, n, w = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, 2, 4).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return x + self.out(y.transpose(1, 2).reshape(b, n, w))


@net(lambda: (torch.randn(4, 8),), float64=False)
class AutocastInside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.f = nn.ModuleList(nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4)) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        with torch.autocast("cpu", torch.bfloat16):
            for f in self.f:
                a, b = b, a + f(b)
        return torch.cat([a, b], -1).float()


@net(lambda: (torch.randn(4, 8),), float64=False)
class WideStreamHalfBranches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(3))
        self.branches = nn.ModuleList(
            half(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))) for _ in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        for norm, branch in zip(self.norms, self.branches, strict=True):
            x = x + branch(norm(x).bfloat16())
        return x


@net(lambda: (torch.randn(4, 8),), float64=False)
class CastAndBack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), half(nn.Linear(8, 8), torch.half)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.one(x)).to(torch.float16)
        return torch.sigmoid(self.two(y)).double() + x.double()


class UnderAutocast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.f(x)


@net(lambda: (torch.randn(4, 8),), float64=False)
class AutocastInSubmodules(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.f = nn.ModuleList(UnderAutocast() for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        for f in self.f:
            a, b = b, a + f(b)
        return torch.cat([a, b], -1)
