"""Small models and data for other libraries' trainers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

WORDS = 50


def gpt2(layers: int = 1) -> GPT2LMHeadModel:
    """A language model with dropout, equal at every call."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=WORDS,
        n_positions=16,
        n_embd=16,
        n_layer=layers,
        n_head=2,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config)


def bert(layers: int = 1) -> BertForSequenceClassification:
    """A classifier with dropout, equal at every call."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=WORDS,
        max_position_embeddings=16,
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=3,
    )
    return BertForSequenceClassification(config)


class Sentences(Dataset[dict[str, Any]]):
    """Sixteen padded sentences: their words are the labels, or their classes are."""

    def __init__(self, classes: bool = False) -> None:
        self.classes = classes

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict[str, Any]:
        words = torch.randint(1, WORDS, (12,), generator=torch.Generator().manual_seed(index))
        mask = (torch.arange(12) < 12 - index % 5).long()
        labels = torch.tensor(index % 3) if self.classes else words.masked_fill(mask == 0, -100)
        # `number` is no argument of the models: trainers leave it out by the signature.
        return {"input_ids": words, "attention_mask": mask, "labels": labels, "number": index}

    def batch(self) -> dict[str, Tensor]:
        """The first four sentences as the models take them."""
        batch = default_collate([self[index] for index in range(4)])
        del batch["number"]
        return batch


class Streams(nn.Module):
    """Additive blocks in plain code, with dropout and a head."""

    def __init__(self, width: int = 16, blocks: int = 3) -> None:
        super().__init__()
        self.f = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.g = nn.ModuleList(nn.Sequential(nn.Linear(width, width), nn.Dropout(0.1)) for _ in range(blocks))
        self.head = nn.Linear(2 * width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x1, x2 = x.chunk(2, -1)
        for f, g in zip(self.f, self.g, strict=True):
            x1 = x1 + torch.tanh(f(x2))
            x2 = x2 + torch.tanh(g(x1))
        return self.head(torch.cat([x1, x2], -1))


def streams() -> Streams:
    """Such a network, equal at every call."""
    torch.manual_seed(0)
    return Streams()
