"""The shared vocabulary of blocks: the parts from which the shipped networks are composed.

Channel counts are those of the values a block really reads and makes; in a RevNet, of one stream.
Convolutional blocks are those of Gomez, Ren, Urtasun, Grosse: The Reversible Residual Network (NIPS 2017), as
the authors configured them.
"""

from __future__ import annotations

from revgraph.blocks.attention import Attention, FeedForward, TransformerFunction
from revgraph.blocks.dense import DenseFunction
from revgraph.blocks.ends import Head, ImageNetStem, Stem
from revgraph.blocks.entries import BasicEntry, BottleneckEntry
from revgraph.blocks.flows import GlowFunction
from revgraph.blocks.functions import BasicFunction, BottleneckFunction
from revgraph.blocks.graphs import GraphFunction
from revgraph.blocks.joins import MultiscaleHead, Sum, Zeros
from revgraph.blocks.recurrent import CellFunction, InitialState
from revgraph.blocks.resolutions import Downward, Upward
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
    "CellFunction",
    "DenseFunction",
    "Downward",
    "FeedForward",
    "GlowFunction",
    "GraphFunction",
    "Head",
    "ImageNetStem",
    "InitialState",
    "MultiscaleHead",
    "PatchEmbedding",
    "PoolHead",
    "Stem",
    "Sum",
    "TokenEmbedding",
    "TokenHead",
    "TransformerFunction",
    "Upward",
    "Zeros",
]
