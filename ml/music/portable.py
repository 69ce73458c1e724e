"""A music model as ONNX: `python -m ml.music.portable RUN OUT.onnx`.

The graph takes what the network is told of each token (see `ml.music.model.Batch`): ids, step, place, above and before,
(pieces, tokens) int64, and around, (pieces, tokens, features) uint8. It gives the logits of each next token, (pieces,
tokens, outputs); which of them may follow, `ml.music.tokens.allowed` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ml.music.compose import Composer, load
from ml.music.data import Surroundings
from ml.music.model import BEATS, PADDING, PLACES, Batch, MusicTransformer
from ml.music.tokens import NONE, PITCHES, VOCABULARY
from ml.training.config import command
from ml.training.portable import export, exporting

INPUTS = ("ids", "step", "place", "above", "before", "around")


class _Logits(nn.Module):
    def __init__(self, network: MusicTransformer) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, ids: Tensor, step: Tensor, place: Tensor, above: Tensor, before: Tensor, around: Tensor
    ) -> Tensor:
        logits: Tensor = self.network(Batch(ids, step, place, above, before, around, torch.full_like(ids, PADDING)))
        return logits


def to_onnx(model: Composer, path: Path) -> float:
    """Write the model to `path`; gives the largest difference from torch's logits. Raises Problem."""
    generator, config = torch.Generator().manual_seed(0), model.network.config
    features = Surroundings(config.history, config.reach).width

    def some(least: int, most: int, *shape: int) -> Tensor:
        return torch.randint(least, most, shape, generator=generator)

    inputs = [
        {
            "ids": some(0, VOCABULARY, pieces, tokens),
            "step": some(0, 4 * BEATS, pieces, tokens).sort(dim=1).values,
            "place": some(0, PLACES + 2, pieces, tokens),
            "above": some(NONE, PITCHES, pieces, tokens),
            "before": some(NONE, PITCHES, pieces, tokens),
            "around": some(0, 2, pieces, tokens, features).mul(255).to(torch.uint8),
        }
        for pieces, tokens in ((2, 24), (1, 1), (3, 57))
    ]
    free = {name: {0: "pieces", 1: "tokens"} for name in (*INPUTS, "logits")}
    return export(_Logits(model.network), inputs, free, path, "logits")


def main(argv: Sequence[str] | None = None) -> None:
    exporting(__doc__ or "", lambda run, out: to_onnx(load(run), out), argv)


if __name__ == "__main__":
    command(main)
