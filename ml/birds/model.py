"""The model that names birds: a small convolutional network with attention over time.

The design is that of PANNs (Kong et al., "PANNs: Large-Scale Pretrained Audio Neural Networks for Audio Pattern
Recognition", IEEE/ACM TASLP 2020) made small: blocks of 3x3 convolutions and average pooling, the mean over the mel
bands, and an attention over time that says when a species is heard, so that the same network names a clip and draws a
timeline. Several species may sing at once: each label is a yes or no of its own.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 (the name everybody knows it by)
from torch import Tensor, nn

from ml.birds.features import PCEN, LogMel, MelSpectrogram, mask_bands, shift_bands


@dataclass(frozen=True)
class ModelConfig:
    """What the network is made of, and what training does to its input."""

    sample_rate: int = 16_000
    window_s: float = 5.0
    n_fft: int = 512
    hop: int = 256
    mels: int = 64
    f_min: float = 200.0
    f_max: float = 8_000.0
    frontend: str = "logmel"  # or "pcen"
    channels: int = 16  # of the first block; each of the other three has twice as many as the one before
    dropout: float = 0.1
    # augmentation, in training only
    mix: float = 0.5  # share of clips that a second one is laid over
    gain_db: float = 6.0
    mask_frames: int = 40
    mask_mels: int = 8
    shift_mels: int = 1

    @property
    def window(self) -> int:
        """Samples in a window."""
        return round(self.window_s * self.sample_rate)


class Block(nn.Module):
    """Convolution, batch normalization, ReLU, average pooling: (batch, in, t, f) to (batch, out, t / pool, f / 2)."""

    def __init__(self, inside: int, outside: int, pool: tuple[int, int]) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inside, outside, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(outside)
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in, t, f) to (batch, out, t // pool[0], f // pool[1])."""
        return F.avg_pool2d(F.relu(self.norm(self.convolution(x))), self.pool)


class AttentionPool(nn.Module):
    """Frames to a clip: each label's probability is the mean over time of its own frames' probabilities, weighted by a
    softmax over time (PANNs, section III-D: decision-level attention of Kong et al. 2019)."""

    def __init__(self, inside: int, labels: int) -> None:
        super().__init__()
        self.attention = nn.Linear(inside, labels)
        self.classifier = nn.Linear(inside, labels)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, frames, inside) to clip (batch, labels) and frames (batch, frames, labels), probabilities."""
        weight = torch.softmax(torch.tanh(self.attention(x)) * 4.0, dim=1)
        frames = torch.sigmoid(self.classifier(x))
        return (weight * frames).sum(dim=1), frames


class BirdNetwork(nn.Module):
    """Waveform (batch, samples) to the probability of each label, for the clip and for each of its frames.

    Any number of samples from half a second on will do: the network is convolutional in time.
    """

    POOLS = ((2, 2), (2, 2), (2, 2), (1, 2))

    def __init__(self, config: ModelConfig, labels: int) -> None:
        super().__init__()
        if config.frontend not in ("logmel", "pcen"):
            raise ValueError(f"frontend must be logmel or pcen, not {config.frontend!r}")
        self.config = config
        self.mel = MelSpectrogram(config.sample_rate, config.n_fft, config.hop, config.mels, config.f_min, config.f_max)
        self.level = PCEN(config.mels) if config.frontend == "pcen" else LogMel()
        widths = [1, *(config.channels * 2**i for i in range(4))]
        self.blocks = nn.ModuleList(
            Block(a, b, pool) for a, b, pool in zip(widths[:-1], widths[1:], self.POOLS, strict=True)
        )
        self.dropout = nn.Dropout(config.dropout)
        self.hidden = nn.Linear(widths[-1], widths[-1])
        self.pool = AttentionPool(widths[-1], labels)

    @property
    def frame_s(self) -> float:
        """Seconds from one output frame to the next."""
        return self.config.hop * 8 / self.config.sample_rate

    def picture(self, wave: Tensor) -> Tensor:
        """What the network sees of a waveform (batch, samples): (batch, frames, mels)."""
        with torch.autocast(wave.device.type, enabled=False):  # a spectrum spans more than half precision resolves
            level: Tensor = self.level(self.mel(wave.float()))
        return level

    def forward(self, wave: Tensor, seed: int | None = None) -> tuple[Tensor, Tensor]:
        """(batch, samples) in -1..1 to clip (batch, labels) and frames (batch, frames', labels), probabilities.

        With a `seed` the picture is augmented, the same way each time for the same seed.
        """
        x = self.picture(wave)
        if seed is not None:
            generator = torch.Generator().manual_seed(seed)
            x = shift_bands(x, generator, self.config.shift_mels)
            x = mask_bands(x, generator, self.config.mask_frames, self.config.mask_mels)
        x = x[:, None].contiguous(memory_format=torch.channels_last)
        for block in self.blocks:
            x = block(x)
        x = x.mean(dim=3).transpose(1, 2)
        x = F.relu(self.hidden(self.dropout(x)))
        with torch.autocast(wave.device.type, enabled=False):
            clip, frames = self.pool(self.dropout(x.float()))
        return clip, frames


def binary_cross_entropy(probability: Tensor, target: Tensor) -> Tensor:
    """The mean over (batch, labels) of the cross-entropy of yes-or-no labels, from float32 probabilities."""
    probability = probability.clamp(1e-6, 1 - 1e-6)
    return -torch.where(target > 0.5, probability.log(), (1 - probability).log()).mean()
