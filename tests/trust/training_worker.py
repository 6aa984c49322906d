"""`training_worker.py FOLDER NET`: one of several processes that train together, without a launcher.

A run into `FOLDER/even`; the same again, which is refused, and noted in `FOLDER/refused-RANK`; then the
command line's run that the arguments after NET ask for, in which process 1 kills itself at step 7.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch

import revgraph as rg
from revgraph.cli import main
from revgraph.errors import RevgraphError
from revgraph.training.data import load_data
from revgraph.training.loop import fit
from revgraph.training.recipe import Recipe
from revgraph.training.trainer import Trainer, Update

RANK = int(os.environ.get("RANK", 0))
EVEN = """
inputs: {image: [3, 32, 32]}
layers:
  - small: {AvgPool2d: 8}
  - stem: {Conv2d: {in_channels: 3, out_channels: 4, kernel_size: 1}}
  - streams: {Split: 2}
  - block: {Additive: {f: {Conv2d: [2, 2, 1]}, g: {Conv2d: [2, 2, 1]}}, repeat: 2}
  - joined: Concatenate
  - flat: Flatten
  - head: {Linear: {in_features: 64, out_features: 10}}
"""

step = Trainer.step


def killed(trainer: Trainer, number: int) -> Update:
    if RANK == 1 and number == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(trainer, number)


def even(folder: Path) -> None:
    """A run whose network treats each image by itself."""
    torch.manual_seed(1)
    spec = folder.parent / f"{folder.name}-{RANK}.yaml"
    spec.write_text(EVEN)
    net = rg.load(str(spec), batch=20)
    fit(net, load_data("digits"), Recipe(steps=5, batch=20), folder, tensorboard=False)


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, *words = sys.argv[1:]
    even(Path(folder, "even"))
    try:
        even(Path(folder, "even"))
    except RevgraphError as error:
        Path(folder, f"refused-{RANK}").write_text(f"{type(error).__name__}: {error}")
    Trainer.step = killed  # type: ignore[method-assign]
    sys.argv[1:] = words
    main()
