"""Log-mel, PCEN and the augmentations against what the papers say, computed another way."""

import numpy as np
import pytest
import torch
from torch import Tensor

from ml.birds.features import (
    PCEN,
    LogMel,
    MelSpectrogram,
    hertz_to_mel,
    mask_bands,
    mel_filterbank,
    mel_to_hertz,
    mix,
    shift_and_gain,
    shift_bands,
)

RATE = 16_000


def seeded(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tone(hertz: float, seconds: float = 1.0) -> Tensor:
    return torch.sin(2 * torch.pi * hertz * torch.arange(int(RATE * seconds)) / RATE)[None]


def test_filterbank_equals_one_worked_out_by_hand() -> None:
    # Bins at 0, 1, 2, 3 and 4 kHz. The edges of two bands over 0..4000 Hz are at 0, 715.35, 1430.71 and 2146.06 mel,
    # which is 0, 620.6, 1791.3 and 4000 Hz.
    expected = [[0, 0], [0.6759, 0.3241], [0, 0.9055], [0, 0.4528], [0, 0]]
    torch.testing.assert_close(mel_filterbank(8_000, 8, 2, 0, 4_000), torch.tensor(expected), atol=2e-4, rtol=0)


def test_triangles_add_up_to_one_between_the_outer_centres() -> None:
    bank = mel_filterbank(RATE, 1024, 40, 100, 7_600)
    bins = torch.linspace(0, RATE / 2, 513)
    step = (hertz_to_mel(7_600) - hertz_to_mel(100)) / 41
    first, last = (mel_to_hertz(hertz_to_mel(100) + step * i) for i in (1, 40))
    inside = (bins > first) & (bins < last)
    torch.testing.assert_close(bank.sum(dim=1)[inside], torch.ones(int(inside.sum())), atol=1e-4, rtol=0)
    assert bank.sum(dim=1)[bins < 100].abs().max() == 0


def test_mel_scale_has_1000_at_1000_hertz_and_an_inverse() -> None:
    assert hertz_to_mel(1_000) == pytest.approx(1_000, abs=0.05)
    assert mel_to_hertz(hertz_to_mel(4_321.0)) == pytest.approx(4_321.0)


@pytest.mark.parametrize("band", [(500, 100), (0, 9_000), (-5, 4_000)])
def test_impossible_bands_are_refused(band: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="f_min < f_max"):
        mel_filterbank(RATE, 512, 40, *band)


def test_bands_narrower_than_a_bin_are_refused() -> None:
    with pytest.raises(ValueError, match="too narrow"):
        mel_filterbank(RATE, 256, 128, 50, 8_000)


def test_spectrogram_equals_a_frame_by_frame_fourier_transform() -> None:
    wave = torch.randn(2, 4_000, generator=seeded())
    layer = MelSpectrogram(RATE, 512, 160, 32, 100, 8_000)
    ours = layer(wave).numpy()
    assert ours.shape == (2, 4_000 // 160 + 1, 32)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(512) / 512)
    padded = np.pad(wave.double().numpy(), ((0, 0), (256, 256)), mode="reflect")
    for frame in (0, 11, 25):
        spectrum = np.fft.rfft(padded[:, frame * 160 : frame * 160 + 512] * window)
        expected = (np.abs(spectrum) * 2 / window.sum()) ** 2 @ layer.bank.double().numpy()
        np.testing.assert_allclose(ours[:, frame], expected, rtol=2e-3, atol=1e-9)


@pytest.mark.parametrize("hertz", [500.0, 1_500.0, 4_000.0, 7_000.0])
def test_a_tone_is_loudest_in_its_own_band_and_has_a_power_of_one(hertz: float) -> None:
    power = MelSpectrogram(RATE, 1024, 320, 64, 200, 8_000)(tone(hertz))[0, 20]
    step = (hertz_to_mel(8_000) - hertz_to_mel(200)) / 65
    expected = (hertz_to_mel(hertz) - hertz_to_mel(200)) / step - 1
    assert abs(int(power.argmax()) - expected) <= 0.6
    assert 0.5 < power.sum() < 2.5


def test_a_waveform_shorter_than_half_a_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="too short"):
        MelSpectrogram(RATE, 512, 160, 32, 100, 8_000)(torch.zeros(1, 256))


def test_log_mel_is_in_tens_of_decibels_and_ignores_a_steady_colour() -> None:
    power = torch.rand(2, 50, 8, generator=seeded()) + 0.1
    level = LogMel()(power)
    colour = torch.logspace(-3, 3, 8)
    torch.testing.assert_close(LogMel()(power * colour), level, atol=1e-3, rtol=0)
    torch.testing.assert_close(level.mean(dim=1), torch.zeros(2, 8), atol=1e-5, rtol=0)
    louder = power.clone()
    louder[:, 0] *= 10
    assert (LogMel()(louder)[:, 0] - LogMel()(louder)[:, 1] - (level[:, 0] - level[:, 1])).mean() == pytest.approx(
        1.0, abs=1e-3
    )


def test_silence_gives_numbers() -> None:
    for frontend in (LogMel(), PCEN(32)):
        picture = frontend(MelSpectrogram(RATE, 512, 160, 32, 100, 8_000)(torch.zeros(1, RATE)))
        assert torch.isfinite(picture).all()


def test_pcen_equals_the_papers_equations() -> None:
    power = torch.rand(2, 30, 4, generator=seeded()) ** 3
    ours = PCEN(4, smoothing=0.1, gain=0.8, bias=1.5, root=0.4)(power).detach().numpy()
    m = power.double().numpy()
    e = m[:, 0]
    for t in range(30):
        e = 0.9 * e + 0.1 * m[:, t] if t else e
        expected = (m[:, t] / (1e-10 + e) ** 0.8 + 1.5) ** 0.4 - 1.5**0.4
        np.testing.assert_allclose(ours[:, t], expected, rtol=1e-4, atol=1e-5)


def test_pcen_learns_and_forgets_a_constant_gain() -> None:
    power = torch.rand(1, 400, 4, generator=seeded()) + 0.5
    layer = PCEN(4, gain=1.0)
    torch.testing.assert_close(layer(power), layer(power * 100), atol=1e-3, rtol=1e-3)
    layer(power).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())


