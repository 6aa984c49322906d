"""Hugging Face's transformers, called with labels as trainers call them: the loss is the model's own.

Decoders return the keys and values of every layer unless told otherwise, but never with checkpointing on. So
bytes are compared without that, and the defaults are clients of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.clients.client import Client, Example
from benchmarks.clients.torchvision_operators import import_torchvision

# Depth and width of the models whose bytes are compared at some depth; their batch and length.
DEEP: dict[str, int] = {"depth": 12, "width": 192, "batch": 4, "length": 64}
SMALL: dict[str, int] = {"depth": 2, "width": 32, "batch": 2, "length": 12}


def _transformers() -> Any:
    """The library. Where torchvision is there, its models import it."""
    import_torchvision()
    import transformers

    return transformers


def _words(model: nn.Module, vocabulary: int, batch: int, length: int, **more: Any) -> Example:
    """A model that is to tell the words it is given."""
    words = torch.randint(3, vocabulary, (batch, length))
    return Example(model, (), {"input_ids": words, "labels": words, **more})


def _heads(width: int) -> int:
    return max(2, width // 64)


def _gpt2(depth: int, width: int, batch: int, length: int, vocabulary: int = 512, **call: Any) -> Example:
    library = _transformers()
    config = library.GPT2Config(
        n_layer=depth,
        n_embd=width,
        n_head=_heads(width),
        vocab_size=vocabulary,
        n_positions=max(length, 64),
        bos_token_id=0,
        eos_token_id=0,
    )
    return _words(library.GPT2LMHeadModel(config), vocabulary, batch, length, **call)


def _decoder(name: str, **settings: Any) -> Callable[..., Example]:
    """A model with rotary positions and gated units: Llama's kind."""

    def make(depth: int, width: int, batch: int, length: int, vocabulary: int = 512) -> Example:
        library = _transformers()
        config = getattr(library, f"{name}Config")(
            num_hidden_layers=depth,
            hidden_size=width,
            intermediate_size=width * 8 // 3,
            num_attention_heads=_heads(width),
            num_key_value_heads=max(1, _heads(width) // 2),
            vocab_size=vocabulary,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=None,
            **settings,
        )
        model = getattr(library, f"{name}ForCausalLM")(config)
        return _words(model, vocabulary, batch, length, use_cache=False)

    return make


def _bert(name: str, depth: int, width: int, batch: int, length: int, vocabulary: int = 512) -> Example:
    """Words with some of them padding."""
    library = _transformers()
    config = library.BertConfig(
        num_hidden_layers=depth,
        hidden_size=width,
        num_attention_heads=_heads(width),
        intermediate_size=4 * width,
        vocab_size=vocabulary,
    )
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[:, length - 3 :] = 0
    example = _words(getattr(library, name)(config), vocabulary, batch, length, attention_mask=mask)
    if name == "BertForSequenceClassification":
        example.kwargs["labels"] = torch.arange(batch) % 2
    return example


def _t5(depth: int, width: int, batch: int, length: int, vocabulary: int = 512, **call: Any) -> Example:
    library = _transformers()
    config = library.T5Config(
        num_layers=depth,
        d_model=width,
        d_ff=4 * width,
        num_heads=_heads(width),
        d_kv=width // _heads(width),
        vocab_size=vocabulary,
        decoder_start_token_id=0,
    )
    return _words(library.T5ForConditionalGeneration(config), vocabulary, batch, length, **call)


def _mamba(depth: int, width: int, batch: int, length: int, vocabulary: int = 512) -> Example:
    library = _transformers()
    config = library.MambaConfig(
        num_hidden_layers=depth,
        hidden_size=width,
        vocab_size=vocabulary,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    return _words(library.MambaForCausalLM(config), vocabulary, batch, length, use_cache=False)


def _reformer(depth: int, width: int, batch: int, length: int, vocabulary: int = 512) -> Example:
    library = _transformers()
    config = library.ReformerConfig(
        attn_layers=["local", "lsh"] * (depth // 2),
        hidden_size=width,
        feed_forward_size=2 * width,
        num_attention_heads=_heads(width),
        attention_head_size=width // _heads(width),
        vocab_size=vocabulary,
        axial_pos_embds=False,
        max_position_embeddings=max(length, 64),
        local_attn_chunk_length=16,
        lsh_attn_chunk_length=16,
        num_buckets=4,
        is_decoder=True,
        hash_seed=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    return _words(library.ReformerModelWithLMHead(config), vocabulary, batch, length)


class ReformerLayers(nn.Module):
    """The attentions and perceptrons of a Reformer in a plain loop over two streams.

    The layers around these run without gradients, for the library's own backward.
    """

    def __init__(self, layers: nn.ModuleList) -> None:
        super().__init__()
        self.attentions = nn.ModuleList(layer.attention for layer in layers)
        self.perceptrons = nn.ModuleList(layer.feed_forward for layer in layers)

    def forward(self, x: Tensor) -> Tensor:
        attended, hidden = x, x
        for attention, perceptron in zip(self.attentions, self.perceptrons, strict=True):
            attended = attended + attention(hidden).hidden_states
            hidden = hidden + perceptron(attended)
        return torch.cat([attended, hidden], dim=-1)


def _reformer_layers(depth: int, width: int, batch: int, length: int) -> Example:
    model = _reformer(depth, width, batch, length).model
    return Example(ReformerLayers(model.reformer.encoder.layers), (torch.randn(batch, length, width),))


def _images(model: nn.Module, batch: int, size: int) -> Example:
    labels = torch.arange(batch) % 4
    return Example(model, (), {"pixel_values": torch.randn(batch, 3, size, size), "labels": labels})


def _vit(depth: int, width: int, batch: int, size: int, patch: int = 8) -> Example:
    library = _transformers()
    config = library.ViTConfig(
        num_hidden_layers=depth,
        hidden_size=width,
        num_attention_heads=_heads(width),
        intermediate_size=4 * width,
        image_size=size,
        patch_size=patch,
        num_labels=4,
    )
    return _images(library.ViTForImageClassification(config), batch, size)


def _swin(depths: list[int], width: int, batch: int, size: int, window: int = 4) -> Example:
    library = _transformers()
    config = library.SwinConfig(
        depths=depths,
        embed_dim=width,
        num_heads=[2 * 2**place for place in range(len(depths))],
        image_size=size,
        window_size=window,
        num_labels=4,
    )
    return _images(library.SwinForImageClassification(config), batch, size)


def _convnext(depths: list[int], width: int, batch: int, size: int) -> Example:
    library = _transformers()
    sizes = [width * 2**place for place in range(4)]
    config = library.ConvNextConfig(depths=depths, hidden_sizes=sizes, drop_path_rate=0.1, num_labels=4)
    return _images(library.ConvNextForImageClassification(config), batch, size)


def _resnet(depths: list[int], width: int, batch: int, size: int) -> Example:
    library = _transformers()
    sizes = [4 * width * 2**place for place in range(4)]
    config = library.ResNetConfig(embedding_size=width, depths=depths, hidden_sizes=sizes, num_labels=4)
    return _images(library.ResNetForImageClassification(config), batch, size)


def _loss(outputs: Any) -> Tensor:
    return outputs.loss


def _checkpointed(model: Any) -> None:
    model.gradient_checkpointing_enable()


def _client(
    name: str,
    tiny: Callable[[], Example],
    full: Callable[[], Example],
    checkpointed: bool = True,
    obstacle: str = "",
) -> Client:
    checkpoint = _checkpointed if checkpointed else None
    return Client(name, "transformers", tiny, full, _loss, checkpoint=checkpoint, obstacle=obstacle)


LARGE: dict[str, int] = {"depth": 12, "width": 768, "batch": 8, "length": 512}
LLAMA = _decoder("Llama")

UNCACHED: dict[str, bool] = {"use_cache": False}

CLIENTS = (
    _client(
        "GPT2",
        lambda: _gpt2(**DEEP, **UNCACHED),
        lambda: _gpt2(**LARGE, vocabulary=50257, **UNCACHED),
    ),
    _client("GPT2 with its cache", lambda: _gpt2(**SMALL), lambda: _gpt2(**LARGE, vocabulary=50257)),
    _client("Llama", lambda: LLAMA(**DEEP), lambda: LLAMA(16, 2048, 1, 2048, 32000)),
    _client(
        "Qwen3",
        lambda: _decoder("Qwen3", head_dim=16)(**SMALL),
        lambda: _decoder("Qwen3")(28, 1024, 1, 2048, 151936),
    ),
    _client("BERT", lambda: _bert("BertForMaskedLM", **DEEP), lambda: _bert("BertForMaskedLM", **LARGE)),
    _client(
        "BERT classifier",
        lambda: _bert("BertForSequenceClassification", **SMALL),
        lambda: _bert("BertForSequenceClassification", **LARGE),
    ),
    _client("ViT", lambda: _vit(12, 192, 4, 64), lambda: _vit(12, 768, 32, 224, 16)),
    _client("T5", lambda: _t5(**SMALL, **UNCACHED), lambda: _t5(**LARGE, **UNCACHED)),
    _client("T5 with its cache", lambda: _t5(**SMALL), lambda: _t5(**LARGE)),
    _client("Mamba", lambda: _mamba(**SMALL), lambda: _mamba(24, 768, 4, 64)),
    _client("Swin", lambda: _swin([2, 2], 16, 2, 64), lambda: _swin([2, 2, 6, 2], 96, 32, 224, 7)),
    _client(
        "ConvNeXt",
        lambda: _convnext([1, 1, 2, 1], 8, 2, 64),
        lambda: _convnext([3, 3, 9, 3], 96, 32, 224),
        False,
    ),
    _client(
        "ResNet", lambda: _resnet([1, 1, 1, 1], 8, 2, 64), lambda: _resnet([3, 4, 6, 3], 64, 32, 224), False
    ),
    _client(
        "Reformer",
        lambda: _reformer(4, 32, 2, 32),
        lambda: _reformer(12, 768, 8, 512),
        False,
        "its encoder is a Function of its own and one node, which gives other values when it is run "
        "again, and is refused then; its layers go in by themselves",
    ),
    Client(
        "Reformer's layers",
        "transformers",
        lambda: _reformer_layers(4, 32, 2, 32),
        lambda: _reformer_layers(12, 768, 8, 512),
    ),
)
