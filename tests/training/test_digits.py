"""The digits: real images, a fixed split, the form that the paper's networks take."""

from __future__ import annotations

import torch
from sklearn import datasets
from torch.nn import functional

from revgraph.training.digits import load_digits
from revgraph.training.images import Data, normalised


def test_all_digits_are_there_once(digits: Data) -> None:
    assert (len(digits.train), len(digits.test), digits.classes) == (1437, 360, 10)
    labels = torch.cat([digits.train.labels, digits.test.labels])
    assert labels.bincount().tolist() == torch.from_numpy(datasets.load_digits().target).bincount().tolist()


def test_pixels_are_the_bilinear_enlargement(digits: Data) -> None:
    raw = torch.from_numpy(datasets.load_digits().images).float() / 16
    large = functional.interpolate(raw[:, None], size=(32, 32), mode="bilinear")[:, 0]
    image = digits.test.pixels[5]
    assert image.shape == (3, 32, 32) and image.dtype == torch.float32
    assert torch.equal(image[0], image[1]) and torch.equal(image[0], image[2])
    assert (large == image[0]).flatten(1).all(1).sum() == 1


def test_split_is_fixed_by_its_seed_and_stratified(digits: Data) -> None:
    again, other = load_digits(), load_digits(seed=1)
    assert torch.equal(again.test.pixels, digits.test.pixels)
    assert not torch.equal(other.test.labels, digits.test.labels)
    assert all(35 <= count <= 37 for count in digits.test.labels.bincount().tolist())


def test_mean_image_comes_from_the_training_split(digits: Data) -> None:
    assert normalised(digits.train.pixels, digits.mean).mean(0).abs().max() < 1e-6
    assert normalised(digits.test.pixels, digits.mean).mean(0).abs().max() > 1e-3


def test_digits_are_never_mirrored(digits: Data) -> None:
    assert digits.flip is False
