"""The run as a whole: what it writes, returns and refuses."""

from __future__ import annotations

import copy
import errno
import io
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from rich.console import Console
from torch import nn

import revgraph as rg
from revgraph.errors import DataError
from revgraph.training import loop
from revgraph.training.checkpoints import checkpoints
from revgraph.training.checksums import write_checksums
from revgraph.training.errors import TrainingError
from revgraph.training.evaluating import evaluate
from revgraph.training.images import Data
from revgraph.training.loop import fit
from revgraph.training.metrics import Metrics, Row, read_rows
from revgraph.training.progress import Bar
from revgraph.training.recipe import Recipe
from revgraph.training.watching import Silent

Make = Callable[[], nn.Module]
RECIPE = Recipe(steps=8, batch=20)


def train(net: nn.Module, data: Data, folder: Path, recipe: Recipe = RECIPE, **options: Any) -> loop.Result:
    return fit(net, data, recipe, folder, **{"tensorboard": False, **options})


def curve(folder: Path) -> list[tuple[object, ...]]:
    """All columns that do not tell the time."""
    return [
        (row.step, row.epoch, row.loss, row.accuracy, row.learning_rate, row.test_loss, row.test_accuracy)
        for row in read_rows(folder)
    ]


class Pressing(Silent):
    """Presses Ctrl-C after one step, and once more after another."""

    def __init__(self, *steps: int) -> None:
        self.steps = steps
        self.told = 0

    def stepped(self, row: Row) -> None:
        if row.step in self.steps:
            signal.raise_signal(signal.SIGINT)

    def interrupted(self) -> None:
        self.told += 1


def test_run_writes_metrics_and_checkpoints(tiny: Make, few: Data, tmp_path: Path) -> None:
    result = train(tiny(), few, tmp_path, save_every=3, evaluate_every=4)
    assert (result.step, result.steps, result.interrupted) == (8, 8, False)
    assert result.checkpoint == checkpoints(tmp_path / "checkpoints")[-1]
    assert [checkpoint.step for checkpoint in checkpoints(tmp_path / "checkpoints")] == [6, 8]
    rows = read_rows(tmp_path)
    assert [row.step for row in rows] == list(range(1, 9))
    assert [row.step for row in rows if row.test_loss is not None] == [4, 8]
    assert [row.learning_rate for row in rows] == [0.1] * 4 + [0.01] * 2 + [0.001] * 2
    assert rows[4].epoch == 1.0
    assert result.test is not None and result.test.accuracy == rows[-1].test_accuracy


def test_evaluates_and_saves_once_an_epoch_by_default(tiny: Make, few: Data, tmp_path: Path) -> None:
    train(tiny(), few, tmp_path)
    assert [row.step for row in read_rows(tmp_path) if row.test_loss is not None] == [5, 8]
    assert [checkpoint.step for checkpoint in checkpoints(tmp_path / "checkpoints")] == [5, 8]


def test_training_learns(tiny: Make, digits: Data, tmp_path: Path) -> None:
    result = train(tiny(), digits, tmp_path, Recipe(steps=60))
    assert result.test is not None and result.test.accuracy > 0.85


def test_same_seed_same_curve(tiny: Make, few: Data, tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        train(tiny(), few, tmp_path / name, replace(RECIPE, seed=seed))
    assert curve(tmp_path / "a") == curve(tmp_path / "b")
    assert curve(tmp_path / "a") != curve(tmp_path / "c")


def test_ctrl_c_saves_and_the_resumed_run_is_bitwise_the_same(tiny: Make, few: Data, tmp_path: Path) -> None:
    whole, parts = tiny(), tiny()
    train(whole, few, tmp_path / "whole")
    watch = Pressing(3)
    first = train(parts, few, tmp_path / "parts", watch=watch)
    assert (first.step, first.interrupted, first.test, first.checkpoint.step) == (3, True, None, 3)
    assert watch.told == 1
    parts = tiny()
    assert not train(parts, few, tmp_path / "parts", resume=True).interrupted
    assert curve(tmp_path / "parts") == curve(tmp_path / "whole")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[name]), name


