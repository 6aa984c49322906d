"""Wrong layers: the error says on which line, what stands there, and what to write instead."""

from __future__ import annotations

import pytest

from revgraph import specs
from revgraph.errors import SpecError

WRONG = [
    (
        "- a: {Linaer: [4, 4]}",
        "text:3: there is no module 'Linaer'. Did you mean 'Linear'?",
    ),
    (
        "- a: Concatinate",
        "text:3: there is no module 'Concatinate'. Did you mean 'Concatenate'?",
    ),
    (
        "- a: {torch.nn.Linear: [4, 4]}",
        "text:3: there is no module 'torch.nn.Linear'. A specification names modules of torch.nn, "
        "revgraph's own, and those that you register with rg.register(name, factory).",
    ),
    (
        "- ReLU",
        "text:3: this layer has no name: write `- relu: ReLU` (its parameters and its outputs go by that "
        "name)",
    ),
    (
        "- Linear: [4, 4]",
        "text:3: this layer has no name: write `- linear: {Linear: ...}` (its parameters and its outputs "
        "go by that name)",
    ),
    (
        "- 7",
        "text:3: here stands the number 7, but each item is `- name: module`, as in `- head: {Linear: "
        "[64, 10]}`",
    ),
    (
        "- a: {Linear: [4, 4], repat: 2}",
        "text:3: 'repat' is neither a module nor a key of a layer. Did you mean 'repeat'? The keys are "
        "in, with, out, target, others, repeat, layers, use.",
    ),
    (
        "- a: {Linear: [4, 4], ReLU: }",
        "text:3: a layer is one module, but here stand 'Linear', 'ReLU'. Give each its own name.",
    ),
    (
        "- a: {in: x}",
        "text:3: this layer names no module, as {Linear: [64, 10]} does",
    ),
    (
        "- a: {ReLU: , inputs: x}",
        "text:3: a layer has no 'inputs': that is for networks and functions. A layer reads `in`, and "
        "names what it makes with `out`.",
    ),
    (
        "- a: {layers: [b: ReLU], target: x}",
        "text:3: a group of layers has no 'target': that is for networks and functions. A layer reads "
        "`in`, and names what it makes with `out`.",
    ),
    (
        "- a: []",
        "text:3: here stands an empty list, but there must be at least one layer",
    ),
    (
        "- a: 3",
        "text:3: here stands the number 3, but there must be a module: a name, {Name: arguments}, or a "
        "list of layers",
    ),
    (
        "- a-b: ReLU",
        "text:3: 'a-b' cannot be a name: a name starts with a letter and goes on with letters, digits "
        "and underscores",
    ),
    (
        "- class: ReLU",
        "text:3: 'class' cannot be a name: Python uses the word itself",
    ),
    (
        "- train: ReLU",
        "text:3: a layer cannot be called 'train': PyTorch's modules use that name themselves",
    ),
    (
        "- a: {ReLU: , in: y}",
        "text:3: no value is named 'y' at this point. The values so far are x.",
    ),
    (
        "- a: {ReLU: , in: []}",
        "text:3: here stands an empty list, but there must be the name of a value, or a list of such",
    ),
    (
        "- a: {ReLU: , in: [x, 3]}",
        "text:3: here stands the number 3, but there must be the name of a value, or a list of such",
    ),
    (
        "- a: {ReLU: , with: x}",
        "text:3: here stands the text 'x', but there must be a mapping from the module's keywords to "
        "value names, as {mask: mask}",
    ),
    (
        "- a: {ReLU: , repeat: two}",
        "text:3: here stands the text 'two', but there must be a number of repetitions",
    ),
    (
        "- a: {ReLU: , repeat: -1}",
        "text:3: -1 is out of range: there must be a number of repetitions, from 0 to 1000000",
    ),
    (
        "- a: {ReLU: , repeat: true}",
        "text:3: here stands true, but there must be a number of repetitions",
    ),
    (
        "- a: {use: b}",
        "text:3: `use` names an earlier layer, but 'b' is none.",
    ),
    (
        "- a: {Additive: {f: ReLU}}",
        "text:3: Additive with one function is a half-step: name the stream that it changes and the "
        "values that its function reads, as in target: x1, others: [x2]",
    ),
    (
        "- a: {Additive: {f: ReLU, g: ReLU}}",
        "text:3: Additive with the functions f, g takes 2 streams, but reads 1 value",
    ),
    (
        "- a: {Additive: {f: ReLU, g: ReLU}, target: x}",
        "text:3: Additive with the functions f, g changes 2 streams in turn, so it has no one `target`: "
        "use `in` and `out`, or give it f alone",
    ),
    (
        "- a: {Additive: {f: ReLU, f3: ReLU}}",
        "text:3: Additive has 2 functions, which are called f, g, not f, f3",
    ),
    (
        "- a: {Additive: [ReLU]}",
        "text:3: Additive takes its arguments by name, as in {Additive: {f: ..., g: ...}}",
    ),
    (
        "- a: {Additive: {f: ReLU}, others: x}",
        "text:3: `others` goes with `target`, the stream that the half-step changes",
    ),
    (
        "- a: {Additive: {f: ReLU}, target: x, in: x}",
        "text:3: a layer with a `target` reads that and its `others`, and makes the target's new state: "
        "`in` and `out` do not go with it",
    ),
    (
        "- a: {ReLU: , target: x}",
        "text:3: ReLU is no coupling, so it has no `target`: use `in` and `out`",
    ),
    (
        "- a: {Split: 2, out: [b, c, d]}",
        "text:3: Split makes 2 values here, but `out` names 3: b, c, d",
    ),
    (
        "- a: {Swap: }",
        "text:3: Swap orders 2 values, but reads 1",
    ),
    (
        "- a: {Linear: [4]}",
        "text:3: Linear: missing a required argument: 'out_features'. It takes in_features, "
        "out_features, bias.",
    ),
    (
        "- a: {Linear: {in_features: 4, out_featurs: 4}}",
        "text:3: Linear has no argument 'out_featurs'. Did you mean 'out_features'? It takes "
        "in_features, out_features, bias.",
    ),
    (
        "- a: {Linear: [4, four]}",
        "text:3: Linear's out_features must be of type int, not \"'four'\"",
    ),
    (
        "- a: {Linear: {in_features: 4, out_features: 4, bias: 1}}",
        "text:3: Linear's bias must be of type bool, not '1'",
    ),
    (
        "- a: {Linear: [4, true]}",
        "text:3: Linear's out_features must be of type int, not 'True'",
    ),
    (
        "- a: {Linear: [4, 4, true, cuda]}",
        "text:3: a specification says nothing about device: use .to() on the loaded network",
    ),
    (
        "- a: {GroupNorm: [3, 4]}",
        "text:3: GroupNorm cannot be made from these arguments: num_channels (4) must be divisible by "
        "num_groups (3)",
    ),
    (
        "- a: {BottleneckFunction: 6}",
        "text:3: BottleneckFunction cannot be made from these arguments: a bottleneck's out_channels "
        "must be a multiple of 4, not 6",
    ),
    (
        "- a: {Linear: [4, 4], in: x, in: x}",
        "text:3: the key 'in' stands twice in one mapping",
    ),
    (
        "- a: {Dropout: {p: no}}",
        "text:3: 'no' is a truth value to some YAML readers and a text to others. Write false for the "
        'truth value, or "no" in quotes for the text.',
    ),
    (
        "- a: {Dropout: 012}",
        "text:3: '012' is read as different numbers by different YAML readers. Write a plain decimal "
        "number, or quotes around it for a text.",
    ),
    (
        "- a: {Linear: [$wide, 4]}",
        "text:3: there is no parameter 'wide'. Declare it under `parameters`.",
    ),
    (
        "- a: !!python/name:os.system",
        "text:3: the tag '!!python/name:os.system' asks for something other than a list, mapping, text "
        "or number. A specification has no tags: leave it out.",
    ),
    (
        "- a: *b",
        "text:3: '*b' names nothing: '&b' must stand above it.",
    ),
    (
        "- a: {<<: {Linear: [4, 4]}}",
        "text:3: merge keys ('<<') are not part of a specification. Write the keys out.",
    ),
    (
        "- {a: ReLU, in: x}",
        "text:3: this item has 2 keys (a, in), but each item is `- name: module`, as in `- head: "
        "{Linear: [64, 10]}`. What belongs to the layer goes inside its braces, 'in' too, or deeper by "
        "one indent.",
    ),
]

