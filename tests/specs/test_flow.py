"""What flows where: specifications run beside the same network written by hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from revgraph import specs
from revgraph.specs import Network

Tensors = tuple[Tensor, ...]


def built(text: str) -> tuple[Network, Tensors]:
    network = specs.build(text)
    return network.module.double(), tuple(x.double() for x in specs.example_inputs(network))


def same(actual: Tensor | Tensors, *expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected if isinstance(actual, tuple) else expected[0])


def test_a_layer_reads_what_the_one_before_it_made() -> None:
    net, (x,) = built("""
        inputs: {x: [4]}
        layers:
          - widen: {Linear: [4, 8]}
          - squash: Tanh
          - narrow: {Linear: {in_features: 8, out_features: 3, bias: false}}
    """)
    at = net.get_submodule
    same(net(x), at("narrow")(torch.tanh(at("widen")(x))))
    assert list(net.state_dict()) == ["widen.weight", "widen.bias", "narrow.weight"]


def test_values_are_read_by_name_across_branches_and_skips() -> None:
    net, (x,) = built("""
        inputs: {x: [4]}
        layers:
          - a: {Linear: [4, 4]}
          - b: {Linear: [4, 4], in: x, out: left}
          - c: {Tanh: , in: a}
          - d: {Linear: [4, 4]}
          - total: {Sum: , in: [d, left, a, x]}
          - end: {Linear: [4, 2]}
        outputs: [end, left, c]
    """)
    at = net.get_submodule
    a, b = at("a")(x), at("b")(x)
    c = torch.tanh(a)
    same(net(x), at("end")(at("d")(c) + b + a + x), b, c)


def test_the_first_layer_reads_the_first_input_and_others_are_read_by_name() -> None:
    net, (x, y) = built("""
        inputs: {x: [4], y: [4]}
        layers:
          - squash: Tanh
          - end: {Bilinear: [4, 4, 2], in: [squash, y]}
    """)
    expected = net.get_submodule("end")(torch.tanh(x), y)
    same(net(x, y), expected)
    same(net(x, y=y), expected)
    same(net(y=y, x=x), expected)


def test_half_steps_change_one_stream_and_leave_the_others() -> None:
    net, (x,) = built("""
        inputs: {x: [6]}
        layers:
          - streams: {Split: 3, out: [x1, x2, x3]}
          - first: {Additive: {f: {Linear: [2, 2]}}, target: x2, others: x1}
          - second: {Additive: {f: {Bilinear: [2, 2, 2]}}, target: x1, others: [x3, x2]}
          - third: {Affine: {f: {Linear: [2, 4]}, bound: 1.5}, target: x3, others: [x1]}
          - joined: {Concatenate: , in: [x1, x2, x3]}
    """)
    at = net.get_submodule
    x1, x2, x3 = x.chunk(3, dim=1)
    x2 = x2 + at("first.f")(x1)
    x1 = x1 + at("second.f")(x3, x2)
    s, t = at("third.f")(x1).chunk(2, dim=1)
    x3 = x3 * (1.5 * (s / 1.5).tanh()).exp() + t
    same(net(x), torch.cat([x1, x2, x3], dim=1))


def test_blocks_change_every_stream_in_turn() -> None:
    net, (x,) = built("""
        inputs: {x: [6]}
        layers:
          - streams: {Split: 3}
          - block: {Additive: {f1: &f {Bilinear: [2, 2, 2]}, f2: *f, f3: *f}}
          - order: {Permute: [2, 0, 1]}
        outputs: order
    """)
    at = net.get_submodule
    x1, x2, x3 = x.chunk(3, dim=1)
    x1 = x1 + at("block.f1")(x2, x3)
    x2 = x2 + at("block.f2")(x1, x3)
    x3 = x3 + at("block.f3")(x1, x2)
    same(net(x), x3, x1, x2)


def test_functions_of_layers_have_named_inputs_and_a_graph_of_their_own() -> None:
    net, (x, mask) = built("""
        inputs: {x: [8], mask: [4]}
        layers:
          - streams: {Split: 2}
          - block:
              Additive:
                f:
                  inputs: [x, mask]
                  layers:
                    - gate: {Sigmoid: , in: mask}
                    - body: {Linear: [4, 4], in: x}
                    - mix: {Bilinear: [4, 4, 4], in: [gate, body]}
                g: {inputs: [x, mask], layers: [only: {Linear: [4, 4], in: x}]}
              with: {mask: mask}
        outputs: block
    """)
    at = net.get_submodule
    x1, x2 = x.chunk(2, dim=1)
    x1 = x1 + at("block.f.mix")(mask.sigmoid(), at("block.f.body")(x2))
    same(net(x, mask), x1, x2 + at("block.g.only")(x1))


def test_a_function_may_be_a_plain_list_of_layers_or_return_several_values() -> None:
    net, (x,) = built("""
        inputs: {x: [4]}
        layers:
          - streams: {Split: {parts: 2, dim: -1}, out: [x1, x2]}
          - step:
              Affine:
                f: {inputs: x, layers: [s: {Linear: [2, 2]}, t: {Linear: [2, 2], in: x}], outputs: [s, t]}
              target: x1
              others: x2
          - other:
              Additive: {f: [wide: {Linear: [2, 5]}, act: GELU, narrow: {Linear: [5, 2]}]}
              target: x2
              others: x1
        outputs: [x1, x2]
    """)
    at = net.get_submodule
    x1, x2 = x.chunk(2, dim=1)
    s, t = at("step.f.s")(x2), at("step.f.t")(x2)
    x1 = x1 * (2 * (s / 2).tanh()).exp() + t
    same(net(x), x1, x2 + at("other.f.narrow")(nn.functional.gelu(at("other.f.wide")(x1))))


def test_repeat_is_writing_the_layer_out_with_its_name_counted_on() -> None:
    repeated = """
        inputs: {x: [4]}
        layers:
          - start: {Linear: [4, 4]}
          - unit3: {Linear: [4, 4], repeat: 2}
          - block: {layers: [inner: {Linear: [4, 4]}, act: Tanh], repeat: 2}
          - none: {Linear: [7, 9], repeat: 0}
          - skip: {Sum: , in: [unit3, block1]}
    """
    written = """
        inputs: {x: [4]}
        layers:
          - start: {Linear: [4, 4]}
          - unit3: {Linear: [4, 4]}
          - unit4: {Linear: [4, 4]}
          - block0: [inner: {Linear: [4, 4]}, act: Tanh]
          - block1: [inner: {Linear: [4, 4]}, act: Tanh]
          - skip: {Sum: , in: [unit3, block1]}
    """
    torch.manual_seed(0)
    one, (x,) = built(repeated)
    torch.manual_seed(0)
    two, _ = built(written)
    assert list(one.state_dict()) == list(two.state_dict())
    assert "block1.inner.weight" in one.state_dict()
    same(one(x), two(x))


def test_repeated_half_steps_carry_the_streams_on() -> None:
    net, (x,) = built("""
        inputs: {x: [4]}
        layers:
          - streams: {Split: 2, out: [x1, x2]}
          - block:
              repeat: 3
              layers:
                - f: {Additive: {f: {Linear: [2, 2]}}, target: x1, others: x2}
                - g: {Additive: {f: {Linear: [2, 2]}}, target: x2, others: x1}
          - end: {Concatenate: , in: [x1, x2]}
    """)
    x1, x2 = x.chunk(2, dim=1)
    for index in range(3):
        x1 = x1 + net.get_submodule(f"block{index}.f.f")(x2)
        x2 = x2 + net.get_submodule(f"block{index}.g.f")(x1)
    same(net(x), torch.cat([x1, x2], dim=1))


def test_groups_read_and_name_values_as_layers_do() -> None:
    net, (x,) = built("""
        inputs: {x: [4]}
        layers:
          - before: {Linear: [4, 4]}
          - branch: {layers: [a: {Linear: [4, 4]}, b: Tanh], in: x, out: side}
          - inner: [nested: [deep: {Linear: [4, 4], in: before}]]
          - total: {Sum: , in: [side, inner, nested, b]}
    """)
    at = net.get_submodule
    side, inner = torch.tanh(at("branch.a")(x)), at("inner.nested.deep")(at("before")(x))
    same(net(x), side + inner + inner + side)


def test_use_calls_an_earlier_layers_module_again() -> None:
    net, (x,) = built("""
        inputs: {x: [4]}
        layers:
          - first: {Linear: [4, 4]}
          - again: {use: first, repeat: 2}
          - group:
              - cell: {Linear: [4, 4]}
              - inner: {use: cell}
              - deeper: [outer: {use: first}]
    """)
    first, cell = net.get_submodule("first"), net.get_submodule("group.cell")
    assert list(net.state_dict()) == ["first.weight", "first.bias", "group.cell.weight", "group.cell.bias"]
    same(net(x), first(cell(cell(first(first(first(x)))))))


def test_modules_that_return_several_values_are_named_with_out() -> None:
    net, (x,) = built("""
        inputs: {x: [5, 4]}
        layers:
          - attention:
              MultiheadAttention: {embed_dim: 4, num_heads: 2, batch_first: true}
              in: [x, x, x]
              out: [mixed, weights]
        outputs: [weights, mixed]
    """)
    mixed, weights = net.get_submodule("attention")(x, x, x)
    same(net(x), weights, mixed)


def test_keyword_inputs_go_after_with() -> None:
    net, (x, padding) = built("""
        inputs:
          x: [5, 4]
          padding: {shape: [5], dtype: bool}
        layers:
          - attention:
              MultiheadAttention: {embed_dim: 4, num_heads: 2, batch_first: true}
              in: [x, x, x]
              with: {key_padding_mask: padding}
              out: [mixed, weights]
        outputs: mixed
    """)
    hide = padding.bool()
    hide[:, 3:] = True
    same(net(x, hide), net.get_submodule("attention")(x, x, x, key_padding_mask=hide)[0])
    assert not torch.equal(net(x, hide), net(x, ~hide))


def test_a_multi_scale_network_exchanges_between_its_streams() -> None:
    net, (image,) = built("""
        inputs: {image: [4, 8, 8]}
        layers:
          - halves: {Split: 2, out: [fine, rest]}
          - coarse: {SpaceToDepth: 2, in: rest}
          - exchange:
              repeat: 2
              layers:
                - down:
                    Additive: {f: {Conv2d: {in_channels: 2, out_channels: 8, kernel_size: 2, stride: 2}}}
                    target: coarse
                    others: fine
                - up:
                    Additive: {f: [grow: {PixelShuffle: 2}, mix: {Conv2d: [2, 2, 1]}]}
                    target: fine
                    others: coarse
          - flat: {Reshape: [128], in: fine}
        outputs: [flat, coarse]
    """)
    fine, rest = image.chunk(2, dim=1)
    coarse = nn.functional.pixel_unshuffle(rest, 2)
    for index in range(2):
        at = net.get_submodule(f"exchange{index}").get_submodule
        coarse = coarse + at("down.f")(fine)
        fine = fine + at("up.f.mix")(nn.functional.pixel_shuffle(coarse, 2))
    same(net(image), fine.flatten(1), coarse)


def test_a_python_mapping_says_the_same_as_yaml() -> None:
    mapping = {
        "name": "small",
        "parameters": {"width": 4},
        "inputs": {"x": ("$width",)},
        "layers": [
            {"streams": {"Split": 2, "out": ["x1", "x2"]}},
            {"step": {"Additive": {"f": {"Linear": [2, 2]}}, "target": "x1", "others": "x2"}},
        ],
        "outputs": ["x1", "x2"],
    }
    network = specs.build(mapping, batch=3)
    (x,) = specs.example_inputs(network)
    x1, x2 = x.chunk(2, dim=1)
    assert (network.name, tuple(x.shape)) == ("small", (3, 4))
    same(network.module(x), x1 + network.module.get_submodule("step.f")(x2), x2)


def test_the_packages_own_example_runs() -> None:
    class Attention(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.attend = nn.MultiheadAttention(width, 4, batch_first=True)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.attend(x, x, x, key_padding_mask=mask)[0]

    specs.register("MyAttention", Attention)
    text = (specs.__doc__ or "").partition("\n\n")[2].partition("\n\n- ")[0]
    network = specs.build(text, blocks=2)
    tokens, mask = specs.example_inputs(network)
    at = network.module.get_submodule
    x1, x2 = at("embed")(tokens).chunk(2, dim=-1)
    for block in ("block0", "block1"):
        x1 = x1 + at(f"{block}.mix.f")(x2, mask)
        x2 = x2 + nn.functional.gelu(at(f"{block}.feed.f.norm")(x1))
    same(network.module(tokens, mask), at("head")(torch.cat([x1, x2], dim=-1)))
