"""Nets with several outputs: heads, dictionaries, features on the way, indices, distributions."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from planning.corpus.registry import net
from torch import Tensor, nn


def rows() -> tuple[Tensor]:
    return (torch.randn(4, 8),)


@net(rows)
class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU())
        self.policy, self.value = nn.Linear(12, 5), nn.Linear(12, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.trunk(x)
        return F.log_softmax(self.policy(x), -1), self.value(x).squeeze(-1)


@net(rows)
class DictionaryOfOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.f = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: Tensor) -> dict[str, Tensor | list[Tensor]]:
        hidden = []
        for f in self.f:
            x = x + torch.tanh(f(x))
            hidden.append(x)
        return {"last": x * 2, "hidden": hidden}


@net(lambda: (torch.randn(2, 3, 8, 8),))
class DeepSupervision(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(nn.Sequential(nn.Conv2d(c, 4, 3, 2, 1), nn.ReLU()) for c in (3, 4))
        self.heads = nn.ModuleList(nn.Conv2d(4, 2, 1) for _ in range(2))

    def forward(self, x: Tensor) -> list[Tensor]:
        found = []
        for stage, head in zip(self.stages, self.heads, strict=True):
            x = stage(x)
            found.append(F.interpolate(head(x), size=8))
        return found


@net(rows)
class IndicesBesides(nn.Module):
    """An output without a gradient, and one that is an input's own."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = self.two(F.relu(self.one(x)))
        return logits, logits.argmax(-1), x


@net(rows)
class VariationalOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(8, 6), nn.Sequential(nn.Linear(3, 8), nn.Sigmoid())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.encode(x).chunk(2, -1)
        z = mean + torch.randn_like(mean) * torch.exp(0.5 * log_variance)
        return self.decode(z), mean, log_variance


class Result(NamedTuple):
    logits: Tensor
    features: Tensor


@net(rows)
class NamedResults(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Result:
        y = x + F.gelu(self.one(x))
        return Result(self.two(y), y)


@net(rows)
class PiecesOfOne(nn.Module):
    """Outputs that are views of one tensor, and one of them twice."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(8, 12)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        a, b, c = torch.sin(self.one(x)).split(4, -1)
        return a, b, c, b


@net(rows)
class TargetWithoutGradients(nn.Module):
    """A branch that no gradient reaches, and a detached copy of one that gets one."""

    def __init__(self) -> None:
        super().__init__()
        self.online, self.target = nn.Linear(8, 4), nn.Linear(8, 4)
        self.predict = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            target = F.normalize(torch.tanh(self.target(x)), dim=-1)
        guess = F.normalize(self.predict(F.relu(self.online(x))), dim=-1)
        return 2 - 2 * (guess * target).sum(-1), guess.detach()


@net(rows)
class DetachedTarget(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.online, self.target = nn.Linear(8, 4), nn.Linear(8, 4).requires_grad_(False)
        self.predict = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        target = F.normalize(torch.tanh(self.target(x)), dim=-1)
        guess = F.normalize(self.predict(F.relu(self.online(x))), dim=-1)
        return 2 - 2 * (guess * target.detach()).sum(-1), guess.detach()


@net(rows)
class UnusedBranch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused, self.last = nn.Linear(8, 8), nn.Linear(8, 9), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.used(x))
        torch.tanh(self.unused(y))
        return self.last(y)
