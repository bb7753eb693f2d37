"""Transformer encoder on token ids, with a head for classes or for masked tokens."""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp
from torch import Tensor, nn

from asap_exp.attention import MultiHeadAttention, fill_attention
from asap_exp.core.config import EncoderConfig, TextTrainConfig
from asap_exp.data.describing import described_texts
from asap_exp.data.tokens import PAD, TokenBatch

ACTIVATIONS = {"gelu": nn.GELU, "relu": nn.ReLU}
INITIAL_STD = 0.02


class EncoderBlock(nn.Module):
    """Transformer block on `[B, N, dim]`, with a LayerNorm before (pre) or after each part."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.pre_norm = config.norm == "pre"
        self.norm1, self.norm2 = nn.LayerNorm(config.dim), nn.LayerNorm(config.dim)
        self.attn = MultiHeadAttention(
            config.dim, config.heads, qk_norm=config.qk_norm, proj_drop=config.dropout
        )
        self.mlp = Mlp(
            config.dim,
            round(config.dim * config.mlp_ratio),
            act_layer=ACTIVATIONS[config.activation],
            drop=(0.0, config.dropout),
        )
        self.drop_path = DropPath(config.drop_path)

    def forward(self, x: Tensor, key_padding_mask: Tensor | None) -> Tensor:
        if self.pre_norm:
            x = x + self.drop_path(self.attn(self.norm1(x), key_padding_mask=key_padding_mask))
            return x + self.drop_path(self.mlp(self.norm2(x)))
        x = self.norm1(x + self.drop_path(self.attn(x, key_padding_mask=key_padding_mask)))
        return self.norm2(x + self.drop_path(self.mlp(x)))


class Positions(nn.Module):
    """Position embedding `[max_length, dim]`, added to the tokens.

    `learned`; `sinusoidal` (Vaswani et al., 2017); or `frozen_noise`: untrained standard normal
    values, as in the published Sinkformer text runs.
    """

    table: Tensor

    def __init__(self, kind: str, max_length: int, dim: int) -> None:
        super().__init__()
        if kind == "learned":
            self.table = nn.Parameter(torch.randn(max_length, dim) * INITIAL_STD)
        elif kind == "sinusoidal":
            self.register_buffer("table", sinusoids(max_length, dim), persistent=False)
        else:
            self.register_buffer("table", torch.randn(max_length, dim))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table[: x.shape[1]]


def encoder_of(config: TextTrainConfig) -> "TextEncoder":
    """Build the encoder of a training configuration."""
    data = config.data
    return TextEncoder(
        config.model,
        config.attention,
        vocab_size=data.vocab_size,
        max_length=data.max_length,
        num_classes=None if config.objective.of_tokens else described_texts(data).num_classes,
    )


class TextEncoder(nn.Module):
    """Encoder from token ids to logits: `[B, classes]`, or `[positions, vocab]` for masked tokens.

    The content of padded positions changes no output, unless the pooling is `max_padded`.
    """

    def __init__(
        self,
        config: EncoderConfig,
        attention: Mapping[str, Any],
        *,
        vocab_size: int,
        max_length: int,
        num_classes: int | None,
    ) -> None:
        """Build the encoder; `num_classes` None makes a masked language model."""
        super().__init__()
        self.embed = nn.Embedding(vocab_size, config.dim, padding_idx=PAD)
        self.positions = Positions(config.positions, max_length, config.dim)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(EncoderBlock(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.dim) if config.norm == "pre" else nn.Identity()
        self.apply(initialise_weights)
        self.head: MaskedTokenHead | ClassHead
        if num_classes is None:
            self.head = MaskedTokenHead(config.dim, vocab_size)
        else:
            self.head = ClassHead(config, num_classes)
        self.head.apply(initialise_weights)
        # Last: other weights do not depend on it
        fill_attention(self, attention, tokens=None)

    def no_weight_decay(self) -> set[str]:
        """Return the parameters that are not decayed, as timm's models do."""
        return {"positions.table"}

    def forward(self, batch: TokenBatch) -> Tensor:
        x = self.dropout(self.positions(self.embed(batch.ids)))
        for block in self.blocks:
            x = block(x, batch.key_padding_mask)
        x = self.norm(x)
        if isinstance(self.head, ClassHead):
            return self.head(x, batch.key_padding_mask)
        assert batch.positions is not None, "masked batches have positions"
        return self.head(x.flatten(0, 1)[batch.positions], self.embed.weight)


class ClassHead(nn.Module):
    """Class logits `[B, classes]` from `[B, N, dim]`, pooled by mean, maximum or the first token.

    `max_padded` also takes the maximum over padded positions. With `head_softmax` the output is a
    softmax, to which the loss applies another softmax. Both are quirks of the published
    Sinkformers.
    """

    def __init__(self, config: EncoderConfig, num_classes: int) -> None:
        super().__init__()
        self.pooling, self.softmax = config.pooling, config.head_softmax
        self.dropout = nn.Dropout(config.dropout)
        self.linear = nn.Linear(config.dim, num_classes)

    def forward(self, x: Tensor, key_padding_mask: Tensor | None) -> Tensor:
        logits = self.linear(self.dropout(pooled(x, key_padding_mask, self.pooling)))
        return logits.softmax(dim=-1) if self.softmax else logits


class MaskedTokenHead(nn.Module):
    """Token logits `[M, vocab]` from `[M, dim]`, tied to the embedding of the input tokens."""

    def __init__(self, dim: int, vocab_size: int) -> None:
        super().__init__()
        self.dense, self.norm = nn.Linear(dim, dim), nn.LayerNorm(dim)
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return F.linear(self.norm(F.gelu(self.dense(x))), embedding, self.bias)


def pooled(x: Tensor, key_padding_mask: Tensor | None, pooling: str) -> Tensor:
    """Pool `x` `[B, N, dim]` to `[B, dim]`; the first token of every text is valid."""
    if pooling == "cls":
        return x[:, 0]
    if pooling == "max_padded":
        return x.amax(dim=1)
    if pooling == "max":
        if key_padding_mask is not None:
            x = x.masked_fill(key_padding_mask[..., None], float("-inf"))
        return x.amax(dim=1)
    if key_padding_mask is None:
        return x.mean(dim=1)
    total = x.masked_fill(key_padding_mask[..., None], 0.0).sum(dim=1)
    return total / (~key_padding_mask).sum(dim=1, keepdim=True)


def sinusoids(length: int, dim: int) -> Tensor:
    """Return interleaved sin and cos of the position, with wavelengths from 2 pi to 20000 pi."""
    frequencies = torch.exp(torch.arange(0, dim, 2) * (-math.log(10_000.0) / dim))
    angles = torch.arange(length)[:, None] * frequencies
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :dim]


def initialise_weights(module: nn.Module) -> None:
    """Initialise as BERT: normal weights with a small deviation, cut at two of it; zero biases."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.trunc_normal_(module.weight, std=INITIAL_STD, a=-2 * INITIAL_STD, b=2 * INITIAL_STD)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding):
        nn.init.zeros_(module.weight[PAD].detach())
