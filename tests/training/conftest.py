"""A small slice of real data, and a network with everything that a resumed run must restore."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import revgraph as rg
from revgraph.training.digits import load_digits
from revgraph.training.images import Data, Images, mean_image


@pytest.fixture(autouse=True)
def heard() -> Iterator[None]:
    """Ctrl-C is heard, even where the tests run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def single_thread() -> Iterator[None]:
    """Networks this small are faster so, above all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def digits() -> Data:
    return load_digits()


@pytest.fixture(scope="session")
def few(digits: Data) -> Data:
    """100 training and 40 test images of the digits."""
    train = Images(digits.train.pixels[:100], digits.train.labels[:100])
    test = Images(digits.test.pixels[:40], digits.test.labels[:40])
    return replace(digits, train=train, test=test, mean=mean_image(train.pixels))


class Coupled(nn.Module):
    """Two couplings with batch normalisation and dropout inside, between ordinary layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.AvgPool2d(4), nn.Conv2d(3, 6, 3))
        self.block = rg.Additive(self.function(), self.function())
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(216, 10))

    @staticmethod
    def function() -> nn.Module:
        return nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(0.3), nn.Conv2d(3, 3, 3, padding=1))

    def forward(self, images: Tensor) -> Tensor:
        x1, x2 = self.stem(images).chunk(2, 1)
        return self.head(torch.cat(self.block(x1, x2), 1))


@pytest.fixture
def inverted() -> Callable[..., rg.ReversibleModule]:
    """Makes a reversible net with its couplings inverted, equal at every call, planned for `batch` images."""

    def make(batch: int = 20) -> rg.ReversibleModule:
        torch.manual_seed(7)
        net = rg.trace(Coupled(), torch.zeros(batch, 3, 32, 32))
        net.plan = rg.decide(net.graph, {"block.f": "invert", "block.g": "invert"})
        return net

    return make


@pytest.fixture
def tiny() -> Callable[[], nn.Module]:
    """Makes a network with batch normalisation and dropout, equal at every call."""

    def make() -> nn.Module:
        torch.manual_seed(7)
        return nn.Sequential(
            nn.AvgPool2d(4),
            nn.Conv2d(3, 4, 3, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Flatten(),
            nn.Linear(4 * 36, 10),
        )

    return make
