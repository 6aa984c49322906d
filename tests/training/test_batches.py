"""Augmentation and data order: reproducible by seed, resumable at any batch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from revgraph.training.augmentation import augmented
from revgraph.training.batches import Batches
from revgraph.training.errors import TrainingError
from revgraph.training.images import Data


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_crops_are_windows_of_the_padded_image() -> None:
    images = torch.randn(8, 3, 32, 32, generator=generator(0))
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    places = set()
    for image, frame in zip(augmented(images, generator(1), flip=False), padded, strict=True):
        found = [
            (row, column)
            for row in range(5)
            for column in range(5)
            if torch.equal(frame[:, row : row + 32, column : column + 32], image)
        ]
        assert len(found) == 1
        places.add(found[0])
    assert len(places) > 1


def test_about_half_are_mirrored_when_asked() -> None:
    images = torch.randn(200, 1, 8, 8, generator=generator(0))
    flipped = augmented(images, generator(3), flip=True, pad=0)
    mirrored = (flipped == images.flip(3)).flatten(1).all(1)
    same = (flipped == images).flatten(1).all(1)
    assert bool((mirrored ^ same).all())
    assert 70 < int(mirrored.sum()) < 130


def test_augmentation_draws_from_its_generator_only() -> None:
    images = torch.randn(4, 3, 32, 32, generator=generator(0))
    before = torch.get_rng_state()
    first = augmented(images, generator(5), flip=True)
    assert torch.equal(first, augmented(images, generator(5), flip=True))
    assert not torch.equal(first, augmented(images, generator(6), flip=True))
    assert torch.equal(before, torch.get_rng_state())


def test_every_image_is_seen_once_a_pass(few: Data) -> None:
    labels = torch.arange(100)
    batches = Batches(replace(few, train=replace(few.train, labels=labels)), batch=30, seed=0)
    seen = torch.cat([batches.draw()[1] for _ in range(10)])  # three passes over 100 images
    for start in (0, 100, 200):
        assert seen[start : start + 100].sort().values.tolist() == list(range(100))
    assert seen[:100].tolist() != seen[100:200].tolist()


def test_batches_are_of_one_size_even_beyond_the_data(few: Data) -> None:
    images, labels = Batches(few, batch=250, seed=0).draw()
    assert images.shape == (250, 3, 32, 32) and labels.shape == (250,)
    assert images.dtype == torch.float32 and labels.dtype == torch.int64


def test_stream_goes_on_from_a_saved_state(few: Data) -> None:
    one = Batches(few, batch=30, seed=4)
    for _ in range(5):
        one.draw()
    state = one.state()
    expected = [one.draw() for _ in range(6)]
    other = Batches(few, batch=30, seed=99)
    other.restore(state)
    for images, labels in expected:
        again = other.draw()
        assert torch.equal(images, again[0]) and torch.equal(labels, again[1])


@pytest.mark.parametrize("count", [2, 3])
def test_processes_draw_their_parts_of_the_same_batches(few: Data, count: int) -> None:
    data = replace(few, flip=True)
    whole = Batches(data, batch=30, seed=4)
    parts = [Batches(data, batch=30, seed=4, rank=rank, count=count) for rank in range(count)]
    for _ in range(5):
        images, labels = whole.draw()
        drawn = [part.draw() for part in parts]
        assert torch.equal(torch.cat([each[0] for each in drawn]), images)
        assert torch.equal(torch.cat([each[1] for each in drawn]), labels)
    assert all(str(part.state()) == str(whole.state()) for part in parts)


def test_batch_that_cannot_be_split_evenly_is_refused(few: Data) -> None:
    match = (
        r"a batch of 100 images cannot be split evenly over 3 processes\. Choose a multiple of 3, such as 102"
    )
    with pytest.raises(TrainingError, match=match):
        Batches(few, batch=100, seed=0, rank=1, count=3)
