"""How tests are shared among processes; the device on which tests run that hang on one.

That is the CPU, and a GPU in variants of the same tests.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

GPU = pytest.param(
    "cuda",
    marks=[
        pytest.mark.cuda,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine"),
    ],
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share a fixture of their module run in one process, so that it is made once."""
    for item in items:
        fixtures = getattr(item, "_fixtureinfo", None)
        if fixtures is None:  # an example in a docstring
            continue
        shared = [each[-1] for each in fixtures.name2fixturedefs.values() if each[-1].scope == "module"]
        if shared:
            item.add_marker(pytest.mark.xdist_group(str(item.path)))


@pytest.fixture(params=["cpu", GPU])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """The device on which torch makes tensors and modules meanwhile, unless told otherwise."""
    chosen = torch.device(request.param)
    if chosen.type == "cpu":  # torch's own default; a context around the test would be seen by modes
        yield chosen
        return
    # Replays have to repeat the forward; the fastest convolutions add in any order.
    with chosen, torch.backends.cudnn.flags(enabled=True, deterministic=True):
        yield chosen