def test_second_ctrl_c_aborts_at_once(tiny: Make, few: Data, tmp_path: Path) -> None:
    class Twice(Pressing):
        def interrupted(self) -> None:
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(tiny(), few, tmp_path, save_every=2, watch=Twice(3))
    assert [checkpoint.step for checkpoint in checkpoints(tmp_path / "checkpoints")] == [2]
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_stays_ignored_where_it_is(tiny: Make, few: Data, tmp_path: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    watch = Pressing(3)
    assert not train(tiny(), few, tmp_path, watch=watch).interrupted
    assert watch.told == 0


def test_ctrl_c_during_the_last_step_is_a_finished_run(tiny: Make, few: Data, tmp_path: Path) -> None:
    result = train(tiny(), few, tmp_path, watch=Pressing(8))
    assert not result.interrupted and result.test is not None


def test_finished_run_can_be_resumed_to_its_result(tiny: Make, few: Data, tmp_path: Path) -> None:
    done = train(tiny(), few, tmp_path)
    before = curve(tmp_path)
    again = train(tiny(), few, tmp_path, resume=True)
    assert (again.step, again.test) == (8, done.test)
    assert curve(tmp_path) == before


def test_loss_that_is_not_finite_stops_with_an_error(tiny: Make, few: Data, tmp_path: Path) -> None:
    match = (
        r"the loss is (nan|inf) at step \d+ \(learning rate 1e\+18\): training has diverged\. "
        r"Start again with a lower learning rate.* There is no checkpoint yet\."
    )
    with pytest.raises(TrainingError, match=match):
        train(tiny(), few, tmp_path, Recipe(steps=50, batch=20, learning_rate=1e18), save_every=100)
    assert all(abs(row.loss) < float("inf") for row in read_rows(tmp_path))


def test_weights_that_are_not_finite_are_never_saved(tiny: Make, few: Data, tmp_path: Path) -> None:
    net = tiny()

    class Spoil(Silent):
        def stepped(self, row: Row) -> None:
            if row.step == 4:
                next(net.parameters()).data.fill_(float("nan"))

    with pytest.raises(TrainingError, match=r"after step 4.*The checkpoint of step 2 is intact"):
        train(net, few, tmp_path, save_every=2, watch=Spoil())


def test_folder_of_another_run_is_not_overwritten_unasked(tiny: Make, few: Data, tmp_path: Path) -> None:
    train(tiny(), few, tmp_path)
    with pytest.raises(TrainingError, match=r"holds a run already .*step 8\). Go on with --resume"):
        train(tiny(), few, tmp_path)
    train(tiny(), few, tmp_path, replace(RECIPE, steps=5), overwrite=True)
    assert [checkpoint.step for checkpoint in checkpoints(tmp_path / "checkpoints")] == [5]


def test_nothing_to_resume(tiny: Make, few: Data, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no checkpoint in .*to resume\. Start without --resume"):
        train(tiny(), few, tmp_path, resume=True)


def test_resuming_with_another_recipe_is_refused(tiny: Make, few: Data, tmp_path: Path) -> None:
    train(tiny(), few, tmp_path, watch=Pressing(2))
    other = replace(RECIPE, steps=9, seed=5)
    net = tiny()
    before = copy.deepcopy(net.state_dict())
    match = r"it was made with steps = 8, seed = 0, and this run asks for steps = 9, seed = 5"
    with pytest.raises(TrainingError, match=match):
        train(net, few, tmp_path, other, resume=True)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_resuming_with_other_data_is_refused(tiny: Make, few: Data, tmp_path: Path) -> None:
    train(tiny(), few, tmp_path, watch=Pressing(2))
    with pytest.raises(TrainingError, match=r"made with data = digits, and this run asks for data = other"):
        train(tiny(), replace(few, name="other"), tmp_path, resume=True)


def test_network_without_enough_classes_is_refused(few: Data, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(3072, 7))
    with pytest.raises(DataError, match=r"returns \[20, 7\] for 20 images of digits, which has 10 classes"):
        train(net, few, tmp_path)


def test_full_disk_under_the_metrics_is_a_clear_error(
    tiny: Make, few: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Metrics.write

    def full(self: Metrics, row: Row) -> None:
        if row.step == 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, row)

    monkeypatch.setattr(Metrics, "write", full)
    with pytest.raises(
        TrainingError, match=r"No space left.*The checkpoint of step 4 is intact\. Once there"
    ):
        train(tiny(), few, tmp_path, save_every=4)


def test_folder_that_cannot_be_made(tiny: Make, few: Data, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="cannot write to the folder"):
        train(tiny(), few, tmp_path / "file")


def test_bfloat16_computes_in_bfloat16_and_gives_the_net_back(
    tiny: Make, few: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AcceleratorState, "_shared_state", {})
    net = tiny()
    seen: list[torch.dtype] = []
    hook = net[1].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))  # type: ignore[index]
    result = train(net, few, tmp_path, replace(RECIPE, precision="bf16"))
    hook.remove()
    assert set(seen) == {torch.bfloat16}
    assert result.test is not None and {p.dtype for p in net.parameters()} == {torch.float32}
    twin = copy.deepcopy(net)
    assert "forward" not in vars(net) and twin(torch.zeros(2, 3, 32, 32)).dtype == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_inverted_net_learns_as_the_stored_one(
    inverted: Callable[[], rg.ReversibleModule],
    few: Data,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    precision: Any,
) -> None:
    monkeypatch.setattr(AcceleratorState, "_shared_state", {})
    recipe = replace(RECIPE, precision=precision)
    net, stored = inverted(), inverted()
    stored.plan = rg.keep_all(stored.graph)
    train(net, few, tmp_path / "inverted", recipe)
    train(stored, few, tmp_path / "stored", recipe)
    losses = [[row.loss for row in read_rows(tmp_path / name)] for name in ("inverted", "stored")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4 if precision == "no" else 0.1)
    assert copy.deepcopy(net).plan == net.plan


