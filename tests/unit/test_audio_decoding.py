"""Any audio file becomes the same numbers, or one clear error; never a crash, a lie or a full memory."""

from __future__ import annotations

import io
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.media import audio

FORMATS = {
    "WAV16": ("WAV", "PCM_16"),
    "WAV8": ("WAV", "PCM_U8"),
    "WAV24": ("WAV", "PCM_24"),
    "WAVFLOAT": ("WAV", "FLOAT"),
    "FLAC": ("FLAC", "PCM_16"),
    "OGG": ("OGG", "VORBIS"),
    "MP3": ("MP3", "MPEG_LAYER_III"),
}


def tone(hz: float, rate_hz: int, seconds: float = 1.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(round(rate_hz * seconds)) / rate_hz)).astype(np.float32)


def written(samples: np.ndarray, rate_hz: int, kind: str = "WAV16") -> bytes:
    container, encoding = FORMATS[kind]
    body = io.BytesIO()
    soundfile.write(body, samples, rate_hz, format=container, subtype=encoding)
    return body.getvalue()


def loudest_hz(pcm: np.ndarray, rate_hz: int) -> float:
    spectrum = np.abs(np.fft.rfft(pcm * np.hanning(len(pcm))))
    return float(np.argmax(spectrum) * rate_hz / len(pcm))


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("rate_hz", [16_000, 44_100])
def test_a_tone_keeps_its_pitch_level_and_length(kind: str, rate_hz: int) -> None:
    stereo = np.stack([tone(1000, rate_hz, 2.0)] * 2, axis=1)
    pcm = audio.decode(written(stereo, rate_hz, kind), 16_000)
    assert pcm.dtype == np.float32 and pcm.ndim == 1
    assert abs(len(pcm) - 32_000) <= (1200 if kind == "MP3" else 1)
    assert loudest_hz(pcm, 16_000) == pytest.approx(1000, abs=2)
    assert np.sqrt(np.mean(pcm[4000:28000] ** 2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.05)


def test_what_the_wanted_rate_cannot_hold_is_filtered_and_not_folded() -> None:
    pcm = audio.decode(written(tone(11_000, 44_100), 44_100), 16_000)
    assert np.abs(pcm[1000:-1000]).max() < 1e-3  # folded, it would be a tone of 5 kHz at 0.5


def test_channels_are_averaged() -> None:
    left = tone(700, 16_000)
    assert np.abs(audio.decode(written(np.stack([left, -left], axis=1), 16_000), 16_000)).max() < 1e-3
    quarter = audio.decode(written(np.stack([left, 0 * left], axis=1), 16_000), 16_000)
    assert np.abs(quarter).max() == pytest.approx(0.25, abs=0.01)


def test_flac_keeps_every_sample_and_the_same_samples_give_the_same_bytes() -> None:
    samples = np.random.default_rng(5).integers(-32768, 32768, 20_000).astype(np.int16)
    body = audio.encode_flac(samples, 16_000)
    assert body == audio.encode_flac(samples, 16_000)
    assert np.array_equal(audio.to_int16(audio.decode(body, 16_000)), samples)


def test_int16_clips_and_inverts() -> None:
    assert audio.to_int16(np.array([-2, -1, 0, 0.5, 1, 2], np.float32)).tolist() == [
        *(-32768, -32768, 0),
        *(16384, 32767, 32767),
    ]
    every = np.arange(-32768, 32768).astype(np.int16)
    assert np.array_equal(audio.to_int16(audio.to_float32(every)), every)


def broken() -> dict[str, bytes]:
    noise = (0.2 * np.random.default_rng(1).standard_normal(64_000)).astype(np.float32)
    whole = {kind: written(noise, 16_000, kind) for kind in FORMATS}
    flac = whole["FLAC"]
    return {
        "empty": b"",
        "text": b"this is no audio at all, whatever its name says",
        "html": b"<html><body>404</body></html>" * 100,
        "first bytes of a wav": whole["WAV16"][:10],
        "half a wav": whole["WAV16"][: len(whole["WAV16"]) // 2],
        "half an 8-bit wav": whole["WAV8"][: len(whole["WAV8"]) // 2],
        "half a flac": flac[: len(flac) // 2],
        "half an mp3": whole["MP3"][: len(whole["MP3"]) // 2],
        "a hole in a flac": flac[:20_000] + bytes(500) + flac[20_500:],
        "the head of an ogg": whole["OGG"][:60],
        "no samples": written(np.zeros(0, np.float32), 16_000),
        "not numbers": written(np.full(100, np.nan, np.float32), 16_000, "WAVFLOAT"),
    }


@pytest.mark.parametrize("what", broken())
def test_a_broken_file_gives_one_sentence_with_its_name(what: str, tmp_path: Path) -> None:
    path = tmp_path / "lark.wav"
    path.write_bytes(broken()[what])
    for source, name in ((path, ""), (path.read_bytes(), "lark.wav")):
        with pytest.raises(audio.AudioError) as caught:
            audio.decode(source, 16_000, name=name)
        said = str(caught.value)
        assert "lark.wav" in said and "\n" not in said and "0x" not in said
        with pytest.raises(audio.AudioError):
            audio.verify(source, name=name)


def test_a_recorder_that_streams_writes_no_length_and_is_read_to_the_end() -> None:
    body = bytearray(written(tone(500, 16_000), 16_000))
    at = bytes(body).index(b"data") + 4
    body[at : at + 4] = b"\xff\xff\xff\xff"
    assert len(audio.decode(bytes(body), 16_000)) == 16_000


def patched_wav(rate_hz: int = 16_000, channels: int = 1) -> bytes:
    data = bytes(3200)
    head = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, channels, rate_hz, rate_hz * 2 * channels, 2 * channels, 16)
    return b"RIFF" + struct.pack("<I", 36 + len(data)) + b"WAVE" + head + b"data" + struct.pack("<I", 3200) + data


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (patched_wav(rate_hz=1), "sample rate of 1 Hz"),
        (patched_wav(rate_hz=2_000_000_000), "sample rate of 2000000000 Hz"),
        (patched_wav(channels=200), "200 channels"),
        (written(np.zeros(16_000 * 20, np.float32), 16_000, "FLAC"), "20 s long (at most 10 s)"),
    ],
)
def test_what_would_unfold_into_too_much_is_refused(body: bytes, said: str) -> None:
    with pytest.raises(audio.AudioError) as caught:
        audio.decode(body, 16_000, limits=audio.Limits(duration_s=10))
    assert said in str(caught.value)


def test_a_header_that_hides_the_length_does_not_get_round_the_limit() -> None:
    body = bytearray(written(np.zeros(16_000 * 20, np.float32), 16_000, "FLAC"))
    body[8 + 10 + 3] &= 0xF0  # STREAMINFO: total samples (36 bits) = 0, unknown
    body[8 + 10 + 4 : 8 + 10 + 8] = bytes(4)
    with pytest.raises(audio.AudioError):
        audio.decode(bytes(body), 16_000, limits=audio.Limits(duration_s=10))


def test_an_hour_is_decoded_in_the_memory_of_a_few_blocks(tmp_path: Path) -> None:
    path = tmp_path / "hour.flac"
    with soundfile.SoundFile(path, "w", 8_000, 1, format="FLAC", subtype="PCM_16") as file:
        minute = np.zeros(60 * 8_000, np.int16)
        for _ in range(60):
            file.write(minute)
    tracemalloc.start()
    windows = sum(1 for _ in audio.cut(audio.blocks(path, 16_000), 80_000, 16_000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert windows == 720
    assert peak < 12e6  # the whole would be 230 MB


@settings(max_examples=60, deadline=None, derandomize=True)
@given(sizes=st.lists(st.integers(0, 70), max_size=12), window=st.integers(1, 50), shortest=st.integers(1, 50))
def test_windows_lie_end_to_end_and_lose_only_a_short_rest(sizes: list[int], window: int, shortest: int) -> None:
    shortest = min(shortest, window)
    total = sum(sizes)
    everything = np.arange(total, dtype=np.float32)
    blocks = np.split(everything, np.cumsum(sizes)[:-1]) if sizes else []
    cuts = list(audio.cut(iter(blocks), window, shortest))
    rest = total % window
    expected = total // window + (1 if rest >= shortest or 0 < total < window else 0)
    assert [first for first, _ in cuts] == [window * n for n in range(expected)]
    assert all(len(pcm) == window for _, pcm in cuts[:-1])
    kept = np.concatenate([pcm for _, pcm in cuts]) if cuts else everything[:0]
    assert np.array_equal(kept, everything[: len(kept)]) and total - len(kept) < shortest


@settings(max_examples=25, deadline=None, derandomize=True)
@given(rate_hz=st.sampled_from([8_000, 11_025, 22_050, 32_000, 44_100, 48_000, 96_000]), frames=st.integers(1, 150_000))
def test_length_after_resampling_is_right_to_a_sample(rate_hz: int, frames: int) -> None:
    pcm = audio.decode(written(np.zeros(frames, np.float32), rate_hz), 16_000) if frames * 16_000 >= rate_hz else None
    if pcm is not None:
        assert abs(len(pcm) - frames * 16_000 / rate_hz) <= 1


def test_damaged_bytes_decode_or_give_our_error_and_nothing_else() -> None:
    rng = np.random.default_rng(20)
    bodies = [written(tone(900, 16_000, 0.5), 16_000, kind) for kind in FORMATS if kind != "MP3"]
    refused = 0
    for round_ in range(240):
        body = bytearray(bodies[round_ % len(bodies)])
        for at in rng.integers(0, min(len(body), 200) if round_ % 2 else len(body), 6):
            body[at] = rng.integers(256)
        try:
            pcm = audio.decode(bytes(body[: rng.integers(1, len(body) + 1)] if round_ % 3 == 0 else body), 16_000)
            assert np.isfinite(pcm).all()
        except audio.AudioError:
            refused += 1
    assert refused > 40


def test_real_recordings_decode_at_their_length(data: Path) -> None:
    for path in sorted((data / "birds" / "recordings").iterdir()):
        info = audio.verify(path)
        pcm = audio.decode(path, 16_000)
        assert len(pcm) / 16_000 == pytest.approx(info.duration_s, rel=0.02)
        assert audio.level_db(pcm) > -60
