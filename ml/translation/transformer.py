"""The Transformer (Vaswani et al. 2017), pre-norm (Xiong et al. 2020), one embedding for both languages and the output.

Shapes: B sentences, K hypotheses of each in a search, S source and T target positions, W width, H heads, D = W / H.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from ml.training.layers import Dropout
from ml.translation.model import ModelConfig
from ml.translation.subwords import PAD


class Attention(nn.Module):
    """Multi-head attention. Keys and values are made apart from the queries, so that a search can keep them."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def split(self, x: Tensor) -> Tensor:
        """(B, T, W) -> (B, H, T, D)."""
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)

    def remember(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S, W) -> keys and values, (B, H, S, D) each."""
        key, value = self.key_value(x).chunk(2, dim=-1)
        return self.split(key), self.split(value)

    def forward(
        self, x: Tensor, memory: tuple[Tensor, Tensor], mask: Tensor | None = None, causal: bool = False
    ) -> Tensor:
        """Queries from x (B, T, W) over a memory; `mask` (B, 1, 1, S) is true where a position may be seen."""
        seen = nn.functional.scaled_dot_product_attention(
            self.split(self.query(x)), *memory, attn_mask=mask, is_causal=causal
        )
        return self.out(seen.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def weights(self, x: Tensor, memory: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        """The attention itself, (B, H, T, S), which the fused kernel does not give."""
        query, key = self.split(self.query(x)), memory[0]
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        return scores.masked_fill(~mask, -math.inf).softmax(dim=-1)


def feed_forward(width: int, inner: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, inner), nn.ReLU(), Dropout(dropout), nn.Linear(inner, width))


class EncoderLayer(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm_attention, self.norm_forward = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.attention = Attention(config.width, config.heads)
        self.forward_layer = feed_forward(config.width, config.inner, config.dropout)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, S, W) -> (B, S, W)."""
        normed = self.norm_attention(x)
        x = x + self.dropout(self.attention(normed, self.attention.remember(normed), mask))
        return x + self.dropout(self.forward_layer(self.norm_forward(x)))  # type: ignore[no-any-return]


