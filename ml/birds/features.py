"""Sound to pictures: log-mel spectrograms and PCEN in torch, and the augmentations that training adds.

Everything works on batches, on whatever device the waveform is on, and needs nothing but torch. Augmentations take a
`torch.Generator`, so a seed fixes them whatever ran before; nothing here is random unless it is given one.
"""

import math

import torch
from torch import Tensor, nn

DECIBELS = 10.0 / math.log(10.0)  # natural logarithm of a power -> dB
QUIET = 1e-10  # the power below which two silences are the same silence (-100 dB of full scale)


def hertz_to_mel(hertz: float) -> float:
    """The mel scale in O'Shaughnessy's form (Speech Communication, 1987), which HTK made common."""
    return 2595.0 * math.log10(1.0 + hertz / 700.0)


def mel_to_hertz(mel: float) -> float:
    """The inverse of `hertz_to_mel`."""
    return 700.0 * (math.pow(10.0, mel / 2595.0) - 1.0)


def mel_filterbank(sample_rate: int, n_fft: int, mels: int, f_min: float, f_max: float) -> Tensor:
    """Triangles of height 1, equally spaced in mel, as in HTK (no area normalization). Frequencies in Hz.

    Returns (n_fft // 2 + 1, mels): a power spectrogram times this is a mel spectrogram. Between the first and the last
    centre the triangles add up to 1. Raises ValueError where a band is too narrow to hold any frequency bin.
    """
    if not 0 <= f_min < f_max <= sample_rate / 2:
        raise ValueError(f"mel bands need 0 <= f_min < f_max <= {sample_rate / 2} Hz, not {f_min} and {f_max}")
    low, high = hertz_to_mel(f_min), hertz_to_mel(f_max)
    edges = torch.tensor([mel_to_hertz(low + (high - low) * i / (mels + 1)) for i in range(mels + 2)])
    bins = torch.linspace(0.0, sample_rate / 2, n_fft // 2 + 1)
    rising = (bins[:, None] - edges[None, :-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[None, 2:] - bins[:, None]) / (edges[2:] - edges[1:-1])
    bank = torch.minimum(rising, falling).clamp(min=0.0)
    if (bank.sum(dim=0) == 0).any():
        raise ValueError(f"{mels} mel bands from {f_min} to {f_max} Hz are too narrow for n_fft={n_fft}")
    return bank


class MelSpectrogram(nn.Module):
    """Waveform (batch, samples) in -1..1 to mel power (batch, frames, mels); frames = samples // hop + 1."""

    def __init__(self, sample_rate: int, n_fft: int, hop: int, mels: int, f_min: float, f_max: float) -> None:
        super().__init__()
        self.n_fft, self.hop = n_fft, hop
        # Buffers follow the model to its device; they are rebuilt from the configuration, not stored with the weights.
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)
        self.register_buffer("bank", mel_filterbank(sample_rate, n_fft, mels, f_min, f_max), persistent=False)
        self.window: Tensor
        self.bank: Tensor

    def forward(self, wave: Tensor) -> Tensor:
        """Mel power of each frame. Raises ValueError for a waveform too short to be reflected at its ends."""
        if wave.shape[-1] <= self.n_fft // 2:
            raise ValueError(f"a waveform of {wave.shape[-1]} samples is too short for frames of {self.n_fft}")
        spectrum = torch.stft(wave, self.n_fft, self.hop, window=self.window, return_complex=True)
        # Scaled so that a full-scale sine has a peak power of about 1 and QUIET means the same for every n_fft.
        power = spectrum.real.square().add_(spectrum.imag.square()).mul_(4.0 / self.window.sum().square())
        return power.transpose(1, 2) @ self.bank


class LogMel(nn.Module):
    """Mel power to decibels, the mean of each band over time taken away, in units of 10 dB.

    Taking the mean away removes what a recorder and a steady background colour every frame with; what is left is what
    changes, which is where the song is.
    """

    def forward(self, power: Tensor) -> Tensor:
        """(batch, frames, mels) mel power to (batch, frames, mels)."""
        level = torch.log(power + QUIET) * (DECIBELS / 10.0)
        return level - level.mean(dim=1, keepdim=True)


class PCEN(nn.Module):
    """Per-channel energy normalization (Wang et al., "Trainable frontend for robust and far-field keyword spotting",
    ICASSP 2017, equations 1 and 2), with gain, bias and root learnt per band.

    M is the mel power and E its smoothed version, E(t) = (1 - s) E(t - 1) + s M(t):
    PCEN(t) = (M(t) / (eps + E(t)) ** gain + bias) ** root - bias ** root.
    """

    def __init__(self, mels: int, smoothing: float = 0.025, gain: float = 0.98, bias: float = 2.0, root: float = 0.5):
        super().__init__()
        self.smoothing = smoothing
        # Logarithms, as the paper trains them: the parameters stay positive.
        self.log_gain = nn.Parameter(torch.full((mels,), math.log(gain)))
        self.log_bias = nn.Parameter(torch.full((mels,), math.log(bias)))
        self.log_root = nn.Parameter(torch.full((mels,), math.log(root)))

    def forward(self, power: Tensor) -> Tensor:
        """(batch, frames, mels) mel power to (batch, frames, mels)."""
        with torch.no_grad():
            smooth = [power[:, 0]]
            for frame in power.unbind(dim=1)[1:]:
                smooth.append(torch.lerp(smooth[-1], frame, self.smoothing))
            level = torch.stack(smooth, dim=1)
        gain, bias, root = self.log_gain.exp(), self.log_bias.exp(), self.log_root.exp()
        return (power / (QUIET + level) ** gain + bias) ** root - bias**root


def mask_bands(picture: Tensor, generator: torch.Generator, time: int, mel: int) -> Tensor:
    """SpecAugment (Park et al., Interspeech 2019): one stretch of frames and one of bands per example become the mean.

    `picture` is (batch, frames, mels); `time` and `mel` are the greatest widths, 0 for none. The random numbers are
    drawn on the CPU, so a GPU masks what a CPU would.
    """
    mean = picture.mean(dim=(1, 2), keepdim=True)
    for axis, widest in ((1, time), (2, mel)):
        size = picture.shape[axis]
        if widest <= 0:
            continue
        draw = torch.rand(2, picture.shape[0], generator=generator)
        width = (draw[0] * (min(widest, size) + 1)).long()
        start = (draw[1] * (size - width + 1)).long()
        place = torch.arange(size)
        hidden = (place >= start[:, None]) & (place < (start + width)[:, None])
        hidden = hidden[:, :, None] if axis == 1 else hidden[:, None, :]
        picture = torch.where(hidden.to(picture.device), mean, picture)
    return picture


def shift_bands(picture: Tensor, generator: torch.Generator, widest: int) -> Tensor:
    """Move each example up or down by at most `widest` mel bands: individuals of a species differ in pitch.

    `picture` is (batch, frames, mels); the band at the edge is repeated.
    """
    if widest <= 0:
        return picture
    mels = picture.shape[2]
    shift = torch.randint(-widest, widest + 1, (picture.shape[0], 1), generator=generator)
    source = (torch.arange(mels)[None, :] + shift).clamp(0, mels - 1).to(picture.device)
    return picture.gather(2, source[:, None, :].expand_as(picture))


def shift_and_gain(wave: Tensor, generator: torch.Generator, decibels: float) -> Tensor:
    """Turn each waveform (batch, samples) round by a random time and make it up to `decibels` louder or softer."""
    batch, samples = wave.shape
    start = torch.randint(0, samples, (batch,), generator=generator).tolist()
    turned = torch.stack([row.roll(by) for row, by in zip(wave, start, strict=True)])
    gain = 10.0 ** ((torch.rand(batch, 1, generator=generator) * 2 - 1) * decibels / 20.0)
    return turned * gain.to(wave.device)


def mix(wave: Tensor, target: Tensor, generator: torch.Generator, share: float) -> tuple[Tensor, Tensor]:
    """Lay one clip over another, with the union of their labels: two birds sing at once, both are there.

    `wave` is (batch, samples), `target` (batch, labels) of 0 and 1. About `share` of the clips get a second one, at a
    random -10..0 dB of its own level. (Mixup of Zhang et al., ICLR 2018, with sound's own rule for the label.)
    """
    batch = wave.shape[0]
    chosen = torch.rand(batch, 1, generator=generator) < share
    gain = 10.0 ** (-torch.rand(batch, 1, generator=generator) / 2.0)
    other = torch.randperm(batch, generator=generator)
    amount = torch.where(chosen, gain, torch.zeros(())).to(wave.device)
    mixed = wave + amount * wave[other.to(wave.device)]
    both = torch.maximum(target, target[other.to(target.device)] * chosen.to(target.device))
    return mixed, both
