"""Text as a task: windows of bytes, runs that resume bit for bit, and what a trained model writes on."""

from __future__ import annotations

import copy
import functools
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import revgraph as rg
from revgraph.errors import DataError
from revgraph.specs import InputShape
from revgraph.training.batches import Batches
from revgraph.training.data import load_data
from revgraph.training.errors import TrainingError
from revgraph.training.evaluating import evaluate
from revgraph.training.generating import generate
from revgraph.training.images import Data
from revgraph.training.loop import fit
from revgraph.training.metrics import Row, read_rows
from revgraph.training.optimizing import optimizer
from revgraph.training.recipe import Recipe, learning_rate
from revgraph.training.tasks import fitted
from revgraph.training.text import Passage, Text, load_text
from revgraph.training.usual import usual_recipe
from revgraph.training.watching import Silent

LENGTH = 12
RHYME = b"One for the master, and one for the dame, and one for the little boy. " * 20
RECIPE = Recipe(steps=8, batch=4, learning_rate=0.01, warmup=2, weight_decay=0.1, optimizer="adamw")


@pytest.fixture
def text(tmp_path: Path) -> Text:
    path = tmp_path / "rhyme.txt"
    path.write_bytes(RHYME)
    return load_text(path, LENGTH)


@functools.cache
def _planned() -> rg.ReversibleModule:
    torch.manual_seed(7)
    return rg.load("reversible-lm", batch=4, width=16, depth=2, heads=2, length=LENGTH, dropout=0.1)


def model(stored: bool = False) -> rg.ReversibleModule:
    """A small language model with dropout, equal at every call."""
    net = copy.deepcopy(_planned())
    net.plan = rg.keep_all(net.graph) if stored else rg.decide(net.graph, {})
    return net


def contents(windows: Tensor) -> list[bytes]:
    return [bytes(window.tolist()) for window in windows]


def curve(folder: Path) -> list[tuple[object, ...]]:
    return [
        (
            row.step,
            row.epoch,
            row.loss,
            row.accuracy,
            row.learning_rate,
            row.test_loss,
            row.test_bits_per_byte,
        )
        for row in read_rows(folder)
    ]


def test_labels_are_the_bytes_one_further_on(text: Text) -> None:
    inputs, labels = Batches(text, batch=50, seed=0).draw()
    assert inputs.shape == labels.shape == (50, LENGTH) and inputs.dtype == labels.dtype == torch.int64
    assert torch.equal(inputs[:, 1:], labels[:, :-1])
    front = RHYME[: len(text.train.bytes)]
    for window, last in zip(contents(inputs), labels[:, -1].tolist(), strict=True):
        assert window + bytes([last]) in front


def test_split_is_by_position_and_the_test_is_cut_once_through(text: Text) -> None:
    cut = len(text.train.bytes)
    assert contents(text.train.bytes[None]) == [RHYME[:cut]] and len(RHYME) - cut == len(RHYME) // 10
    inputs, labels = text.tested(slice(0, len(text.test)))
    assert b"".join(contents(inputs)) == RHYME[cut : cut + LENGTH * len(text.test)]
    assert contents(labels)[0] == RHYME[cut + 1 : cut + 1 + LENGTH]


def test_a_pass_starts_once_in_every_stretch_of_a_window() -> None:
    numbers = Passage(torch.arange(241, dtype=torch.uint8), 24)
    text = Text("text", numbers, numbers, digest="")
    inputs, _ = Batches(text, batch=10, seed=3).draw()
    starts = sorted(inputs[:, 0].tolist())
    moved = [(start - 24 * index) for index, start in enumerate(starts)]
    assert all(-24 < step < 48 for step in moved) and len(set(moved)) > 3


def test_stream_goes_on_from_a_saved_state_and_follows_its_seed(text: Text) -> None:
    one = Batches(text, batch=30, seed=4)
    for _ in range(5):
        one.draw()
    state = one.state()
    expected = [one.draw() for _ in range(4)]
    other = Batches(text, batch=30, seed=99)
    assert not torch.equal(other.draw()[0], expected[0][0])
    other.restore(state)
    for inputs, labels in expected:
        again = other.draw()
        assert torch.equal(inputs, again[0]) and torch.equal(labels, again[1])


