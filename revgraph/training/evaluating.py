"""How well a network does on samples it was not trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from revgraph.training.processes import Together
from revgraph.training.tasks import Task, loss_of, right


@dataclass(frozen=True, slots=True)
class Score:
    """The mean cross-entropy in nats and the share of right answers over so many `labels`.

    An image has one label. Where labels are bytes, `bits_per_byte` is the loss in bits.
    """

    loss: float
    accuracy: float
    labels: int
    bits_per_byte: float | None = None


def evaluate(
    net: nn.Module,
    data: Task,
    *,
    batch: int,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
    together: Together | None = None,
) -> Score:
    """The score of `net` on the test split, in evaluation mode and without gradients.

    `progress` is called with the samples done and the samples in all after each batch. The net is in training
    mode afterwards if it was so before. Processes that are `together` test every so manieth batch each, and
    have the score of all.
    """
    rank, count = (together.rank, together.count) if together is not None else (0, 1)
    training = net.training
    net.eval()
    total = len(data.test)
    loss, hits, judged = 0.0, 0, 0
    try:
        with torch.no_grad():
            for start in range(rank * batch, total, count * batch):
                part = slice(start, start + batch)
                inputs, labels = (tensor.to(device) for tensor in data.tested(part))
                logits = net(inputs)
                loss += loss_of(logits, labels, "sum").item()
                hits += int(right(logits, labels).sum())
                judged += labels.numel()
                if progress is not None:
                    progress(min(start + count * batch, total), total)
    finally:
        net.train(training)
    if together is not None:
        loss, hits, judged = together.sum([loss, hits, judged])
    mean = loss / judged
    return Score(mean, hits / judged, int(judged), data.bits_per_byte(mean))
