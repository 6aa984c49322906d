"""Attention of every kind: by hand, as modules, with masks, positions, windows, groups, and linear."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from planning.corpus.registry import net
from torch import Tensor, nn


def tokens(width: int = 8, length: int = 6) -> tuple[Tensor]:
    return (torch.randn(2, length, width),)


def feed_forward(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 3 * width), nn.GELU(), nn.Linear(3 * width, width))


class HandMade(nn.Module):
    def __init__(self, width: int = 8, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, w = x.shape
        q, k, v = (
            f(x).view(b, n, self.heads, w // self.heads).transpose(1, 2) for f in (self.q, self.k, self.v)
        )
        weights = torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(w // self.heads), -1)
        return self.out((weights @ v).transpose(1, 2).reshape(b, n, w))


@net(tokens)
class SoftmaxByHand(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(4))
        self.attend = nn.ModuleList(HandMade() for _ in range(2))
        self.feed = nn.ModuleList(feed_forward(8) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for i in range(2):
            x = x + self.attend[i](self.norms[2 * i](x))
            x = x + self.feed[i](self.norms[2 * i + 1](x))
        return x


@net(tokens)
class CausalDotProducts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.qkv = nn.ModuleList(nn.Linear(8, 24, bias=False) for _ in range(2))
        self.out = nn.ModuleList(nn.Linear(8, 8, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        b, n, w = x.shape
        for qkv, out in zip(self.qkv, self.out, strict=True):
            q, k, v = qkv(self.norm(x)).split(w, dim=2)
            q, k, v = (each.view(b, n, 2, w // 2).transpose(1, 2) for each in (q, k, v))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + out(y.transpose(1, 2).contiguous().view(b, n, w))
        return x


@net(tokens)
class AttentionModule(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.MultiheadAttention(8, 2, batch_first=True)
        self.two = nn.MultiheadAttention(8, 2)
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x + self.one(x, x, x, need_weights=False)[0])
        y, weights = self.two(x, x, x)
        return x + y * weights.mean()


@net(lambda: (torch.randn(2, 4, 8), torch.randn(2, 7, 6, requires_grad=True)))
class CrossAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv, self.out = nn.Linear(8, 8), nn.Linear(6, 16), nn.Linear(8, 8)
        self.feed = feed_forward(8)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        k, v = self.kv(context).chunk(2, -1)
        for _ in range(2):
            weights = F.softmax(torch.bmm(self.q(x), k.mT) * 8**-0.5, dim=-1)
            x = x + self.out(torch.bmm(weights, v))
            x = x + self.feed(x)
        return x


@net(tokens)
class LinearAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))
        self.feed = feed_forward(8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = F.elu(self.q(x)) + 1, F.elu(self.k(x)) + 1, self.v(x)
        state = torch.einsum("bnd,bne->bde", k, v)
        scale = 1 / torch.einsum("bnd,bd->bn", q, k.sum(1))
        x = x + torch.einsum("bnd,bde,bn->bne", q, state, scale)
        return x + self.feed(x)


@net(lambda: (torch.randn(2, 4, 4, 6),))
class ShiftedWindows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.ModuleList(HandMade(6, 2) for _ in range(2))
        self.feed = nn.ModuleList(feed_forward(6) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        for shift, attend, feed in zip((0, 1), self.attend, self.feed, strict=True):
            y = torch.roll(x, (-shift, -shift), (1, 2)) if shift else x
            y = y.view(b, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, c)
            y = attend(y).view(b, h // 2, w // 2, 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
            x = x + (torch.roll(y, (shift, shift), (1, 2)) if shift else y)
            x = x + feed(x)
        return x


@net(tokens)
class RelativePositionBias(nn.Module):
    index: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(11, 2))
        place = torch.arange(6)
        self.register_buffer("index", place[:, None] - place[None, :] + 5)
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        b, n, w = x.shape
        for _ in range(2):
            q, k, v = self.qkv(x).view(b, n, 3, 2, 4).permute(2, 0, 3, 1, 4)
            bias = self.table[self.index.view(-1)].view(n, n, 2).permute(2, 0, 1)
            weights = (q @ k.transpose(-1, -2) * 0.5 + bias.unsqueeze(0)).softmax(-1)
            x = x + self.out((weights @ v).transpose(1, 2).reshape(b, n, w))
        return x


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    one, two = x.chunk(2, -1)
    return x * cos + torch.cat([-two, one], -1) * sin


@net(tokens)
class RotaryGroupedQueries(nn.Module):
    """Rotary positions, shared key and value heads, RMS norms and gated feeds, as in Llama."""

    cos: Tensor
    sin: Tensor

    def __init__(self) -> None:
        super().__init__()
        angles = torch.outer(torch.arange(6.0), 10 ** (-torch.arange(0, 2) / 2)).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        self.norm1, self.norm2 = nn.RMSNorm(16), nn.RMSNorm(16)
        self.q, self.k, self.v = nn.Linear(16, 16), nn.Linear(16, 8), nn.Linear(16, 8)
        self.out = nn.Linear(16, 16)
        self.gate, self.up, self.down = nn.Linear(16, 20), nn.Linear(16, 20), nn.Linear(20, 16)
        self.inlet = nn.Linear(8, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inlet(x)
        b, n, w = x.shape
        y = self.norm1(x)
        q = rotate(self.q(y).view(b, n, 4, 4).transpose(1, 2), self.cos, self.sin)
        k = rotate(self.k(y).view(b, n, 2, 4).transpose(1, 2), self.cos, self.sin)
        v = self.v(y).view(b, n, 2, 4).transpose(1, 2)
        k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(z.transpose(1, 2).reshape(b, n, w))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


@net(lambda: (torch.randn(2, 4, 5, 6),))
class AxialAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rows, self.columns = HandMade(6, 2), HandMade(6, 2)
        self.norm1, self.norm2 = nn.LayerNorm(6), nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        x = x + self.rows(self.norm1(x).reshape(b * h, w, c)).reshape(b, h, w, c)
        y = self.norm2(x).transpose(1, 2).reshape(b * w, h, c)
        return x + self.columns(y).reshape(b, w, h, c).transpose(1, 2)


@net(lambda: (torch.randn(2, 3, 8, 8),))
class VisionTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.places = nn.Parameter(torch.randn(1, 5, 8))
        layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True, norm_first=True)
        self.layers = nn.ModuleList([layer, nn.TransformerEncoderLayer(8, 2, 16, 0.1, batch_first=True)])
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.places
        for layer in self.layers:
            x = layer(x)
        return self.head(x[:, 0])


@net(lambda: (torch.randn(2, 6, 8), torch.tensor([[True] * 6, [True] * 4 + [False] * 2])))
class PaddingMask(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))
        self.dropout = nn.Dropout(0.2)
        self.mix = nn.Parameter(torch.eye(2) + 0.1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        b, n, _ = x.shape
        for _ in range(2):
            q, k, v = (f(x).view(b, n, 2, 4).transpose(1, 2) for f in (self.q, self.k, self.v))
            scores = torch.einsum("bhqd,bhkd->bhqk", q, k)
            scores = torch.einsum("bhqk,hg->bgqk", scores, self.mix)
            scores = scores.masked_fill(~mask[:, None, None, :], float("-inf"))
            weights = self.dropout(scores.softmax(-1))
            x = x + (weights @ v).transpose(1, 2).flatten(2)
        return x * mask[..., None]


@net(tokens)
class LatentQueries(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(3, 8))
        self.read = nn.MultiheadAttention(8, 2, batch_first=True)
        self.think = HandMade()
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        z = self.latents.unsqueeze(0).expand(x.shape[0], -1, -1)
        for _ in range(2):
            z = z + self.read(self.norm(z), x, x)[0]
            z = z + self.think(z)
        return z.mean(1)


@net(tokens)
class ParallelLayers(nn.Module):
    """Attention and feed-forward side by side, as in GPT-J."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(2))
        self.attend = nn.ModuleList(HandMade() for _ in range(2))
        self.feed = nn.ModuleList(feed_forward(8) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for norm, attend, feed in zip(self.norms, self.attend, self.feed, strict=True):
            y = norm(x)
            x = x + attend(y) + feed(y)
        return x


@net(tokens)
class AlibiSlidingWindow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        b, n, w = x.shape
        place = torch.arange(n, device=x.device)
        distance = (place[None] - place[:, None]).abs()
        bias = -distance.to(x.dtype) * torch.tensor([0.5, 0.25], dtype=x.dtype).view(2, 1, 1)
        bias = bias.masked_fill(distance > 2, float("-inf"))
        for _ in range(2):
            q, k, v = self.qkv(x).view(b, n, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None])
            x = x + self.out(y.transpose(1, 2).reshape(b, n, w))
        return x


@net(tokens)
class AttentionPooling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.score, self.value = nn.Linear(8, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.softmax(torch.tanh(self.score(x)), dim=1)
        return (weights * self.value(x)).sum(dim=1)


@net(lambda: (torch.randn(2, 5, 8), torch.randn(2, 4, 8)))
class EncoderDecoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.transformer = nn.Transformer(8, 2, 1, 1, 12, 0.0, batch_first=True)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1], dtype=target.dtype)
        return self.transformer(source, target, tgt_mask=mask, tgt_is_causal=True)
