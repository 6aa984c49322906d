"""Nets whose forward returns a loss, or a loss besides other things."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from planning.corpus.registry import net
from torch import Tensor, nn


def rows() -> tuple[Tensor]:
    return (torch.randn(4, 8),)


def labelled() -> tuple[Tensor, Tensor]:
    return torch.randn(4, 8), torch.randint(5, (4,))


@net(labelled)
class CrossEntropyInside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 5))
        self.criterion = nn.CrossEntropyLoss(label_smoothing=0.1)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return self.criterion(self.body(x), labels)


@net(labelled)
class LossAndLogits(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        for layer in self.body:
            x = x + F.gelu(layer(x))
        logits = self.head(x)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


@net(rows, untraced="read past their attributes")
class PenaltyOfAllParameters(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(8, 3), nn.Linear(3, 8)

    def forward(self, x: Tensor) -> Tensor:
        code = torch.sigmoid(self.encode(x))
        penalty = code.abs().mean() + 1e-2 * sum(weight.pow(2).sum() for weight in self.parameters())
        return F.mse_loss(self.decode(code), x) + penalty


@net(rows)
class ReconstructionAndPenalty(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(8, 3), nn.Linear(3, 8)

    def forward(self, x: Tensor) -> Tensor:
        code = torch.sigmoid(self.encode(x))
        weights = [self.encode.weight, self.decode.weight]
        penalty = code.abs().mean() + 1e-2 * sum(weight.pow(2).sum() for weight in weights)
        return F.mse_loss(self.decode(code), x) + penalty


@net(rows)
class EvidenceLowerBound(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(8, 6), nn.Linear(3, 8)

    def forward(self, x: Tensor) -> Tensor:
        mean, log_variance = self.encode(x).chunk(2, -1)
        z = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        likelihood = F.binary_cross_entropy_with_logits(self.decode(z), torch.sigmoid(x), reduction="sum")
        return likelihood - 0.5 * torch.sum(1 + log_variance - mean.pow(2) - log_variance.exp())


@net(lambda: (torch.randn(4, 8), torch.randn(4, 6)))
class ContrastivePairs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 5), nn.Linear(6, 5)
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        a, b = F.normalize(self.one(x), dim=-1), F.normalize(self.two(y), dim=-1)
        logits = self.scale.exp() * a @ b.t()
        labels = torch.arange(len(a), device=a.device)
        return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.t(), labels)) / 2


@net(lambda: (torch.randn(4, 8), torch.randn(4, 8), torch.randn(4, 8)))
class Triplets(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 4))

    def forward(self, anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        return F.triplet_margin_loss(
            self.embed(anchor), self.embed(positive), self.embed(negative), margin=5.0
        )


@net(lambda: (torch.randn(6, 2, 5), torch.randint(1, 5, (2, 3))))
class TemporalClassification(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(5, 5)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        scores = self.body(x).log_softmax(-1)
        return F.ctc_loss(scores, labels, torch.full((2,), 6), torch.full((2,), 3))


@net(
    lambda: (
        torch.randn(6, 2, 5),
        torch.randint(1, 5, (2, 3)),
        torch.full((2,), 6),
        torch.full((2,), 3),
    )
)
class TemporalClassificationOfGivenLengths(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(5, 5)

    def forward(self, x: Tensor, labels: Tensor, lengths: Tensor, label_lengths: Tensor) -> Tensor:
        return F.ctc_loss(self.body(x).log_softmax(-1), labels, lengths, label_lengths)


@net(lambda: (torch.randint(20, (2, 6)),))
class NextTokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.head = nn.Embedding(20, 8), nn.Linear(8, 8), nn.Linear(8, 20)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        x = x + F.silu(self.mix(x))
        logits = self.head(x)
        return F.cross_entropy(logits[:, :-1].reshape(-1, 20), ids[:, 1:].reshape(-1))


@net(rows)
class Distillation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.student, self.teacher = nn.Linear(8, 5), nn.Linear(8, 5).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        wanted = F.softmax(self.teacher(x) / 2, -1)
        return F.kl_div(F.log_softmax(self.student(x) / 2, -1), wanted, reduction="batchmean") * 4


@net(rows)
class AuxiliaryOnTheWay(nn.Module):
    """Losses of layers that are added up beside the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(())
        for layer in self.layers:
            y = torch.tanh(layer(x))
            total = total + y.var()
            x = x + y
        return x, total