TOGETHER = [
    (
        ["- a: ReLU", "- a: Tanh"],
        "text:4: two layers here are called 'a'. Give each a name of its own.",
    ),
    (
        ["- unit1: {ReLU: , repeat: 3}", "- unit3: Tanh"],
        "text:4: two layers here are called 'unit3'. Give each a name of its own.",
    ),
    (
        ["- left: ReLU", "- b: {ReLU: , in: lfet}"],
        "text:4: no value is named 'lfet' at this point. Did you mean 'left'?",
    ),
    (
        ["- a: ReLU", "- b: {ReLU: , in: x}"],
        "text:3: nothing reads what layer 'a' makes. Name it after `in` in a later layer or under "
        "`outputs`, or leave the layer out.",
    ),
    (
        ["- s: {Split: 2, out: [a, b]}", "- c: {Additive: {f: ReLU}, target: a, others: b}", "- d: ReLU"],
        "text:5: after a half-step, which changes one of several streams, say which values are meant: "
        "in: [x1, x2], or at the network's end outputs: [x1, x2]",
    ),
    (
        ["- s: {Split: 2, out: [a, b]}", "- c: {Additive: {f: ReLU}, target: a, others: b}"],
        "text:4: after a half-step, which changes one of several streams, say which values are meant: "
        "in: [x1, x2], or at the network's end outputs: [x1, x2]",
    ),
    (
        ["- s: {Split: 2}", "- c: {Additive: {f: ReLU}, target: s, others: s}"],
        "text:4: 's' stands for 2 values, but the target of a half-step is one: name them one by one "
        "with `out` where they are made",
    ),
    (
        ["- s: {Split: 2}", "- c: {ReLU: , with: {x: s}}"],
        "text:4: 's' stands for 2 values, but the keyword 'x' is one: name them one by one with `out` "
        "where they are made",
    ),
    (
        ["- g: {layers: [s: {Split: 2}], out: [a, b, c]}"],
        "text:3: the group makes 2 values, but `out` names 3: a, b, c",
    ),
    (
        ["- one: ReLU", "- two: {use: onne}"],
        "text:4: `use` names an earlier layer, but 'onne' is none. Did you mean 'one'?",
    ),
    (
        ["- a:", "    Linear: [4, 4]", "    in: x", "    width: 3"],
        "text:4: 'width' is neither a module nor a key of a layer. Did you mean 'with'? The keys are in, "
        "with, out, target, others, repeat, layers, use.",
    ),
    (
        ["- a:", "    Additive:", "      f:", "        inputs: x", "      g: ReLU"],
        "text:6: this function has no `layers`",
    ),
    (
        ["- a: {Additive: {f: {layers: [b: ReLU], in: x}, g: ReLU}}"],
        "text:3: a function made of layers has no key 'in'. Its keys are inputs, layers, outputs.",
    ),
    (
        ["- s: {Split: 2}", "- a: {Additive: {f: [b: {ReLU: , in: s}], g: ReLU}}"],
        "text:4: no value is named 's' at this point. The values so far are x.",
    ),
]


def message(*lines: str) -> str:
    """The error about these layers, the first of which stands on line 3."""
    text = "\n".join(["inputs: {x: [4]}", "layers:", *(f"  {line}" for line in lines), ""])
    with pytest.raises(SpecError) as caught:
        specs.build(text)
    return str(caught.value)


@pytest.mark.parametrize(("line", "text"), WRONG)
def test_a_wrong_layer_is_named_with_its_line(line: str, text: str) -> None:
    assert message(line) == text


@pytest.mark.parametrize(("lines", "text"), TOGETHER)
def test_layers_that_do_not_go_together_are_named_with_their_line(lines: list[str], text: str) -> None:
    assert message(*lines) == text