def test_processes_draw_their_parts_of_the_same_windows(text: Text) -> None:
    whole = Batches(text, batch=30, seed=4)
    parts = [Batches(text, batch=30, seed=4, rank=rank, count=3) for rank in range(3)]
    for _ in range(3):
        drawn = [part.draw() for part in parts]
        assert torch.equal(torch.cat([inputs for inputs, _ in drawn]), whole.draw()[0])
    with pytest.raises(TrainingError, match="a batch of 100 windows cannot be split evenly over 3"):
        Batches(text, batch=100, seed=0, rank=1, count=3)


def test_score_is_over_every_byte_of_the_test(text: Text) -> None:
    net = model().eval()
    inputs, labels = text.tested(slice(0, len(text.test)))
    with torch.no_grad():
        logits = net(inputs).reshape(-1, 256)
    expected = functional.cross_entropy(logits.double(), labels.reshape(-1)).item()
    for batch in (1, 5, 100):
        score = evaluate(net, text, batch=batch)
        assert score.labels == labels.numel() and score.loss == pytest.approx(expected, rel=1e-5)
        assert score.bits_per_byte == pytest.approx(expected / math.log(2), rel=1e-5)
        assert score.accuracy == (logits.argmax(1) == labels.reshape(-1)).double().mean().item()


def test_interrupted_run_resumes_bit_for_bit(text: Text, tmp_path: Path) -> None:
    class Pressing(Silent):
        def stepped(self, row: Row) -> None:
            if row.step == 3:
                raise KeyboardInterrupt

    whole, parts = model(), model()
    options = {"tensorboard": False, "save_every": 2, "evaluate_every": 4}
    result = fit(whole, text, RECIPE, tmp_path / "whole", **options)  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        fit(parts, text, RECIPE, tmp_path / "parts", watch=Pressing(), **options)  # type: ignore[arg-type]
    parts = model()
    fit(parts, text, RECIPE, tmp_path / "parts", resume=True, **options)  # type: ignore[arg-type]
    assert curve(tmp_path / "parts") == curve(tmp_path / "whole")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[name]), name
    rows = read_rows(tmp_path / "whole")
    assert [row.step for row in rows if row.test_bits_per_byte is not None] == [4, 8]
    assert result.test is not None and rows[-1].test_bits_per_byte == result.test.bits_per_byte
    assert rows[-1].test_loss == pytest.approx(math.log(2) * (rows[-1].test_bits_per_byte or 0))


def test_resuming_with_another_text_is_refused(text: Text, tmp_path: Path) -> None:
    fit(model(), text, RECIPE, tmp_path / "run", tensorboard=False)
    other = tmp_path / "other.txt"
    other.write_bytes(RHYME.replace(b"dame", b"lady"))
    with pytest.raises(TrainingError, match="was made with sha256 = "):
        fit(model(), load_text(other, LENGTH), RECIPE, tmp_path / "run", resume=True, tensorboard=False)


def test_a_language_model_learns_the_rhyme_inverted_as_stored(text: Text, tmp_path: Path) -> None:
    recipe = replace(RECIPE, steps=60, batch=16)
    losses = []
    for name, stored in (("inverted", False), ("stored", True)):
        net = model(stored)
        result = fit(net, text, recipe, tmp_path / name, tensorboard=False, evaluate_every=60)
        rows = read_rows(tmp_path / name)
        losses.append([row.loss for row in rows[:20]])
        assert result.test is not None and result.test.loss < 0.5 * rows[0].loss
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_cosine_falls_from_the_warmed_rate_towards_nothing() -> None:
    rates = [learning_rate(replace(RECIPE, steps=102), step) for step in range(1, 103)]
    assert rates[:3] == [0.005, 0.01, 0.01]
    expected = [0.01 * (1 + math.cos(math.pi * done / 100)) / 2 for done in range(100)]
    assert rates[2:] == pytest.approx(expected) and 0 < rates[-1] < 1e-5


def test_adamw_has_the_recipes_figures_and_spares_embeddings() -> None:
    net = model()
    found = optimizer(net, RECIPE)
    assert isinstance(found, torch.optim.AdamW)
    assert [(g["lr"], g["betas"], g["weight_decay"]) for g in found.param_groups] == [
        (0.01, (0.9, 0.95), 0.1),
        (0.01, (0.9, 0.95), 0.0),
    ]
    decaying = {id(p) for p in found.param_groups[0]["params"]}
    names = {name for name, p in net.named_parameters() if id(p) in decaying}
    assert "block0.f.qkv.weight" in names and not any("embed" in name or "norm" in name for name in names)
    with pytest.raises(TrainingError, match="optimizer is adam, and must be sgd or adamw"):
        Recipe(steps=1, optimizer="adam")  # type: ignore[arg-type]


