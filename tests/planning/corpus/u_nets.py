"""U-Nets: skips by concatenation, sum, interpolation, attention gates, unpooling, nested, with a time."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from planning.corpus.registry import net
from torch import Tensor, nn


def image() -> tuple[Tensor]:
    return (torch.randn(2, 3, 8, 8),)


def double(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
        nn.Conv2d(outputs, outputs, 3, padding=1),
        nn.ReLU(inplace=True),
    )


@net(image)
class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = double(3, 4), double(4, 6), double(6, 8)
        self.up2, self.up1 = nn.ConvTranspose2d(8, 6, 2, 2), nn.ConvTranspose2d(6, 4, 2, 2)
        self.join2, self.join1 = double(12, 6), double(8, 4)
        self.last = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.down1(x)
        two = self.down2(F.max_pool2d(one, 2))
        y = self.bottom(F.max_pool2d(two, 2))
        y = self.join2(torch.cat([two, self.up2(y)], dim=1))
        y = self.join1(torch.cat([one, self.up1(y)], dim=1))
        return self.last(y)


@net(image)
class InterpolatedUNet(nn.Module):
    """Skips that are summed, and up-sampling by interpolation."""

    def __init__(self) -> None:
        super().__init__()
        self.inlet = nn.Conv2d(3, 5, 3, padding=1)
        self.down = nn.ModuleList(nn.Conv2d(5, 5, 3, stride=2, padding=1) for _ in range(2))
        self.up = nn.ModuleList(nn.Conv2d(5, 5, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.inlet(x)
        skips = []
        for conv in self.down:
            skips.append(x)
            x = F.silu(conv(x))
        for conv in self.up:
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = skips.pop() + conv(x)
        return x


@net(image)
class AttentionGatedUNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = double(3, 4), double(4, 6)
        self.gate_x, self.gate_g, self.psi = nn.Conv2d(4, 3, 1), nn.Conv2d(6, 3, 1), nn.Conv2d(3, 1, 1)
        self.join = double(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.one(x)
        coarse = F.interpolate(self.two(F.avg_pool2d(fine, 2)), scale_factor=2, mode="nearest")
        alpha = torch.sigmoid(self.psi(F.relu(self.gate_x(fine) + self.gate_g(coarse))))
        return self.join(torch.cat((fine * alpha, coarse), 1))


@net(image)
class NestedUNet(nn.Module):
    """Dense skips between levels, as in U-Net++."""

    def __init__(self) -> None:
        super().__init__()
        self.x00, self.x10, self.x20 = double(3, 4), double(4, 5), double(5, 6)
        self.x01, self.x11, self.x02 = double(9, 4), double(11, 5), double(13, 4)

    def forward(self, x: Tensor) -> Tensor:
        def up(y: Tensor) -> Tensor:
            return F.interpolate(y, scale_factor=2)

        a0 = self.x00(x)
        b0 = self.x10(F.max_pool2d(a0, 2))
        a1 = self.x01(torch.cat([a0, up(b0)], 1))
        c0 = self.x20(F.max_pool2d(b0, 2))
        b1 = self.x11(torch.cat([b0, up(c0)], 1))
        return self.x02(torch.cat([a0, a1, up(b1)], 1))


@net(image)
class UnpooledSegmentation(nn.Module):
    """Max-unpooling with the indices of the pooling, as in SegNet."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.middle, self.decode = double(3, 6), double(6, 6), nn.Conv2d(6, 2, 3, padding=1)
        self.pool = nn.MaxPool2d(2, return_indices=True)
        self.unpool = nn.MaxUnpool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        pooled, indices = self.pool(self.encode(x))
        return self.decode(self.unpool(self.middle(pooled), indices))


def timestep_features(t: Tensor, width: int) -> Tensor:
    frequencies = torch.exp(-math.log(1e4) * torch.arange(width // 2) / (width // 2)).to(t.dtype)
    angles = t[:, None] * frequencies[None]
    return torch.cat([angles.sin(), angles.cos()], -1)


class TimedBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, time: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(1, inputs), nn.Conv1d(inputs, outputs, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(2, outputs), nn.Conv1d(outputs, outputs, 3, padding=1)
        self.time = nn.Linear(time, 2 * outputs)
        self.skip = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.time(F.silu(t))[:, :, None].chunk(2, dim=1)
        h = self.norm2(h) * (1 + scale) + shift
        return self.skip(x) + self.conv2(F.silu(h))


@net(lambda: (torch.randn(2, 2, 8), torch.rand(2)))
class DiffusionUNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(6, 8), nn.SiLU(), nn.Linear(8, 8))
        self.one, self.two = TimedBlock(2, 4, 8), TimedBlock(4, 6, 8)
        self.middle = TimedBlock(6, 6, 8)
        self.back2, self.back1 = TimedBlock(12, 4, 8), TimedBlock(8, 4, 8)
        self.down, self.up = nn.Conv1d(4, 4, 4, 2, 1), nn.ConvTranspose1d(4, 4, 4, 2, 1)
        self.last = nn.Conv1d(4, 2, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        t = self.embed(timestep_features(time, 6))
        one = self.one(x, t)
        two = self.two(self.down(one), t)
        y = self.middle(two, t)
        y = self.back2(torch.cat([y, two], 1), t)
        y = self.back1(torch.cat([self.up(y), one], 1), t)
        return self.last(y)


@net(image)
class RecursiveUNet(nn.Module):
    """A U-Net in which each level holds the next, as in pix2pix."""

    class Level(nn.Module):
        def __init__(self, width: int, inner: nn.Module | None) -> None:
            super().__init__()
            self.down = nn.Sequential(nn.LeakyReLU(0.2), nn.Conv2d(width, width, 4, 2, 1))
            self.inner = inner
            wide = width if inner is None else 2 * width
            self.up = nn.Sequential(nn.ReLU(), nn.ConvTranspose2d(wide, width, 4, 2, 1))

        def forward(self, x: Tensor) -> Tensor:
            y = self.down(x)
            return torch.cat([x, self.up(y if self.inner is None else self.inner(y))], 1)

    def __init__(self) -> None:
        super().__init__()
        self.outer = self.Level(3, self.Level(3, None))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.outer(x))
