"""Ordinary residual networks in plain PyTorch, each with its dual-residual forward written out by hand."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

import revgraph as rg

Function = Callable[[Tensor, float], Tensor]  # a block as H(x; alpha)


def dual_run(blocks: Iterable[Function], x: Tensor, alpha: float, beta: float) -> Tensor:
    """A run of blocks as in Zhao et al. 2024: x' = H(x; alpha) + y, y' = beta * x, from y = 0."""
    y = torch.zeros_like(x)
    for block in blocks:
        x, y = block(x, alpha) + y, beta * x
    return x


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)


class Basic(nn.Module):
    """Two convolutions, and the activation after the addition (He et al. 2015), edited in place."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = conv(outputs, outputs, 3), nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def f(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)

    def dual(self, x: Tensor, alpha: float) -> Tensor:
        return torch.relu(self.f(x) + alpha * x)


class Bottleneck(nn.Module):
    """Three convolutions with the stride in the middle one, and an empty Sequential for an identity."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        width = outputs // 4
        self.body = nn.Sequential(
            conv(inputs, width, 1), nn.BatchNorm2d(width), nn.ReLU(),
            conv(width, width, 3, stride), nn.BatchNorm2d(width), nn.ReLU(),
            conv(width, outputs, 1), nn.BatchNorm2d(outputs),
        )  # fmt: skip
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu(self.body(x) + self.shortcut(x))

    def dual(self, x: Tensor, alpha: float) -> Tensor:
        return torch.relu(self.body(x) + alpha * x)


class Preactivated(nn.Module):
    """Normalisation and activation before each convolution, none after the addition (He et al. 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), conv(inputs, outputs, 3, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), conv(outputs, outputs, 3)
        changes = stride != 1 or inputs != outputs
        self.shortcut = conv(inputs, outputs, 1, stride) if changes else nn.Identity()

    def f(self, x: Tensor) -> Tensor:
        return self.conv2(torch.relu(self.bn2(self.conv1(torch.relu(self.bn1(x))))))

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.f(x)

    def dual(self, x: Tensor, alpha: float) -> Tensor:
        return self.f(x) + alpha * x


class ResNet(nn.Module):
    """Two stages: `depth` blocks of one shape, then one that halves the image and `depth` more."""

    def __init__(self, block: type[Basic] | type[Bottleneck] | type[Preactivated], depth: int = 2) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.layer1 = nn.Sequential(*(block(8, 8) for _ in range(depth)))
        self.layer2 = nn.Sequential(block(8, 16, 2), *(block(16, 16) for _ in range(depth)))
        self.fc = nn.Linear(16, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.layer2(self.layer1(self.stem(images))).mean(dim=(2, 3)))

    def dual(self, images: Tensor, alpha: float, beta: float) -> Tensor:
        x = dual_run([block.dual for block in self.layer1], self.stem(images), alpha, beta)
        first, *others = self.layer2
        x = dual_run([block.dual for block in others], first(x), alpha, beta)
        return self.fc(x.mean(dim=(2, 3)))


class Layer(nn.Module):
    """A transformer's layer, of two residual blocks, with norms before them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def attend(self, x: Tensor) -> Tensor:
        q = self.norm1(x)
        return self.attention(q, q, q, need_weights=False)[0]

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(x)
        return x + self.mlp(self.norm2(x))

    def duals(self) -> list[Function]:
        return [
            lambda x, alpha: self.attend(x) + alpha * x,
            lambda x, alpha: self.mlp(self.norm2(x)) + alpha * x,
        ]


class Transformer(nn.Module):
    def __init__(self, depth: int = 2) -> None:
        super().__init__()
        self.inputs, self.positions = nn.Linear(3, 8), nn.Parameter(torch.randn(6, 8))
        self.layers = nn.ModuleList(Layer(8) for _ in range(depth))
        self.norm, self.outputs = nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.inputs(tokens) + self.positions
        for layer in self.layers:
            x = layer(x)
        return self.outputs(self.norm(x))

    def dual(self, tokens: Tensor, alpha: float, beta: float) -> Tensor:
        x = self.inputs(tokens) + self.positions
        x = dual_run([dual for layer in self.layers for dual in layer.duals()], x, alpha, beta)
        return self.outputs(self.norm(x))


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "basic": lambda: (ResNet(Basic), torch.randn(4, 3, 8, 8)),
    "bottleneck": lambda: (ResNet(Bottleneck), torch.randn(4, 3, 8, 8)),
    "preactivated": lambda: (ResNet(Preactivated), torch.randn(4, 3, 8, 8)),
    "transformer": lambda: (Transformer(), torch.randn(2, 6, 3)),
}


def pretrained(name: str) -> tuple[nn.Module, Tensor]:
    """A network in float64 whose running averages have moved, and an input."""
    torch.manual_seed(0)
    model, x = NETWORKS[name]()
    model.double()
    for _ in range(3):
        model(torch.randn_like(x, dtype=torch.double))
    return model, x.double()


def converted(name: str) -> tuple[nn.Module, rg.ReversibleModule, Tensor]:
    """Such a network, the converted one that shares its weights, and an input."""
    return copy.deepcopy(_converted(name))


@functools.cache
def _converted(name: str) -> tuple[nn.Module, rg.ReversibleModule, Tensor]:
    model, x = pretrained(name)
    return model, rg.dual_residual(model, x, alpha=0.75, beta=0.25), x
