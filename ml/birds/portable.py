"""A bird model as ONNX: `python -m ml.birds.portable RUN OUT.onnx`.

The graph takes waveforms (clips, samples) in -1..1 at the model's rate, of any length from half a second on, and gives
the probability of each label, (clips, labels). Labels, rate and threshold are in the run's `model.json`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from ml.birds.features import MelSpectrogram
from ml.birds.identify import Identifier, load
from ml.birds.model import BirdNetwork
from ml.training.config import command
from ml.training.portable import export, exporting


class _Mel(nn.Module):
    """The mel spectrogram as convolutions with sines and cosines: ONNX has no complex numbers."""

    def __init__(self, mel: MelSpectrogram) -> None:
        super().__init__()
        self.n_fft, self.hop, self.bank = mel.n_fft, mel.hop, mel.bank
        turns = torch.outer(torch.arange(mel.n_fft // 2 + 1.0), torch.arange(float(mel.n_fft))) / mel.n_fft
        angles = 2 * math.pi * (turns % 1.0)
        self.waves = (torch.cat([angles.cos(), angles.sin()]) * mel.window * 2.0 / mel.window.sum())[:, None]

    def forward(self, wave: Tensor) -> Tensor:
        padded = F.pad(wave[:, None], (self.n_fft // 2, self.n_fft // 2), mode="reflect")
        cosines, sines = F.conv1d(padded, self.waves, stride=self.hop).chunk(2, dim=1)
        return (cosines.square() + sines.square()).transpose(1, 2) @ self.bank


class _Clip(nn.Module):
    def __init__(self, network: BirdNetwork) -> None:
        super().__init__()
        self.network = copy.deepcopy(network)
        self.network.mel = _Mel(network.mel)  # type: ignore[assignment] # it gives the same numbers

    def forward(self, wave: Tensor) -> Tensor:
        clip: Tensor = self.network(wave)[0]
        return clip


def to_onnx(model: Identifier, path: Path) -> float:
    """Write the model to `path`; gives the largest difference from torch's probabilities. Raises Problem."""
    generator, rate = torch.Generator().manual_seed(0), model.network.config.sample_rate
    waves = [
        torch.rand(clips, samples, generator=generator) * 2 - 1
        for clips, samples in ((2, model.network.config.window), (1, rate), (3, 2 * rate + 123))
    ]
    free = {"wave": {0: "clips", 1: "samples"}, "probability": {0: "clips"}}
    return export(_Clip(model.network), [{"wave": wave} for wave in waves], free, path, "probability")


def main(argv: Sequence[str] | None = None) -> None:
    exporting(__doc__ or "", lambda run, out: to_onnx(load(run), out), argv)


if __name__ == "__main__":
    command(main)