def plain(net: rg.ReversibleModule) -> rg.Plan:
    return rg.keep_all(net.graph)


@pytest.mark.slow
def test_resumed_run_goes_on_under_its_plan(
    inverted: Callable[[], rg.ReversibleModule], few: Data, tmp_path: Path
) -> None:
    whole = train(inverted(), few, tmp_path / "whole", plan=rg.keep_all)
    train(inverted(), few, tmp_path / "parts", plan=rg.keep_all, watch=Pressing(3))
    net = inverted()
    resumed = train(net, few, tmp_path / "parts", resume=True)
    assert net.plan == plain(net) != inverted().plan
    assert curve(tmp_path / "parts") == curve(tmp_path / "whole")
    assert resumed.test == whole.test


@pytest.mark.slow
def test_resumed_run_takes_the_plan_that_it_is_given(
    inverted: Callable[[], rg.ReversibleModule], few: Data, tmp_path: Path
) -> None:
    train(inverted(), few, tmp_path, watch=Pressing(3))
    net = inverted()
    train(net, few, tmp_path, resume=True, plan=rg.keep_all, watch=Pressing(5))
    assert net.plan == plain(net)
    again = inverted()
    assert train(again, few, tmp_path, resume=True).step == 8
    assert again.plan == plain(again)


@pytest.mark.slow
def test_checkpoint_without_a_plan_is_resumed_under_the_nets_own(
    inverted: Callable[[], rg.ReversibleModule], few: Data, tmp_path: Path
) -> None:
    folder = train(inverted(), few, tmp_path, plan=rg.keep_all, watch=Pressing(3)).checkpoint.folder
    state = torch.load(folder / "state.pt", weights_only=True)
    del state["plan"]
    torch.save(state, folder / "state.pt")
    write_checksums(folder, ("model.safetensors", "state.pt"))
    net = inverted()
    train(net, few, tmp_path, resume=True)
    assert net.plan == inverted().plan


@pytest.mark.slow
def test_plan_of_a_checkpoint_that_does_not_fit_says_what_to_do(
    inverted: Callable[..., rg.ReversibleModule], few: Data, tmp_path: Path
) -> None:
    folder = train(inverted(), few, tmp_path, watch=Pressing(3)).checkpoint.folder
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    net = inverted(batch=10)
    message = (
        f"under the plan in its checkpoint '{folder}': this plan is for another graph .*--plan or --budget"
    )
    with pytest.raises(rg.PlanError, match=message):
        train(net, few, tmp_path, resume=True)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert train(net, few, tmp_path, resume=True, plan=rg.keep_all).step == 8


def test_net_without_a_plan_has_none_in_its_checkpoint(tiny: Make, few: Data, tmp_path: Path) -> None:
    folder = train(tiny(), few, tmp_path).checkpoint.folder
    assert "plan" not in torch.load(folder / "state.pt", weights_only=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="fp16 works on a GPU")
def test_precision_that_does_not_work_here_is_a_clear_error(
    tiny: Make, few: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AcceleratorState, "_shared_state", {})
    with pytest.raises(TrainingError, match=r"precision 'fp16' does not work on a CPU: choose bf16 or no"):
        train(tiny(), few, tmp_path, replace(RECIPE, precision="fp16"))


def test_evaluation_is_exact_and_leaves_the_mode(tiny: Make, few: Data) -> None:
    net = tiny()
    whole = evaluate(net, few, batch=1000)
    parts = evaluate(net, few, batch=7)
    assert net.training and whole.labels == parts.labels == 40
    assert whole.accuracy == parts.accuracy and whole.loss == pytest.approx(parts.loss, rel=1e-5)


def test_bar_shows_means_over_steps(tiny: Make, few: Data, tmp_path: Path) -> None:
    text = io.StringIO()
    with Bar(Console(file=text, width=140)) as bar:
        train(tiny(), few, tmp_path, watch=bar)
    mean = None
    for row in read_rows(tmp_path)[:5]:
        mean = row.loss if mean is None else 0.9 * mean + 0.1 * row.loss
    assert f"step 5 of 8  loss {mean:.4f}" in text.getvalue()


def test_bar_shows_figures_on_a_terminal_and_lines_elsewhere(tiny: Make, few: Data, tmp_path: Path) -> None:
    for terminal in (True, False):
        text = io.StringIO()
        with Bar(Console(file=text, force_terminal=terminal, width=140)) as bar:
            train(tiny(), few, tmp_path / str(terminal), watch=bar)
        assert "step 5 of 8  loss" in text.getvalue() and "test accuracy" in text.getvalue()
        assert "images/s" in text.getvalue()
        assert ("8/8" in text.getvalue()) is terminal
