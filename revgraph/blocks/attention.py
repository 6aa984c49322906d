"""The functions of a transformer's block: attention and feed-forward as F and G, or both as one function."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Attention(nn.Module):
    """LayerNorm, multi-head self-attention, dropout: [N, T, width] to the same shape.

    It is normalised first and without a shortcut of its own, for the coupling's addition is the shortcut
    (Kitaev et al. 2020, Reformer, section 3; Mangalam et al. 2022, Reversible Vision Transformers). With
    `causal` a token sees itself and those before it. `padding`, [N, T] and bool, is True at tokens that none
    shall see; a token that is left with none to see gets what zeros would give. `dropout` is of what the
    function returns, so that the fused kernels, which know none of attention weights, serve in training too.

    Raises:
        ValueError: `width` is no multiple of `heads`.

    Example:
        >>> import torch
        >>> from revgraph.blocks import Attention
        >>> Attention(width=16, heads=4, causal=True)(torch.zeros(2, 10, 16)).shape
        torch.Size([2, 10, 16])
    """

    def __init__(self, width: int, heads: int, causal: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"attention's width must be a multiple of its heads, not {width} with {heads}")
        self.heads, self.causal = heads, causal
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        parts = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = parts.permute(2, 0, 3, 1, 4)  # each [N, heads, T, width / heads]
        mixed = functional.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=None if padding is None else self._seen(padding),
            is_causal=self.causal and padding is None,
        )
        return self.dropout(self.out(mixed.transpose(1, 2).flatten(2)))

    def _seen(self, padding: Tensor) -> Tensor:
        """Whether a token sees another: [N, 1, 1 or T, T], True where it does."""
        seen = ~padding[:, None, None, :]
        if not self.causal:
            return seen
        tokens = padding.shape[-1]
        return seen & torch.ones(tokens, tokens, dtype=torch.bool, device=padding.device).tril()


class FeedForward(nn.Sequential):
    """LayerNorm, linear, GELU, linear, dropout, for each token by itself: [..., width] to the same shape.

    Between the two it is `hidden` wide, four times the width unless given.
    """

    def __init__(self, width: int, hidden: int | None = None, dropout: float = 0.0) -> None:
        hidden = 4 * width if hidden is None else hidden
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.widen = nn.Linear(width, hidden)
        self.activate = nn.GELU()
        self.narrow = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)


class TransformerFunction(nn.Module):
    """What a whole block of a transformer adds to its input: [N, T, width] to the same shape.

    With attention A and feed-forward M it is `A(x) + M(x + A(x))`: the one function of a momentum, midpoint
    or leapfrog step. Arguments as for `Attention`.
    """

    def __init__(self, width: int, heads: int, causal: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.attend = Attention(width, heads, causal, dropout)
        self.think = FeedForward(width, dropout=dropout)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        attended = self.attend(x, padding)
        return attended + self.think(x + attended)