def test_usual_recipe_depends_on_the_data(text: Text, digits: Data) -> None:
    found = usual_recipe(text, steps=400)
    assert (found.optimizer, found.warmup, found.learning_rate, found.batch) == ("adamw", 20, 0.003, 16)
    assert usual_recipe(text, steps=400, optimizer="sgd").learning_rate == 0.1
    assert usual_recipe(digits) == Recipe(steps=500)
    assert usual_recipe(digits, optimizer="adamw", warmup=3, steps=9).warmup == 3
    assert usual_recipe(text, 2).steps == math.ceil(2 * len(text.train) / 16)


def test_pythons_own_documentation_is_there_and_real() -> None:
    text = load_data("text")
    assert isinstance(text, Text) and len(text.train) > 1_500 and len(text.test) > 150
    assert b"statement" in bytes(text.train.bytes.tolist())
    assert text.identity() == load_text().identity()


def test_folder_is_its_text_files_in_order(tmp_path: Path) -> None:
    for name, content in {
        "b.txt": RHYME,
        "a/z.md": b"first" + RHYME,
        "c.bin": b"\xff\xfe",
        "d.o": b"\0",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    text = load_data(f"text:{tmp_path}")
    assert isinstance(text, Text)
    whole = bytes(torch.cat([text.train.bytes, text.test.bytes]).tolist())
    assert whole == RHYME + b"\n" + b"first" + RHYME


def test_text_that_is_missing_short_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no file or folder '/nowhere'"):
        load_data("text:/nowhere")
    with pytest.raises(DataError, match=r"no file in .* is UTF-8 text"):
        load_data(f"text:{tmp_path}")
    for content in (b"", b"x", RHYME[:600]):
        (tmp_path / "short").write_bytes(content)
        with pytest.raises(
            DataError, match=r"the text is too short: of .* must be more than a window of 128"
        ):
            load_data(f"text:{tmp_path / 'short'}")


def test_network_that_takes_something_else_is_refused(text: Text, digits: Data) -> None:
    tokens = InputShape("tokens", (4, 30), torch.int64)
    image = InputShape("image", (4, 3, 32, 32), torch.float32)
    assert isinstance(found := fitted(text, [tokens]), Text) and found.train.length == 30
    assert fitted(digits, [image]) is digits
    with pytest.raises(DataError, match=r"takes image, \[4, 3, 32, 32\] of float32, and text gives bytes"):
        fitted(text, [image])
    with pytest.raises(DataError, match=r"takes tokens, \[4, 30\] of int64, and digits gives images"):
        fitted(digits, [tokens])
    with pytest.raises(DataError, match=r"takes 2 inputs \(tokens, image\), and text gives one"):
        fitted(text, [tokens, image])


def test_scores_of_another_shape_are_refused(text: Text, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Embedding(256, 8), nn.Linear(8, 200))
    match = (
        r"returns \[4, 12, 200\] for 4 windows of text, which has 256 classes: it must return \[4, 12, 256\]"
    )
    with pytest.raises(DataError, match=match):
        fit(net, text, RECIPE, tmp_path / "run", tensorboard=False)


def test_generated_bytes_follow_the_seed_and_the_scores() -> None:
    net = model()
    before = torch.get_rng_state()

    def write(**given: float) -> bytes:
        return generate(net, b"One", 20, length=LENGTH, **given)  # type: ignore[arg-type]

    assert write(seed=1) == write(seed=1) != write(seed=2)
    assert len(write()) == 20 and net.training and torch.equal(before, torch.get_rng_state())
    with torch.no_grad():
        likeliest = int(net.eval()(torch.tensor([list(b"One")]))[0, -1].argmax())
    assert write(temperature=1e-6)[0] == likeliest
    for prompt, temperature in ((b"", 1.0), (b"One", 0.0)):
        with pytest.raises(ValueError, match=r"empty prompt|temperature must be above 0, not 0\.0"):
            generate(net, prompt, 1, length=LENGTH, temperature=temperature)
