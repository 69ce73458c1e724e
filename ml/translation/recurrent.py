"""A recurrent encoder-decoder with additive attention (Bahdanau et al. 2015), whose matrix is worth a look.

The encoder reads the source in both directions. The decoder's first layer reads the target so far; its state is the
question that attention puts to the source, and the layers above read state and answer together, as in Wu et al. (2016).
What attention says does not go back into the first layer, as it does in Bahdanau's own: so in training every layer runs
over all positions at once, which is several times as fast.

Shapes: B sentences, K hypotheses of each in a search, S source and T target positions, W width, L decoder layers.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ml.training.layers import Dropout
from ml.translation.model import ModelConfig
from ml.translation.subwords import PAD


class BothWays(nn.Module):
    """A GRU (Cho et al. 2014) from left to right and one from right to left, half the width each: (B, S, W) each way.

    The right-to-left one begins at a sentence's own end, not at its padding.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.forwards = nn.GRU(width, width // 2, batch_first=True)
        self.backwards = nn.GRU(width, width // 2, batch_first=True)

    def forward(self, x: Tensor, turned: Tensor) -> Tensor:
        """`turned` (B, S) says which position stands where when each sentence is turned round."""
        there = self.forwards(x)[0]
        back = self.backwards(_take(x, turned))[0]
        return torch.cat([there, _take(back, turned)], dim=-1)


class AdditiveAttention(nn.Module):
    """Softmax over the source of v · tanh(query + key)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(width, width, bias=False), nn.Linear(width, width)
        self.score = nn.Linear(width, 1, bias=False)

    def forward(self, state: Tensor, key: Tensor, mask: Tensor) -> Tensor:
        """How much each state (B, T, W) looks at each key (B, S, W): (B, T, S). `mask` (B, 1, S) is true for text."""
        scores = self.score(torch.tanh(self.query(state)[:, :, None] + key[:, None])).squeeze(-1)
        return scores.masked_fill(~mask, -math.inf).softmax(dim=-1)  # type: ignore[no-any-return]


@dataclass
class RecurrentState:
    """What the source says (B rows) and the hidden states of the layers (L, B * K, W)."""

    mask: Tensor
    memory: Tensor
    key: Tensor
    hidden: Tensor
    beam: int

    def reorder(self, rows: Tensor) -> None:
        self.hidden = self.hidden[:, rows]

    def keep(self, sentences: Tensor) -> None:
        self.mask, self.memory, self.key = self.mask[sentences], self.memory[sentences], self.key[sentences]
        places = torch.arange(self.beam, device=sentences.device)
        self.reorder((sentences[:, None] * self.beam + places).flatten())


class Recurrent(nn.Module):
    def __init__(self, config: ModelConfig, vocabulary: int) -> None:
        super().__init__()
        width = config.width
        self.embedding = nn.Embedding(vocabulary, width, padding_idx=PAD)
        self.encoder = nn.ModuleList(BothWays(width) for _ in range(config.encoder_layers))
        self.begin = nn.Linear(width, width)
        self.first = nn.GRU(width, width, batch_first=True)
        self.attend = AdditiveAttention(width)
        self.above = nn.ModuleList(nn.GRU(2 * width, width, batch_first=True) for _ in range(config.decoder_layers - 1))
        self.out = nn.Linear(2 * width, width)
        self.dropout = Dropout(config.dropout)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        with torch.no_grad():
            self.embedding.weight[PAD].zero_()
        self.width = width

    def output(self) -> Tensor:
        """The embedding is the output's weights too (Press & Wolf 2017)."""
        return self.embedding.weight

    def logits(self, hidden: Tensor) -> Tensor:
        return nn.functional.linear(hidden, self.output())

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        memory, mask = self.encode(source)
        hidden = self.beginning(memory, mask)
        answers, _ = self.decode(self.embed(target), memory, self.attend.key(memory), mask, hidden)
        return answers

    def embed(self, tokens: Tensor) -> Tensor:
        return self.dropout(self.embedding(tokens) * math.sqrt(self.width))  # type: ignore[no-any-return]

    def encode(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S) -> what the encoder says (B, S, W) and where there is something (B, 1, S)."""
        mask = source != PAD
        turned = _turned(mask)
        x = self.embed(source)
        for number, layer in enumerate(self.encoder):
            read = self.dropout(layer(x, turned))
            x = read if number == 0 else x + read
        return x, mask[:, None]

    def beginning(self, memory: Tensor, mask: Tensor) -> Tensor:
        """The decoder's first states (L, B, W): what the source says on the whole, then nothing."""
        filled = mask.transpose(1, 2)
        mean = (memory * filled).sum(dim=1) / filled.sum(dim=1)
        start = torch.tanh(self.begin(mean))
        return torch.stack([start, *(torch.zeros_like(start) for _ in self.above)])

    def decode(self, x: Tensor, memory: Tensor, key: Tensor, mask: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Target embeddings -> what is in mind before each next number, of the same shape, and the last states.

        The embeddings are (B, T, W), with hidden states for B rows; or (B * K, 1, W), one position of K hypotheses of
        each sentence, which then put K questions to one memory.
        """
        state, last = self.first(x, hidden[:1])
        asked = state.view(memory.shape[0], -1, self.width)
        context = (self.attend(asked, key, mask) @ memory).view(state.shape)
        x, lasts = self.dropout(state), [last]
        for number, layer in enumerate(self.above, start=1):
            read, last = layer(torch.cat([x, context], dim=-1), hidden[number : number + 1])
            x = x + self.dropout(read)
            lasts.append(last)
        answer = torch.tanh(self.out(torch.cat([x, context], dim=-1)))
        return self.dropout(answer), torch.cat(lasts)

    def start(self, source: Tensor, beam: int) -> RecurrentState:
        memory, mask = self.encode(source)
        hidden = self.beginning(memory, mask).repeat_interleave(beam, dim=1)
        return RecurrentState(mask, memory, self.attend.key(memory), hidden, beam)

    def step(self, tokens: Tensor, state: RecurrentState) -> Tensor:
        """(B, K) -> (B, K, vocabulary)."""
        x = self.embed(tokens).view(-1, 1, self.width)
        answer, state.hidden = self.decode(x, state.memory, state.key, state.mask, state.hidden)
        return self.logits(answer).view(*tokens.shape, -1)

    def attention(self, source: Tensor, target: Tensor) -> Tensor:
        """(B, S), (B, T) -> (B, T, S)."""
        memory, mask = self.encode(source)
        state, _ = self.first(self.embed(target), self.beginning(memory, mask)[:1])
        return self.attend(state, self.attend.key(memory), mask)  # type: ignore[no-any-return]


def _turned(mask: Tensor) -> Tensor:
    """(B, S), true where there is text, which comes first -> the place of each position when the text is turned."""
    places = torch.arange(mask.shape[1], device=mask.device)
    lengths = mask.sum(dim=1, keepdim=True)
    return torch.where(places < lengths, lengths - 1 - places, places)


def _take(x: Tensor, places: Tensor) -> Tensor:
    return x.gather(1, places[:, :, None].expand(-1, -1, x.shape[-1]))
