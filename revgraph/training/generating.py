"""Text that a language model writes on."""

from __future__ import annotations

import torch
from torch import nn


def generate(
    net: nn.Module, prompt: bytes, count: int, *, length: int, temperature: float = 1.0, seed: int = 0
) -> bytes:
    """`count` bytes after `prompt`, each drawn by its score after at most the `length` bytes before it.

    `net` turns bytes [1, T], int64, into scores [1, T, 256]; it is in evaluation mode meanwhile. Scores are
    divided by `temperature`: below 1 likely bytes become more so. Draws depend on `seed` alone.

    Raises:
        ValueError: the prompt is empty, or the temperature not above 0.
    """
    if not prompt:
        raise ValueError("an empty prompt has no next byte: give at least one byte")
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, not {temperature}")
    generator = torch.Generator().manual_seed(seed)
    device = next(net.parameters()).device
    written = list(prompt)
    training = net.training
    net.eval()
    try:
        with torch.no_grad():
            for _ in range(count):
                scores = net(torch.tensor([written[-length:]], device=device))[0, -1]
                chances = (scores.double().cpu() / temperature).softmax(0)
                written.append(int(torch.multinomial(chances, 1, generator=generator)))
    finally:
        net.train(training)
    return bytes(written[len(prompt) :])
