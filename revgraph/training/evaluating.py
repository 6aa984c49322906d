"""How well a network does on images it was not trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from revgraph.training.images import Data, normalised
from revgraph.training.processes import Together


@dataclass(frozen=True, slots=True)
class Score:
    """The mean cross-entropy in nats and the share of right answers over `images` images."""

    loss: float
    accuracy: float
    images: int


def evaluate(
    net: nn.Module,
    data: Data,
    *,
    batch: int,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
    together: Together | None = None,
) -> Score:
    """The score of `net` on the test split, in evaluation mode and without gradients.

    `progress` is called with the images done and the images in all after each batch. The net is in training
    mode afterwards if it was so before. Processes that are `together` test every so manieth batch each, and
    have the score of all.
    """
    rank, count = (together.rank, together.count) if together is not None else (0, 1)
    training = net.training
    net.eval()
    total = len(data.test)
    loss, right = 0.0, 0
    try:
        with torch.no_grad():
            for start in range(rank * batch, total, count * batch):
                part = slice(start, start + batch)
                images = normalised(data.test.pixels[part], data.mean).to(device)
                labels = data.test.labels[part].to(device)
                logits = net(images)
                loss += functional.cross_entropy(logits, labels, reduction="sum").item()
                right += int((logits.argmax(1) == labels).sum())
                if progress is not None:
                    progress(min(start + count * batch, total), total)
    finally:
        net.train(training)
    if together is not None:
        loss, right = together.sum([loss, right])
    return Score(loss / total, right / total, total)