class DecoderLayer(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm_self, self.norm_cross = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.norm_forward = nn.LayerNorm(config.width)
        self.self_attention = Attention(config.width, config.heads)
        self.cross_attention = Attention(config.width, config.heads)
        self.forward_layer = feed_forward(config.width, config.inner, config.dropout)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, source: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        """All positions at once, for training: (B, T, W) -> (B, T, W)."""
        normed = self.norm_self(x)
        x = x + self.dropout(self.self_attention(normed, self.self_attention.remember(normed), causal=True))
        x = x + self.dropout(self.cross_attention(self.norm_cross(x), source, mask))
        return x + self.dropout(self.forward_layer(self.norm_forward(x)))  # type: ignore[no-any-return]

    def step(
        self, x: Tensor, past: tuple[Tensor, Tensor] | None, source: tuple[Tensor, Tensor], mask: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """One position of every hypothesis: (B, K, W), and keys and values (B * K, H, t, D) of the positions before.

        The hypotheses of a sentence look at its source as K queries side by side, so its keys are not repeated.
        """
        sentences, beam, width = x.shape
        normed = self.norm_self(x).view(sentences * beam, 1, width)
        key, value = self.self_attention.remember(normed)
        if past is not None:
            key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
        x = x + self.self_attention(normed, (key, value)).view(sentences, beam, width)
        x = x + self.cross_attention(self.norm_cross(x), source, mask)
        return x + self.forward_layer(self.norm_forward(x)), (key, value)


@dataclass
class TransformerState:
    """The source's keys and values (B rows) and those of the numbers so far (B * K rows), a pair for each layer."""

    mask: Tensor
    source: list[tuple[Tensor, Tensor]]
    past: list[tuple[Tensor, Tensor] | None]
    beam: int
    length: int = 0

    def reorder(self, rows: Tensor) -> None:
        self.past = [(past[0][rows], past[1][rows]) for past in self.past if past is not None]

    def keep(self, sentences: Tensor) -> None:
        self.mask = self.mask[sentences]
        self.source = [(key[sentences], value[sentences]) for key, value in self.source]
        places = torch.arange(self.beam, device=sentences.device)
        self.reorder((sentences[:, None] * self.beam + places).flatten())


class Transformer(nn.Module):
    def __init__(self, config: ModelConfig, vocabulary: int) -> None:
        super().__init__()
        self.width = config.width
        self.embedding = nn.Embedding(vocabulary, config.width, padding_idx=PAD)
        self.encoder = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))
        self.decoder = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.norm_encoder, self.norm_decoder = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.dropout = Dropout(config.dropout)
        for parameter in self.parameters():
            if parameter.dim() >= 2:
                nn.init.xavier_uniform_(parameter)
        nn.init.normal_(self.embedding.weight, std=config.width**-0.5)
        with torch.no_grad():
            self.embedding.weight[PAD].zero_()

    def encoder_layers(self) -> Iterator[EncoderLayer]:
        return cast(Iterator[EncoderLayer], iter(self.encoder))

    def decoder_layers(self) -> Iterator[DecoderLayer]:
        return cast(Iterator[DecoderLayer], iter(self.decoder))

    def embed(self, tokens: Tensor, first: int = 0) -> Tensor:
        """(B, T) -> (B, T, W): scaled embeddings plus sinusoids for the positions first, first + 1, …"""
        x = self.embedding(tokens) * math.sqrt(self.width)
        return self.dropout(x + positions(first, tokens.shape[1], self.width, x.device))  # type: ignore[no-any-return]

    def encode(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S) -> what the encoder says (B, S, W) and where there is something (B, 1, 1, S)."""
        mask = (source != PAD)[:, None, None, :]
        x = self.embed(source)
        for layer in self.encoder_layers():
            x = layer(x, mask)
        return self.norm_encoder(x), mask

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """(B, S), (B, T) -> (B, T, W). Padding of the target needs no mask: it lies behind all that looks back."""
        return self.decode(target, *self.encode(source))

    def decode(self, target: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        """(B, T) and what `encode` gave -> (B, T, W), all positions at once."""
        x = self.embed(target)
        for layer in self.decoder_layers():
            x = layer(x, layer.cross_attention.remember(memory), mask)
        return self.norm_decoder(x)  # type: ignore[no-any-return]

    def output(self) -> Tensor:
        """The embedding is the output's weights too (Press & Wolf 2017)."""
        return self.embedding.weight

    def logits(self, hidden: Tensor) -> Tensor:
        return nn.functional.linear(hidden, self.output())

    def start(self, source: Tensor, beam: int) -> TransformerState:
        memory, mask = self.encode(source)
        kept = [layer.cross_attention.remember(memory) for layer in self.decoder_layers()]
        return TransformerState(mask, kept, [None] * len(kept), beam)

    def step(self, tokens: Tensor, state: TransformerState) -> Tensor:
        """(B, K) -> (B, K, vocabulary); adds the position to the state."""
        x = self.embedding(tokens) * math.sqrt(self.width)
        x = x + positions(state.length, 1, self.width, x.device)
        for i, layer in enumerate(self.decoder_layers()):
            x, state.past[i] = layer.step(x, state.past[i], state.source[i], state.mask)
        state.length += 1
        return self.logits(self.norm_decoder(x))

    def attention(self, source: Tensor, target: Tensor) -> Tensor:
        """(B, S), (B, T) -> (B, T, S): the last layer's attention to the source, the mean over its heads."""
        memory, mask = self.encode(source)
        x = self.embed(target)
        weights = x.new_zeros(())
        for layer in self.decoder_layers():
            kept = layer.cross_attention.remember(memory)
            normed = layer.norm_self(x)
            inside = x + layer.self_attention(normed, layer.self_attention.remember(normed), causal=True)
            weights = layer.cross_attention.weights(layer.norm_cross(inside), kept, mask).mean(dim=1)
            x = layer(x, kept, mask)
        return weights


def positions(first: int, count: int, width: int, device: torch.device) -> Tensor:
    """Sinusoids (Vaswani et al. 2017, 3.5) of `count` positions from `first` on: (count, width)."""
    place = torch.arange(first, first + count, dtype=torch.float32, device=device)[:, None]
    numbers = torch.arange(0, width, 2, dtype=torch.float32, device=device)
    angle = place * torch.exp(numbers * (-math.log(10_000.0) / width))
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[:, :width]
