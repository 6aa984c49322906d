"""The ends of a transformer: tokens and patches made into vectors, vectors made into scores."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from revgraph.couplings import Boundary

# Deviations that embeddings begin with: large enough not to drown in what the first blocks add, whose linear
# maps begin as torch's do; GPT-2's 0.02 goes with smaller ones.
TOKENS, POSITIONS = 0.3, 0.1


class TokenEmbedding(Boundary):
    """A learned vector for each token and one for its position, added: [N, T], int64, to [N, T, width].

    Tokens go from 0 to below `vocabulary`, and T is at most `length`.
    """

    def __init__(self, vocabulary: int, width: int, length: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.empty(length, width))
        nn.init.normal_(self.tokens.weight, std=TOKENS)
        nn.init.normal_(self.positions, std=POSITIONS)

    def forward(self, tokens: Tensor) -> Tensor:
        count, length = tokens.shape[1], len(self.positions)
        if count > length:
            raise ValueError(f"there are {count} tokens, and positions for {length}: give at most so many")
        return self.tokens(tokens) + self.positions[:count]


class PatchEmbedding(Boundary):
    """Square patches of an image as tokens, each with its place: [N, in, size, size] to [N, T, width].

    A patch is `patch` pixels wide, T is (size / patch)^2, and patches come row by row (Dosovitskiy et al.
    2021, An Image is Worth 16x16 Words). The places' vectors are the bias, too.

    Raises:
        ValueError: `size` is no multiple of `patch`.
    """

    def __init__(self, in_channels: int, width: int, patch: int = 4, size: int = 32) -> None:
        super().__init__()
        if patch < 1 or size % patch:
            raise ValueError(f"an image of {size} pixels cannot be cut into patches of {patch}")
        self.conv = nn.Conv2d(in_channels, width, patch, stride=patch, bias=False)
        self.positions = nn.Parameter(torch.empty((size // patch) ** 2, width))
        nn.init.normal_(self.positions, std=POSITIONS)

    def forward(self, image: Tensor) -> Tensor:
        return self.conv(image).flatten(2).transpose(1, 2) + self.positions


class TokenHead(Boundary):
    """LayerNorm, linear: [N, T, streams * width] to a score for each class at each token, [N, T, classes].

    What it reads are `streams` values of this width, side by side.
    """

    def __init__(self, width: int, classes: int, streams: int = 1) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(streams * width)
        self.linear = nn.Linear(streams * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x))


class PoolHead(Boundary):
    """LayerNorm, mean over tokens, linear: [N, T, streams * width] to a score for each class, [N, classes].

    `padding`, [N, T] and bool, is True at tokens that the mean leaves out. Streams as for `TokenHead`.
    """

    def __init__(self, width: int, classes: int, streams: int = 1) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(streams * width)
        self.linear = nn.Linear(streams * width, classes)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        x = self.norm(x)
        if padding is None:
            return self.linear(x.mean(1))
        counted = (~padding).to(x.dtype)[..., None]
        return self.linear((x * counted).sum(1) / counted.sum(1).clamp(min=1))
