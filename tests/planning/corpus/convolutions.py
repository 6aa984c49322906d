"""Convolutional nets: residual, dense, depthwise, grouped, gated, dilated, transposed, pooled."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from planning.corpus.registry import net
from torch import Tensor, nn


def image(channels: int = 3, size: int = 8) -> tuple[Tensor]:
    return (torch.randn(2, channels, size, size),)


class ConvNormAct(nn.Sequential):
    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        )


@net(image)
class PlainConvolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(ConvNormAct(3, 6), nn.MaxPool2d(2), ConvNormAct(6, 8), nn.MaxPool2d(2))
        self.classify = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(torch.flatten(self.features(x), 1))


class ResidualBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = None
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.shortcut is None else self.shortcut(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


@net(image)
class ResidualNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNormAct(3, 6)
        self.layers = nn.Sequential(ResidualBlock(6, 6, 1), ResidualBlock(6, 8, 2), ResidualBlock(8, 8, 1))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.adaptive_avg_pool2d(self.layers(self.stem(x)), 1).flatten(1))


@net(image)
class PreNormResidualNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(6) for _ in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(6, 6, 3, padding=1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = x + conv(F.relu(norm(x)))
        return x.mean((2, 3))


@net(image)
class DenseConcatenations(nn.Module):
    def __init__(self, growth: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(6 + i * growth),
                nn.ReLU(),
                nn.Conv2d(6 + i * growth, growth, 3, padding=1, bias=False),
            )
            for i in range(4)
        )
        self.transition = nn.Sequential(nn.Conv2d(18, 7, 1), nn.AvgPool2d(2))

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        return self.transition(torch.cat(features, 1))


@net(image)
class Inception(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = ConvNormAct(3, 4, 1)
        self.three = nn.Sequential(ConvNormAct(3, 2, 1), ConvNormAct(2, 5, 3))
        self.five = nn.Sequential(ConvNormAct(3, 2, 1), ConvNormAct(2, 3, 5))
        self.pooled = nn.Sequential(nn.MaxPool2d(3, 1, 1), ConvNormAct(3, 2, 1))
        self.last = nn.Conv2d(14, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        branches = [branch(x) for branch in (self.one, self.three, self.five, self.pooled)]
        return self.last(torch.cat(branches, dim=1))


@net(image)
class DepthwiseSeparable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(3, 9, 1, bias=False), nn.BatchNorm2d(9), nn.ReLU6())
        self.depthwise = nn.Sequential(
            nn.Conv2d(9, 9, 3, padding=1, groups=9, bias=False), nn.BatchNorm2d(9), nn.Hardswish()
        )
        self.project = nn.Sequential(nn.Conv2d(9, 3, 1, bias=False), nn.BatchNorm2d(3))

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.project(self.depthwise(self.expand(x)))
        return y + self.project(self.depthwise(self.expand(y)))


@net(image)
class SqueezeExcitation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.reduce, self.widen = nn.Linear(8, 2), nn.Linear(2, 8)
        self.last = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.conv(x))
        scale = torch.sigmoid(self.widen(F.relu(self.reduce(x.mean(dim=(2, 3))))))
        return x + self.last(x * scale[:, :, None, None])


@net(lambda: (torch.randn(2, 2, 6, 6, 6),))
class Volumes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv3d(2, 4, 3, padding=1)
        self.norm = nn.InstanceNorm3d(4, affine=True)
        self.down = nn.Conv3d(4, 6, 2, stride=2)
        self.up = nn.ConvTranspose3d(6, 4, 2, stride=2)
        self.prelu = nn.PReLU(4)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.prelu(self.norm(self.first(x)))
        return self.prelu(fine + self.up(F.leaky_relu(self.down(fine))))


@net(image)
class ChannelShuffle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.left = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.right = nn.Conv2d(4, 4, 1)
        self.last = nn.Conv2d(8, 8, 1, groups=4)

    def shuffle(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        return x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        for _ in range(2):
            a, b = x.chunk(2, dim=1)
            x = self.shuffle(torch.cat((a, F.relu(self.right(self.left(b)))), dim=1))
        return self.last(x)


@net(lambda: (torch.randn(2, 3, 20),))
class DilatedGatedSkips(nn.Module):
    """Gated causal convolutions whose skips are summed up, as in WaveNet."""

    def __init__(self) -> None:
        super().__init__()
        self.inlet = nn.Conv1d(3, 6, 1)
        self.filters = nn.ModuleList(nn.Conv1d(6, 6, 2, dilation=2**i) for i in range(3))
        self.gates = nn.ModuleList(nn.Conv1d(6, 6, 2, dilation=2**i) for i in range(3))
        self.residuals = nn.ModuleList(nn.Conv1d(6, 6, 1) for _ in range(3))
        self.skips = nn.ModuleList(nn.Conv1d(6, 4, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.inlet(x)
        total: Tensor | int = 0
        for i in range(3):
            padded = F.pad(x, (2**i, 0))
            z = torch.tanh(self.filters[i](padded)) * torch.sigmoid(self.gates[i](padded))
            total = total + self.skips[i](z)
            x = x + self.residuals[i](z)
        return F.relu(total)


@net(image)
class TransposedDecoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Conv2d(3, 6, 4, 2, 1), nn.ELU(), nn.Conv2d(6, 9, 4, 2, 1), nn.ELU())
        self.decode = nn.Sequential(
            nn.ConvTranspose2d(9, 6, 4, 2, 1), nn.BatchNorm2d(6), nn.ELU(), nn.ConvTranspose2d(6, 3, 4, 2, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.decode(self.encode(x)))


@net(image)
class Poolings(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.second = nn.Conv2d(18, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        most = F.max_pool2d(x, 2)
        mean = F.avg_pool2d(x, 2)
        norm = F.lp_pool2d(x.abs() + 0.1, 2, 2)
        y = self.second(torch.cat([most, mean, norm], 1))
        return F.adaptive_max_pool2d(y, 2) + F.adaptive_avg_pool2d(y, 2)


@net(image)
class SubPixel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 6, 3, padding=1)
        self.body = nn.ModuleList(nn.Conv2d(6, 6, 3, padding=1) for _ in range(2))
        self.up = nn.Conv2d(6, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        first = x = self.features(x)
        for conv in self.body:
            x = x + 0.1 * conv(F.relu(x))
        return F.pixel_shuffle(self.up(x + first), 2)


class NextBlock(nn.Module):
    """A ConvNeXt block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.one, self.two = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(0.1 * torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(x).permute(0, 2, 3, 1)
        y = self.gamma * self.two(F.gelu(self.one(self.norm(y))))
        return x + y.permute(0, 3, 1, 2)


@net(lambda: image(3, 9))
class ConvNext(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, 3)
        self.blocks = nn.Sequential(NextBlock(4), NextBlock(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.stem(x)).mean([-2, -1])


@net(image)
class UnfoldedPatches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(27, 27)

    def forward(self, x: Tensor) -> Tensor:
        patches = F.unfold(x, 3, padding=1).transpose(1, 2)
        mixed = torch.tanh(self.mix(patches)).transpose(1, 2)
        return x + F.fold(mixed, x.shape[-2:], 3, padding=1) / 9


@net(image)
class CrossStagePartial(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = ConvNormAct(3, 8, 1)
        self.inner = nn.ModuleList(ConvNormAct(4, 4) for _ in range(2))
        self.last = ConvNormAct(16, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.first(x).chunk(2, 1))
        for each in self.inner:
            parts.append(parts[-1] + each(parts[-1]))
        return self.last(torch.cat(parts, 1))


@net(image)
class GatedConvolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 12, 3, padding=1)
        self.second = nn.Conv2d(6, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.glu(self.first(x), dim=1)
        return x + F.glu(self.second(x), dim=1)


@net(lambda: (torch.randn(2, 3, 8, 8).contiguous(memory_format=torch.channels_last),))
class ChannelsLast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1).to(memory_format=torch.channels_last)
        self.convs = nn.ModuleList(nn.Conv2d(6, 6, 3, padding=1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for conv in self.convs:
            x = x + conv(F.gelu(x))
        return x
