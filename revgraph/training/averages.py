"""Running averages of batch normalisation in a run that is short for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

SETTLED = 4.0
FASTEST = 0.1


def norm_momentum(own: float, steps: int) -> float:
    """The momentum with which running averages settle within the last quarter of `steps`, at least `own`.

    After n steps an average still carries (1 - momentum)^n of what it began with. The paper's decay of .99
    over
    80,000 steps forgets everything; over 300 steps it would leave 5 % of the initial zeros and ones, and most
    of the rest from before the learning rate came down, and the test would be run with wrong statistics. In
    the last quarter, momentum m leaves about exp(-m * steps / 4): m = 16 / steps makes that exp(-4), 2 %.
    It never exceeds 0.1 (torch's default) and never falls below the module's own.

    Example:
        >>> norm_momentum(0.01, 80_000), norm_momentum(0.01, 400), norm_momentum(0.01, 20)
        (0.01, 0.04, 0.1)
    """
    return max(own, min(FASTEST, 4 * SETTLED / steps))


@contextmanager
def settling(net: nn.Module, steps: int) -> Iterator[None]:
    """Within the block, every batch normalisation of `net` has the `norm_momentum` for `steps` steps."""
    changed: list[tuple[_BatchNorm, float]] = []
    for module in net.modules():
        if isinstance(module, _BatchNorm) and module.momentum is not None:
            changed.append((module, module.momentum))
            module.momentum = norm_momentum(module.momentum, steps)
    try:
        yield
    finally:
        for module, own in changed:
            module.momentum = own
