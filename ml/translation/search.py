"""From a model to a translation: the likeliest next number each time (greedy), or a beam of hypotheses.

Both decode a whole batch and drop a sentence as soon as it is done. What comes out for a sentence does not depend on
the sentences beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ml.translation.model import Translation
from ml.translation.subwords import BOS, EOS


@dataclass(frozen=True)
class Hypothesis:
    """Numbers without the marks, and the score that hypotheses of a sentence are ranked by: more is better."""

    tokens: list[int]
    score: float


def limit(length: int) -> int:
    """The most numbers a translation of so many may have: what is more than twice its source's length is a loop."""
    return 2 * length + 10


def limits(source: Tensor, pad: int) -> list[int]:
    """The limit of each source (B, S)."""
    return [limit(length) for length in (source != pad).sum(dim=1).tolist()]


@torch.no_grad()
def greedy(
    model: Translation, source: Tensor, most: Sequence[int], banned: Sequence[int], *, length_penalty: float
) -> list[Hypothesis]:
    """The likeliest number at each step, until the end mark or `most` numbers. Source (B, S); scores as of a beam."""
    state = model.start(source, 1)
    count = source.shape[0]
    tokens = torch.full((count, 1), BOS, device=source.device)
    alive = list(range(count))
    chosen: list[list[int]] = [[] for _ in range(count)]
    scores, lengths = [0.0] * count, [0] * count
    while alive:
        best, token = _log_probabilities(model.step(tokens, state), banned).max(dim=-1)
        rows = []
        for row, (sentence, number, score) in enumerate(
            zip(alive, token[:, 0].tolist(), best[:, 0].tolist(), strict=True)
        ):
            scores[sentence] += score
            lengths[sentence] += 1
            if number != EOS:
                chosen[sentence].append(number)
                if len(chosen[sentence]) < most[sentence]:
                    rows.append(row)
        if len(rows) < len(alive) and rows:
            state.keep(torch.tensor(rows, device=source.device))
        tokens, alive = token[rows], [alive[row] for row in rows]
    return [
        Hypothesis(tokens, score / length**length_penalty)
        for tokens, score, length in zip(chosen, scores, lengths, strict=True)
    ]


@torch.no_grad()
def beam_search(
    model: Translation, source: Tensor, most: Sequence[int], banned: Sequence[int], *, beam: int, length_penalty: float
) -> list[list[Hypothesis]]:
    """The best finished hypotheses of each sentence, best first, at most `beam`. Source (B, S).

    A score is the log probability over length ** length_penalty, the end mark counted in, as CTranslate2 and Hugging
    Face have it. A sentence is done when `beam` hypotheses of it have ended; one that reaches `most` numbers ends
    there.
    """
    count, device = source.shape[0], source.device
    state = model.start(source, beam)
    done: list[list[Hypothesis]] = [[] for _ in range(count)]
    alive = list(range(count))
    tokens = torch.full((count, beam), BOS, device=device)
    history = torch.empty((count, beam, 0), dtype=torch.int64, device=device)
    scores = torch.full((count, beam), -torch.inf, device=device)
    scores[:, 0] = 0.0  # all hypotheses begin alike: only one of them may count
    length = 0
    while alive:
        length += 1
        normal = length**length_penalty
        total = scores[:, :, None] + _log_probabilities(model.step(tokens, state), banned)
        vocabulary = total.shape[-1]
        # Of 2 * beam candidates at most `beam` end (one from each hypothesis), so at least `beam` go on.
        top, place = total.flatten(1).topk(2 * beam, dim=1)
        origin, number = place // vocabulary, place % vocabulary
        ended = number == EOS
        for row, column in (ended & top.isfinite())[:, :beam].nonzero().tolist():
            text = history[row, origin[row, column]].tolist()
            done[alive[row]].append(Hypothesis(text, top[row, column].item() / normal))
        scores, column = top.masked_fill(ended, -torch.inf).topk(beam, dim=1)
        origin, tokens = origin.gather(1, column), number.gather(1, column)
        history = torch.cat(
            [history.gather(1, origin[:, :, None].expand(-1, -1, length - 1)), tokens[:, :, None]], dim=2
        )
        rows = []
        for row, sentence in enumerate(alive):
            if length >= most[sentence]:
                ends = zip(history[row].tolist(), scores[row].tolist(), strict=True)
                done[sentence] += [Hypothesis(text, score / normal) for text, score in ends if score > -torch.inf]
            elif len(done[sentence]) < beam:
                rows.append(row)
        offsets = torch.arange(len(alive), device=device)[:, None] * beam
        state.reorder((offsets + origin).flatten())
        if len(rows) < len(alive):
            kept = torch.tensor(rows, dtype=torch.int64, device=device)
            scores, tokens, history = scores[kept], tokens[kept], history[kept]
            if rows:
                state.keep(kept)
        alive = [alive[row] for row in rows]
    return [sorted(found, key=lambda hypothesis: -hypothesis.score)[:beam] for found in done]


def _log_probabilities(logits: Tensor, banned: Sequence[int]) -> Tensor:
    logits = logits.float()
    logits[..., list(banned)] = -torch.inf
    return logits.log_softmax(dim=-1)
