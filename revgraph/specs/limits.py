"""How large a specification, and the network it describes, may be."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds that keep a mistaken or hostile specification from using up time and memory.

    `text_bytes`, `nodes` and `depth` bound the text: its bytes, its lists, mappings and scalars once every
    alias is written out, and how deep they nest. `layers` bounds the layers once every repeat is written out,
    the functions of couplings included; `parameters` the elements of all parameters and buffers together;
    `elements` those of one example of one input; `values` what one layer may return.
    """

    text_bytes: int = 32 * 1024
    nodes: int = 20_000
    depth: int = 32
    layers: int = 20_000
    parameters: int = 2**28
    elements: int = 2**26
    values: int = 256


DEFAULT = Limits()