def test_masks_hide_one_stretch_of_each_axis_and_no_more() -> None:
    picture = torch.randn(16, 60, 20, generator=seeded())
    masked = mask_bands(picture, seeded(1), time=15, mel=5)
    changed = masked != picture
    for before, after, place in zip(picture, masked, changed, strict=True):
        frames, bands = place.all(dim=1), place.all(dim=0)
        assert frames.sum() <= 15 and bands.sum() <= 5
        assert torch.equal(place, frames[:, None] | bands[None, :])
        for hidden in (frames, bands):  # one stretch, without holes
            assert (hidden.int().diff() == 1).sum() + int(hidden[0]) <= 1
        torch.testing.assert_close(after[place], before.mean().expand(int(place.sum())))
    assert changed.any()


def test_masks_wider_than_the_picture_are_no_error() -> None:
    assert mask_bands(torch.randn(4, 5, 3, generator=seeded()), seeded(), time=50, mel=50).shape == (4, 5, 3)


def test_shifted_bands_are_neighbours() -> None:
    picture = torch.arange(10.0).expand(64, 3, 10)
    shifted = shift_bands(picture, seeded(), 2)
    moves = {tuple(row[0].tolist()) for row in shifted}
    assert moves == {tuple(min(9.0, max(0.0, band + by)) for band in range(10)) for by in (-2, -1, 0, 1, 2)}
    assert torch.equal(shift_bands(picture, seeded(), 0), picture)


def test_gain_and_turn_keep_what_is_there() -> None:
    wave = torch.randn(8, 1_000, generator=seeded())
    turned = shift_and_gain(wave, seeded(), decibels=6.0)
    ratio = 20 * torch.log10(turned.abs().amax(dim=1) / wave.abs().amax(dim=1))
    assert ratio.abs().max() <= 6.0 and ratio.std() > 1.0
    unchanged = shift_and_gain(wave, seeded(), decibels=0.0)
    torch.testing.assert_close(unchanged.sort(dim=1).values, wave.sort(dim=1).values)
    assert not torch.equal(unchanged, wave)


def test_mixing_lays_clips_over_each_other_and_unites_their_labels() -> None:
    wave = torch.eye(6).repeat_interleave(50, dim=1)  # each clip sounds in a stretch of its own
    target = torch.eye(6)
    mixed, labels = mix(wave, target, seeded(), share=1.0)
    sounding = mixed.reshape(6, 6, 50).amax(dim=2) > 0
    assert torch.equal(sounding, labels > 0)
    assert torch.equal(labels.diagonal(), torch.ones(6))
    assert labels.sum() > 8
    weaker = mixed[mixed > 0].unique()
    assert weaker.min() >= 10**-0.5
    alone, same = mix(wave, target, seeded(), share=0.0)
    assert torch.equal(alone, wave) and torch.equal(same, target)


def test_a_seed_fixes_every_augmentation() -> None:
    wave, target = torch.randn(6, 2_000, generator=seeded()), torch.eye(6)

    def once(seed: int) -> list[Tensor]:
        torch.rand(3)  # the global state plays no part
        generator = seeded(seed)
        turned, labels = mix(shift_and_gain(wave, generator, 6.0), target, generator, 0.5)
        picture = turned.reshape(6, 50, 40)
        return [labels, mask_bands(shift_bands(picture, generator, 2), generator, 10, 5)]

    assert all(torch.equal(a, b) for a, b in zip(once(3), once(3), strict=True))
    assert not torch.equal(once(3)[1], once(4)[1])
