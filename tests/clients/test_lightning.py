"""A net in a LightningModule: fitted, validated, saved and resumed as the plain model is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as lightning
import torch
from clients.samples import streams
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import revgraph as rg

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning",
    "ignore::FutureWarning",
    "ignore::pytorch_lightning.utilities.warnings.PossibleUserWarning",
    "ignore:.*treespec.*",
    "ignore:Checkpoint directory",
)

WAYS: dict[str, dict[str, Any]] = {
    "as it is": {"precision": "64-true"},
    "accumulated and clipped": {
        "precision": "64-true",
        "accumulate_grad_batches": 2,
        "gradient_clip_val": 0.1,
    },
    "bfloat16": {"precision": "bf16-mixed"},
    "two processes": {"precision": "64-true", "devices": 2, "strategy": "ddp_fork"},
}


class Module(lightning.LightningModule):
    """The usual module around a network, which remembers the losses."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.losses: list[float] = []

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("loss", loss, sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 1e-2)


def loader() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(64, 32, generator=generator)
    return DataLoader(TensorDataset(x, torch.randint(3, (64,), generator=generator)), 8)


def module(reversible: bool) -> Module:
    model = streams()
    if not reversible:
        return Module(model)
    net = rg.trace(model, torch.zeros(8, 32))
    net.plan = rg.decide(net.graph, {})
    return Module(net)


def trainer(folder: Path, **options: Any) -> lightning.Trainer:
    options = {"devices": 1, "max_epochs": 2, **options}
    return lightning.Trainer(
        default_root_dir=str(folder),
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def assert_same(ours: Module, theirs: Module, exact: bool = True) -> None:
    """The same losses and weights, up to the rounding of inversion in float64."""
    close: dict[str, float] = {"rtol": 1e-9, "atol": 1e-9} if exact else {"rtol": 1e-2, "atol": 1e-2}
    torch.testing.assert_close(ours.losses, theirs.losses, **close)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), **close)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_fitting_is_that_of_the_plain_model(way: str, tmp_path: Path) -> None:
    runs, values = [], []
    for reversible in (True, False):
        run = module(reversible)
        lightning.seed_everything(3, verbose=False)
        training = trainer(tmp_path / str(reversible), **WAYS[way])
        training.fit(run, loader(), loader())
        values.append(training.callback_metrics["loss"])
        runs.append(run)
    assert_same(runs[0], runs[1], exact=way != "bfloat16")
    torch.testing.assert_close(values[0], values[1], rtol=1e-4, atol=1e-4)


def test_checkpoints_are_the_plain_models_and_training_resumes(tmp_path: Path) -> None:
    ended: list[list[Module]] = []
    for reversible in (True, False):
        folder = tmp_path / str(reversible)
        lightning.seed_everything(3, verbose=False)
        first = trainer(folder, precision="64-true", max_epochs=1)
        first.fit(module(reversible), loader())
        first.save_checkpoint(folder / "one.ckpt")
        second = module(reversible)
        lightning.seed_everything(4, verbose=False)
        training = trainer(folder, precision="64-true", max_epochs=2)
        training.fit(second, loader(), ckpt_path=str(folder / "one.ckpt"))
        training.save_checkpoint(folder / "two.ckpt")
        loaded = Module.load_from_checkpoint(folder / "two.ckpt", net=streams())  # the plain model
        loaded.losses = second.losses
        ended.append([second, loaded])
    for ours, theirs in zip(*ended, strict=True):
        assert_same(ours, theirs)


def test_half_precision_throughout_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(rg.TraceError, match=r"bfloat16 in this call.*autocast.*half_streams=True"):
        trainer(tmp_path, precision="bf16-true", max_epochs=1).fit(module(True), loader())
