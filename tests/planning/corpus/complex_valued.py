"""Complex nets: complex parameters, Fourier transforms, rotations; the outputs are real, as losses are."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from planning.corpus.registry import net
from torch import Tensor, nn


@net(lambda: (torch.randn(4, 6, dtype=torch.complex64),))
class ComplexLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(6, 8, dtype=torch.complex64)
        self.two = nn.Linear(8, 6, dtype=torch.complex64)

    def forward(self, z: Tensor) -> Tensor:
        y = self.one(z)
        y = torch.complex(F.relu(y.real), F.relu(y.imag))
        return (z + self.two(y)).abs()


@net(lambda: (torch.randn(4, 6, dtype=torch.complex64),))
class ComplexCouplings(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.f = nn.ModuleList(nn.Linear(3, 3, dtype=torch.complex64) for _ in range(4))

    def forward(self, z: Tensor) -> Tensor:
        a, b = z.chunk(2, -1)
        for f in self.f:
            a, b = b, a + torch.tanh(f(b))
        return torch.view_as_real(torch.cat([a, b], -1))


@net(lambda: (torch.randn(2, 6, 8),))
class FourierMixing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.feed = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = x + torch.fft.fft(torch.fft.fft(self.norm(x), dim=-1), dim=-2).real
            x = x + self.feed(x)
        return x


@net(lambda: (torch.randn(2, 4, 12),))
class SpectralConvolutionInPlace(nn.Module):
    """Weights for the lowest frequencies, as in Fourier neural operators."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList(torch.randn(4, 4, 3, dtype=torch.cfloat) * 0.3 for _ in range(2))
        self.local = nn.ModuleList(nn.Conv1d(4, 4, 1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for weight, local in zip(self.weights, self.local, strict=True):
            modes = torch.fft.rfft(x)
            low = torch.einsum("bim,iom->bom", modes[..., :3], weight)
            out = torch.zeros_like(modes)
            out[..., :3] = low
            x = F.gelu(torch.fft.irfft(out, n=x.size(-1)) + local(x))
        return x


@net(lambda: (torch.randn(2, 4, 12),))
class SpectralConvolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList(torch.randn(4, 4, 3, dtype=torch.cfloat) * 0.3 for _ in range(2))
        self.local = nn.ModuleList(nn.Conv1d(4, 4, 1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for weight, local in zip(self.weights, self.local, strict=True):
            low = torch.einsum("bim,iom->bom", torch.fft.rfft(x)[..., :3], weight)
            x = F.gelu(torch.fft.irfft(F.pad(low, (0, 4)), n=x.size(-1)) + local(x))
        return x


@net(lambda: (torch.randn(2, 4, 4, 3),))
class GlobalFilter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 3, 2) * 0.2)
        self.feed = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.fft.rfft2(x, dim=(1, 2), norm="ortho") * torch.view_as_complex(self.weight)
        x = x + torch.fft.irfft2(y, s=x.shape[1:3], dim=(1, 2), norm="ortho")
        return x + torch.tanh(self.feed(x))


@net(lambda: (torch.randn(2, 5, 8),))
class ComplexRotary(nn.Module):
    phases: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("phases", torch.randn(5, 4))
        self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))

    def turn(self, x: Tensor) -> Tensor:
        z = torch.view_as_complex(x.view(*x.shape[:-1], 4, 2))
        return torch.view_as_real(z * torch.polar(torch.ones_like(self.phases), self.phases)).flatten(2)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.turn(self.q(x)) @ self.turn(self.k(x)).transpose(1, 2)
        return x + scores.softmax(-1) @ self.v(x)


@net(lambda: (torch.randn(2, 16),))
class ShortTimeFourier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(8))
        self.mix = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.stft(x, 8, 4, window=self.window, return_complex=True)
        return self.mix((z.abs() + 1e-3).log().transpose(1, 2))
