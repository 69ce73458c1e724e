"""Clips: five seconds, end to end, lossless; a file that cannot be decoded leaves only its place in quarantine."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import soundfile
from upstreams.landed_bytes import LandedBytes

from ingestion.contract import BadPage
from ingestion.derive import clips
from ingestion.rows import check
from storage.media import audio

RATE_HZ = 16_000


def page(body: bytes) -> LandedBytes:
    return LandedBytes(body, source="aviary", recording_key="SIM00001", audio_sha256="f00")


def cut(samples: np.ndarray, rate_hz: int = RATE_HZ) -> list[dict[str, Any]]:
    body = io.BytesIO()
    soundfile.write(body, samples, rate_hz, format="WAV", subtype="PCM_16")
    return list(clips.parse(page(body.getvalue())))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("seconds", "ends"),
    [
        (0.2, [0.2]),
        (4.7, [4.7]),
        (5.0, [5.0]),
        (5.9, [5.0]),
        (6.0, [5.0, 6.0]),
        (12.5, [5.0, 10.0, 12.5]),
    ],
)
def test_windows_of_five_seconds_and_a_rest_of_one(seconds: float, ends: list[float]) -> None:
    noise = np.random.default_rng(3).integers(-9000, 9000, round(seconds * RATE_HZ)).astype(np.int16)
    records = cut(noise)
    assert [record["end_s"] for record in records] == ends
    assert [record["start_s"] for record in records] == [5.0 * number for number in range(len(ends))]
    assert [record["clip_id"] for record in records] == [f"aviary:SIM00001:{5000 * n}" for n in range(len(ends))]
    for record in records:
        first = round(record["start_s"] * RATE_HZ)
        pcm = audio.to_int16(audio.decode(record["clip_object"].data, RATE_HZ))
        assert np.array_equal(pcm, noise[first : first + record["samples"]])
        assert record["peak"] == pytest.approx(np.abs(pcm / 32768).max(), abs=1e-4)
        assert record["rms_db"] == pytest.approx(20 * np.log10(np.sqrt(np.mean((pcm / 32768) ** 2))), abs=0.02)
        assert check(clips.CLIPS, record | {"clip_object": "key"}) == ""


def test_the_same_bytes_give_the_same_clips_at_16_khz() -> None:
    stereo = np.random.default_rng(4).normal(0, 0.1, (44_100 * 7, 2))
    once, again = cut(stereo, 44_100), cut(stereo, 44_100)
    assert once == again
    assert [(record["sample_rate"], record["samples"]) for record in once] == [(16_000, 80_000), (16_000, 32_000)]


def test_silence_has_a_level() -> None:
    (record,) = cut(np.zeros(16_000, np.int16))
    assert (record["rms_db"], record["peak"]) == (-120.0, 0.0)


def test_a_file_damaged_late_leaves_no_clips() -> None:
    body = io.BytesIO()
    noise = np.random.default_rng(6).integers(-9000, 9000, 16_000 * 30).astype(np.int16)
    soundfile.write(body, noise, RATE_HZ, format="FLAC", subtype="PCM_16")
    cut_short = body.getvalue()[:-40_000]
    parsed = clips.parse(page(cut_short))
    with pytest.raises(BadPage, match="SIM00001"):
        next(parsed)
