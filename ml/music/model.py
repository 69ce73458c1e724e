"""A decoder-only Transformer that reads a piece token by token and says what may come next.

What is music's own here is what each position is told, and it is told in intervals, so that a progression learnt in
one key is known in all:

* beside its token, a position sees the frame under way and the last few frames as a keyboard centred on the voice it is
  about to write (`Surroundings`), and how often each pitch class has sounded so far, from which the key can be heard;
* beside a score for each absolute pitch, the output has scores for intervals, counted from where the voice comes from
  and from the pitch above it in the frame.

Attention (Vaswani et al. 2017) with rotary positions (Su et al. 2021) counted in frames, not tokens: "the same beat a
bar ago" is the same distance however many voices sound. Blocks are pre-norm, as in GPT-2 (Radford et al. 2019).
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from ml.music.tokens import NONE, OUTPUTS, PITCHES, VOCABULARY, allowed
from ml.training.layers import Dropout

PLACES = 8  # voices told apart; the rest of a very full chord counts as the last one
BEATS = 16  # steps told apart: four bars of quarters, or one of 16ths
PADDING = -100  # a target that is not there
NEVER = -1e9  # the logit of a token that may not follow


@dataclass(frozen=True)
class ModelConfig:
    """The size of the model and what it sees."""

    width: int = 128
    layers: int = 2
    heads: int = 4
    context: int = 256  # tokens read at once: crops in training, windows in scoring
    history: int = 2  # past frames laid out on the keyboard of each position
    reach: int = 24  # semitones of that keyboard on either side
    dropout: float = 0.1
    transpose: int = 6  # semitones up or down at most, drawn for each crop in training


class Batch(NamedTuple):
    """Token sequences side by side, B of them, n long, padded on the right (see `tokens.Described`).

    ids, step, place, above, before: [B, n] int64. around: [B, n, f] uint8, 255 meaning 1 (see `data.Surroundings`).
    target: [B, n] int64, the token that follows, PADDING where none does.
    """

    ids: Tensor
    step: Tensor
    place: Tensor
    above: Tensor
    before: Tensor
    around: Tensor
    target: Tensor


Cache = list[tuple[Tensor, Tensor]]
"""Keys and values of each layer for the tokens read so far, each [B, heads, m, width / heads]."""


class Block(nn.Module):
    """Attention, then two dense layers; each adds to what came in."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.norm_attention, self.norm_dense = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value, self.merge = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = Dropout(config.dropout)

    def forward(
        self, x: Tensor, turn: tuple[Tensor, Tensor], past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """x [B, n, width] -> the same, and the keys and values of past and present [B, heads, m + n, width / heads]."""
        batch, n, width = x.shape
        q, k, v = (
            part.view(batch, n, self.heads, -1).transpose(1, 2)
            for part in self.query_key_value(self.norm_attention(x)).chunk(3, dim=-1)
        )
        q, k = rotate(q, turn), rotate(k, turn)
        if past is None:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
            seen = torch.ones(n, k.shape[2], dtype=torch.bool, device=x.device).tril(k.shape[2] - n)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        x = x + self.dropout(self.merge(y.transpose(1, 2).reshape(batch, n, width)))
        return x + self.dropout(self.down(F.gelu(self.up(self.norm_dense(x))))), (k, v)


class MusicTransformer(nn.Module):
    """Tokens of pieces in, logits of the next tokens out."""

    def __init__(self, config: ModelConfig, surroundings: int) -> None:
        """`surroundings` is the number of features in `Batch.around`. ValueError where the width is not divisible."""
        super().__init__()
        if config.width % (2 * config.heads):
            raise ValueError(f"width {config.width} is not a multiple of twice the heads ({config.heads})")
        self.config = config
        width = config.width
        self.token = nn.Embedding(VOCABULARY, width)
        self.place, self.beat = nn.Embedding(PLACES, width), nn.Embedding(BEATS, width)
        self.around = nn.Linear(surroundings, width)
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)
        self.absolute = nn.Linear(width, OUTPUTS)
        self.below = nn.Linear(width, PITCHES)  # how far below the pitch above: 1 to 128 semitones
        self.moved = nn.Linear(width, 2 * PITCHES - 1)  # where the voice goes: -127 to 127 semitones
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, batch: Batch, cache: Cache | None = None) -> Tensor:
        """Logits [B, n, OUTPUTS] of the token after each one; impossible ones are not yet masked.

        With a `cache`, the batch goes on where the cache ends, and the cache is brought up to date in place; an empty
        list starts one.
        """
        x = self.token(batch.ids) + self.place(batch.place.clamp(max=PLACES - 1)) + self.beat(batch.step % BEATS)
        # Keys of the keyboards are dropped too: few pieces are learnt by heart otherwise (0.08 nats on valid).
        x = self.dropout(x + self.around(self.dropout(batch.around.to(x.dtype) / 255)))
        turn = angles(batch.step, self.config.width // self.config.heads)
        kept: Cache = []
        for layer, block in enumerate(self.blocks):
            x, pair = block(x, turn, cache[layer] if cache else None)
            kept.append(pair)
        if cache is not None:
            cache[:] = kept
        return self._logits(self.norm(x), batch)

    def _logits(self, x: Tensor, batch: Batch) -> Tensor:
        """Scores of pitches as such, plus scores of the intervals that lead to them where there is one."""
        pitch = torch.arange(PITCHES, device=x.device)
        above, before = batch.above[..., None], batch.before[..., None]
        down = self.below(x).gather(-1, (above - 1 - pitch).clamp(0, PITCHES - 1))
        step = self.moved(x).gather(-1, (pitch - before + PITCHES - 1).clamp(0, 2 * PITCHES - 2))
        intervals = down * (above != NONE) + step * (before != NONE)
        logits: Tensor = self.absolute(x) + F.pad(intervals, (0, OUTPUTS - PITCHES))
        return logits


def angles(step: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines [B, 1, n, size / 2] that turn a head's pairs of numbers by the frame's index [B, n]."""
    frequency = torch.exp(torch.arange(size // 2, device=step.device) * (-math.log(1_000.0) / (size // 2)))
    angle = step[:, None, :, None] * frequency
    return angle.cos(), angle.sin()


def rotate(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Turn the pairs (x[i], x[i + size / 2]) of queries or keys [B, heads, n, size] by their angles."""
    cos, sin = turn
    one, two = x.chunk(2, dim=-1)
    return torch.cat([one * cos - two * sin, one * sin + two * cos], dim=-1).to(x.dtype)


def log_probabilities(logits: Tensor, above: Tensor, stop: bool) -> Tensor:
    """Logits [..., OUTPUTS] -> log-probabilities over what may follow; with `stop` the piece may also end."""
    return F.log_softmax(logits.float().masked_fill(~allowed(above, stop), NEVER), dim=-1)


def negative_log_likelihood(logits: Tensor, batch: Batch, stop: bool) -> Tensor:
    """Nats for each target [B, n], 0 where there is none."""
    chosen = log_probabilities(logits, batch.above, stop).gather(-1, batch.target.clamp(min=0)[..., None])[..., 0]
    return torch.where(batch.target == PADDING, 0.0, -chosen)
