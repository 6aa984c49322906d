"""Functions of the couplings of image flows."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn


class GlowFunction(nn.Sequential):
    """conv 3x3, ReLU, conv 1x1, ReLU, conv 3x3: [N, channels, H, W] to [N, 2 channels, H, W].

    The log-scale and shift of an affine coupling (Glow; Kingma, Dhariwal 2018, section 3.3). The last
    convolution starts at zero, so that the coupling starts as the identity.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        last = nn.Conv2d(hidden, 2 * channels, 3, padding=1)
        nn.init.zeros_(last.weight)
        assert last.bias is not None
        nn.init.zeros_(last.bias)
        super().__init__(
            OrderedDict(
                conv1=nn.Conv2d(channels, hidden, 3, padding=1),
                relu1=nn.ReLU(),
                conv2=nn.Conv2d(hidden, hidden, 1),
                relu2=nn.ReLU(),
                conv3=last,
            )
        )
