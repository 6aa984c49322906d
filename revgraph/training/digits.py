"""scikit-learn's handwritten digits: 1,797 real images that come inside the package."""

from __future__ import annotations

import torch
from torch.nn import functional

from revgraph.training.errors import TrainingError
from revgraph.training.images import PIXELS, Data, Images, mean_image

TEST_IMAGES = 360
BRIGHTEST = 16


def load_digits(seed: int = 0) -> Data:
    """The digits at 32x32 in 3 equal channels: 1,437 for training and 360 for the test.

    The 8x8 images are enlarged bilinearly. The split depends on `seed` alone, and each digit has the same
    share of both parts.

    Raises:
        TrainingError: scikit-learn is not installed.
    """
    try:
        from sklearn import datasets, model_selection
    except ImportError as error:
        raise TrainingError(
            'the digits come with scikit-learn, which is not installed: pip install "revgraph[train]"'
        ) from error
    digits, targets = datasets.load_digits(return_X_y=True)
    small = torch.from_numpy(digits).float().reshape(-1, 1, 8, 8) / BRIGHTEST
    grey = functional.interpolate(small, size=PIXELS[1:], mode="bilinear")
    pixels = grey.expand(-1, *PIXELS).contiguous()
    labels = torch.from_numpy(targets).long()
    train, test = model_selection.train_test_split(
        list(range(len(labels))), test_size=TEST_IMAGES, stratify=targets, random_state=seed
    )
    return Data(
        name="digits",
        classes=10,
        train=Images(pixels[train], labels[train]),
        test=Images(pixels[test], labels[test]),
        mean=mean_image(pixels[train]),
        flip=False,
    )
