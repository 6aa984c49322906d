"""A run in a process of its own: `worker.py FOLDER [resume] [kill-step | kill-save]`.

With `kill-step` the process kills itself after step 7, with `kill-save` in the middle of writing the
checkpoint of step 8; the checkpoint of step 4 is whole by then.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import revgraph as rg
from revgraph.training.data import load_data
from revgraph.training.loop import fit
from revgraph.training.metrics import Row
from revgraph.training.recipe import Recipe
from revgraph.training.watching import Silent

write = torch.save


def function() -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(0.3), nn.Conv2d(3, 3, 3, padding=1))


class Net(nn.Module):
    """Two couplings with batch normalisation and dropout inside, between ordinary layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.AvgPool2d(4), nn.Conv2d(3, 6, 3))
        self.block = rg.Additive(function(), function())
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(216, 10))

    def forward(self, images: Tensor) -> Tensor:
        x1, x2 = self.stem(images).chunk(2, 1)
        return self.head(torch.cat(self.block(x1, x2), 1))


class Killing(Silent):
    def stepped(self, row: Row) -> None:
        if row.step == 7:
            os.kill(os.getpid(), signal.SIGKILL)


def write_half(state: Any, path: Path) -> None:
    if state["step"] == 8:
        path.write_bytes(b"half of a state")
        os.kill(os.getpid(), signal.SIGKILL)
    write(state, path)


def run(folder: str, *words: str) -> None:
    torch.manual_seed(1)
    net = rg.trace(Net(), torch.zeros(24, 3, 32, 32))
    net.plan = rg.decide(net.graph, {"block.f": "invert", "block.g": "invert"})
    if "kill-save" in words:
        torch.save = write_half  # type: ignore[assignment]
    fit(
        net,
        load_data("digits"),
        Recipe(steps=12, batch=24, warmup=2),
        folder,
        resume="resume" in words,
        save_every=4,
        evaluate_every=3,
        tensorboard=False,
        watch=Killing() if "kill-step" in words else None,
    )


if __name__ == "__main__":
    for task in " ".join(sys.argv[1:]).split(" + "):
        run(*task.split())
