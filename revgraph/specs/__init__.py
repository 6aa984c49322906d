"""Specifications: networks declared in YAML or as mappings, built from registered modules only.

    name: example
    description: Two streams of a transformer's wiring, each half-step with a mask.
    parameters: {width: 64, blocks: 6}              # defaults; `$width` stands for the value
    inputs:                                         # shapes without the batch
      tokens: {shape: [128, 64], dtype: float32}
      mask: {shape: [128], dtype: bool}
    layers:                                         # each `- name: module`
      - embed: {Linear: {in_features: 64, out_features: 128}}
      - streams: {Split: {parts: 2, dim: -1}, out: [x1, x2]}
      - block:
          repeat: $blocks                           # block0, block1, ...
          layers:
            - mix: {Additive: {f: {MyAttention: $width}}, target: x1, others: [x2, mask]}
            - feed: {Additive: {f: [norm: {LayerNorm: $width}, act: GELU]}, target: x2, others: x1}
      - joined: {Concatenate: {dim: -1}, in: [x1, x2]}
      - head: {Linear: [128, 10]}

- A *module* is `Name` or `{Name: arguments}`; a list gives arguments in order, a mapping by name. An
  argument that is a mapping is a module itself. Where a function is expected (f, g, f1, ...) a list of
  layers will do, or `{inputs: [...], layers: [...], outputs: [...]}`; it sees nothing but its inputs.
- A *layer* has a name, under which its parameters stand in `state_dict`. A list of layers is a group: one
  more step in that path, and nothing else.
- Without `in` a layer reads what the layer before it made, the first one the first input. `in` names
  other values, `with` those that go by keyword, `out` what the layer makes (otherwise that goes by the
  layer's name). A name always means what was last made under it.
- A coupling with several functions changes as many streams in turn. A coupling with one is a half-step:
  it gives its `target` a new state, from that and its `others`.
- `repeat: n` means the layer written n times, its name counted on: `unit1` twice is unit1 and unit2.
- `use: name` in a module's place calls an earlier layer's module again, with the same parameters.
"""

from __future__ import annotations

from revgraph.specs.building import Built, build, example_inputs, traced_inputs
from revgraph.specs.limits import Limits
from revgraph.specs.networks import Network, Step
from revgraph.specs.registry import register
from revgraph.specs.sources import shipped
from revgraph.specs.syntax import InputShape

__all__ = [
    "Built",
    "InputShape",
    "Limits",
    "Network",
    "Step",
    "build",
    "example_inputs",
    "register",
    "shipped",
    "traced_inputs",
]
