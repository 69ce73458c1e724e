"""A translation model as ONNX: `python -m ml.translation.portable RUN OUT.onnx`.

The graph takes sources (sentences, S) and targets so far (sentences, T), int64, padded with 0 on the right, and gives
the logits of each next piece, (sentences, T, vocabulary). The vocabulary is the run's `spm.model`. A source begins with
the piece of the target language and ends with the end mark, a target begins with the beginning mark.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from ml.training.config import command
from ml.training.portable import export, exporting
from ml.translation.data import pad
from ml.translation.model import Translation
from ml.translation.subwords import BOS, EOS
from ml.translation.translate import Translator, load


class _Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        return cast(Translation, self.model).logits(self.model(source, target))


def to_onnx(translator: Translator, path: Path) -> float:
    """Write the model to `path`; gives the largest difference from torch's logits. Raises Problem."""
    generator, size = torch.Generator().manual_seed(0), translator.subwords.size

    def some(*lengths: int) -> list[list[int]]:
        return [torch.randint(4, size, (length,), generator=generator).tolist() for length in lengths]

    inputs = [
        {"source": pad([[*row, EOS] for row in some(*sources)]), "target": pad([[BOS, *row] for row in some(*targets)])}
        for sources, targets in (((8, 3, 6), (5, 7, 2)), ((1,), (12,)), ((20, 4), (1, 3)))
    ]
    free = {name: {0: "sentences", 1: f"{name}_pieces"} for name in ("source", "target")}
    return export(
        _Logits(translator.model), inputs, free | {"logits": {0: "sentences", 1: "target_pieces"}}, path, "logits"
    )


def main(argv: Sequence[str] | None = None) -> None:
    exporting(__doc__ or "", lambda run, out: to_onnx(load(run), out), argv)


if __name__ == "__main__":
    command(main)
