"""The shared vocabulary of blocks: the parts from which the shipped networks are composed.

The convolutional ones are those of Gomez, Ren, Urtasun, Grosse: The Reversible Residual Network (NIPS 2017),
as the authors configured it. Channel counts are those of the values a block really reads and makes; in a
RevNet, of one stream. `attention` and `tokens` have the parts of reversible transformers.
"""

from __future__ import annotations

from revgraph.blocks.attention import Attention, FeedForward
from revgraph.blocks.ends import Head, ImageNetStem, Stem
from revgraph.blocks.entries import BasicEntry, BottleneckEntry
from revgraph.blocks.functions import BasicFunction, BottleneckFunction
from revgraph.blocks.joins import Sum
from revgraph.blocks.tokens import PatchEmbedding, PoolHead, TokenEmbedding, TokenHead
from revgraph.blocks.units import BasicUnit, BottleneckUnit

__all__ = [
    "Attention",
    "BasicEntry",
    "BasicFunction",
    "BasicUnit",
    "BottleneckEntry",
    "BottleneckFunction",
    "BottleneckUnit",
    "FeedForward",
    "Head",
    "ImageNetStem",
    "PatchEmbedding",
    "PoolHead",
    "Stem",
    "Sum",
    "TokenEmbedding",
    "TokenHead",
]
