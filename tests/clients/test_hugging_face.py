"""A net in Hugging Face's Trainer: trained, evaluated, saved and resumed as the plain model is."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from clients.samples import Sentences, bert, gpt2
from torch import nn
from transformers import Trainer, TrainingArguments

import revgraph as rg

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning",
    "ignore::FutureWarning",
    "ignore:.*pin_memory.*",
    "ignore:The .grad attribute",
)

WAYS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "accumulation": {"gradient_accumulation_steps": 2},
    "bfloat16": {"bf16": True},
    "label smoothing": {"label_smoothing_factor": 0.1},
    "compiled": {"torch_compile": True, "torch_compile_backend": "aot_eager"},
}


def traced(model: nn.Module, classes: bool = False) -> Any:
    """The model's net, which holds as little as can be and recomputes for it."""
    net = rg.trace(model, **Sentences(classes).batch())
    net.plan = rg.plan(net.graph, budget="least")
    assert "recompute" in net.plan.decisions.values()
    return net


@pytest.fixture(scope="module")
def net() -> Any:
    """A language model's net of two blocks."""
    return traced(gpt2(2))


def trained(
    model: nn.Module, folder: Path, classes: bool = False, resume: Any = None, **options: Any
) -> Trainer:
    """The trainer after two epochs, or what was left of them."""
    arguments = TrainingArguments(
        str(folder),
        per_device_train_batch_size=4,
        per_device_eval_batch_size=4,
        num_train_epochs=2,
        logging_steps=1,
        eval_strategy="epoch",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        seed=3,
        **options,
    )
    data = Sentences(classes)
    trainer = Trainer(model, arguments, train_dataset=data, eval_dataset=data)  # pyright: ignore
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def history(trainer: Trainer) -> list[dict[str, Any]]:
    """What was logged of each step and evaluation, but for how long it took."""
    names = ("step", "loss", "grad_norm", "learning_rate", "eval_loss")
    return [{name: entry[name] for name in names if name in entry} for entry in trainer.state.log_history]


def assert_same(ours: Trainer, theirs: Trainer) -> None:
    """The same history, and the same weights in the end."""
    assert len(history(theirs)) >= 4
    torch.testing.assert_close(history(ours), history(theirs), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.model.state_dict(), theirs.model.state_dict())  # pyright: ignore


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_training_is_that_of_the_plain_model(way: str, net: Any, tmp_path: Path) -> None:
    runs = [
        trained(copy.deepcopy(each), tmp_path / name, save_strategy="no", **WAYS[way])
        for name, each in (("net", net), ("plain", gpt2(2)))
    ]
    assert_same(*runs)


@pytest.mark.slow
@pytest.mark.parametrize("make", [gpt2, bert])
def test_saved_models_are_plain_ones_and_training_resumes(make: Callable[[], Any], tmp_path: Path) -> None:
    classes = make is bert
    runs: list[list[Trainer]] = []
    for name in ("net", "plain"):
        model = traced(make(), classes) if name == "net" else make()
        other = copy.deepcopy(model)
        options = dict(save_strategy="epoch", load_best_model_at_end=True)
        whole = trained(model, tmp_path / name, classes, **options)
        checkpoint = tmp_path / name / "checkpoint-4"
        resumed = trained(other, tmp_path / f"{name} resumed", classes, str(checkpoint), **options)
        whole.save_model(str(tmp_path / f"{name} saved"))
        runs.append([whole, resumed])
    for ours, theirs in zip(*runs, strict=True):
        assert_same(ours, theirs)
    saved = type(make()).from_pretrained(tmp_path / "net saved")
    torch.testing.assert_close(saved.state_dict(), runs[1][0].model.state_dict())  # pyright: ignore
    configurations = [(tmp_path / f"{name} saved" / "config.json").read_text() for name in ("net", "plain")]
    assert configurations[0] == configurations[1]


@pytest.mark.slow
def test_checkpointing_gives_way_to_the_plan(net: Any, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="takes the place of gradient checkpointing"):
        ours = trained(copy.deepcopy(net), tmp_path / "net", save_strategy="no", gradient_checkpointing=True)
    assert_same(ours, trained(gpt2(2), tmp_path / "plain", save_strategy="no"))


def test_generation_is_the_models(net: Any) -> None:
    words = Sentences().batch()["input_ids"][:, :4]
    found, wanted = [
        each.eval().generate(words, max_new_tokens=4, do_sample=False)
        for each in (copy.deepcopy(net), gpt2(2))
    ]
    assert torch.equal(found, wanted)
