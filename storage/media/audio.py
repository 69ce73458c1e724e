"""Audio files as numbers: any WAV, FLAC, OGG or MP3 to mono PCM at a wanted rate, and PCM to FLAC.

Recordings come from strangers and may last hours, so decoding is a stream of blocks with caps on length, channels and
sample rate: memory stays that of one block, and a small file cannot unfold into a huge one. A file that cannot be
read whole is an error, never a shorter recording. (OGG is the exception: a stream that was cut off between two
pages is a valid shorter stream, and nothing in it tells.)

Samples are float32 in [-1, 1] unless a name says int16.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from numpy.typing import NDArray

from storage.errors import Problem

if TYPE_CHECKING:
    from soundfile import SoundFile

Pcm = NDArray[np.float32]
Pcm16 = NDArray[np.int16]

# Lower-case endings of the files that libsndfile reads and that people keep birdsong in.
SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff")
CONTENT_TYPES = {
    ".wav": "audio/wav",
    ".flac": "audio/flac",
    ".ogg": "audio/ogg",
    ".oga": "audio/ogg",
    ".opus": "audio/ogg",
    ".mp3": "audio/mpeg",
    ".aif": "audio/aiff",
    ".aiff": "audio/aiff",
}

SILENCE_DB = -120.0  # what the level of digital silence is called
_BLOCK_FRAMES = 65_536  # 1.5 s at 44.1 kHz: half a megabyte of stereo float32
# Less than this part of the declared frames means a file cut short. Headers of intact MP3 files are off by a per cent.
_WHOLE = 0.9


class AudioError(Problem):
    """A file that is not the audio it says it is: the file's name and what is wrong with it."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"cannot read the audio in {name}: {reason}", "Replace the file with an intact copy")
        self.name = name
        self.reason = reason


@dataclass(frozen=True)
class Limits:
    """What a recording may be at most; more is refused as damaged or hostile."""

    duration_s: float = 4 * 3600.0
    samples: int = 4 * 3600 * 96_000  # of all channels together: what decoding takes time for
    channels: int = 16
    lowest_rate_hz: int = 2_000
    highest_rate_hz: int = 768_000


LIMITS = Limits()


@dataclass(frozen=True)
class AudioInfo:
    """What a file's header declares. For MP3 without a length header, ``frames`` is an estimate."""

    sample_rate_hz: int
    channels: int
    frames: int
    container: str
    encoding: str

    @property
    def duration_s(self) -> float:
        return self.frames / self.sample_rate_hz


def probe(source: bytes | Path, *, name: str = "", limits: Limits = LIMITS) -> AudioInfo:
    """Read the header only. Raises AudioError."""
    with _opened(source, _name(source, name), limits) as (_, info):
        return info


def blocks(source: bytes | Path, sample_rate_hz: int, *, name: str = "", limits: Limits = LIMITS) -> Iterator[Pcm]:
    """Decode to mono at ``sample_rate_hz``, as a stream of non-empty float32 blocks of shape ``[samples]``.

    Channels are averaged; rates are converted by soxr (high quality, linear phase). The blocks together hold
    ``round(frames * sample_rate_hz / source rate)`` samples, to within one. Memory is that of a few blocks.
    Raises AudioError when the file is empty, damaged, cut short or beyond the limits: it may come after some blocks.
    """
    import soxr

    called = _name(source, name)
    with _opened(source, called, limits) as (file, info):
        same_rate = info.sample_rate_hz == sample_rate_hz
        resampler = soxr.ResampleStream(info.sample_rate_hz, sample_rate_hz, 1, dtype="float32", quality="HQ")
        heard = 0
        while True:
            frames = _read(file, called)
            heard += len(frames)
            if heard > limits.duration_s * info.sample_rate_hz:
                raise AudioError(called, f"it goes on for more than {limits.duration_s:g} s")
            if heard * info.channels > limits.samples:
                raise AudioError(called, f"it has more than {limits.samples:,} samples")
            mono = frames.mean(axis=1, dtype=np.float32) if len(frames) else np.zeros(0, np.float32)
            if not np.isfinite(mono).all():
                raise AudioError(called, "it holds samples that are not numbers")
            last = len(frames) == 0
            out = mono if same_rate else resampler.resample_chunk(mono, last=last)
            if len(out):
                yield out
            if last:
                break
        if heard == 0:
            raise AudioError(called, "it holds no samples")
        if heard < _WHOLE * info.frames:
            raise AudioError(
                called,
                f"it ends after {heard / info.sample_rate_hz:.1f} s of {info.duration_s:.1f} s",
            )


def decode(source: bytes | Path, sample_rate_hz: int, *, name: str = "", limits: Limits = LIMITS) -> Pcm:
    """The whole recording as one float32 array of shape ``[samples]``; see :func:`blocks` for the rest."""
    return np.concatenate(list(blocks(source, sample_rate_hz, name=name, limits=limits)))


def verify(source: bytes | Path, *, name: str = "", limits: Limits = LIMITS) -> AudioInfo:
    """Decode a recording to its end and keep nothing of it. Raises AudioError when :func:`blocks` would."""
    info = probe(source, name=name, limits=limits)
    for _ in blocks(source, info.sample_rate_hz, name=name, limits=limits):
        pass
    return info


def to_int16(pcm: Pcm) -> Pcm16:
    """Float samples as 16-bit integers: full scale is 32768, what lies beyond is clipped."""
    scaled: Pcm16 = np.clip(np.rint(pcm * 32768.0), -32768, 32767).astype(np.int16)
    return scaled


def to_float32(pcm: Pcm16) -> Pcm:
    """16-bit samples as float32; the inverse of :func:`to_int16`."""
    return pcm.astype(np.float32) / np.float32(32768.0)


def encode_flac(pcm: Pcm | Pcm16, sample_rate_hz: int) -> bytes:
    """Mono 16-bit FLAC of samples ``[samples]``. The same samples give the same bytes, and they decode exactly."""
    import soundfile

    body = io.BytesIO()
    samples = pcm if pcm.dtype == np.int16 else to_int16(pcm.astype(np.float32))
    soundfile.write(body, samples, sample_rate_hz, format="FLAC", subtype="PCM_16")
    return body.getvalue()


def level_db(pcm: Pcm) -> float:
    """Root mean square in dB of full scale; digital silence is -120."""
    power = float(np.mean(np.square(pcm, dtype=np.float64))) if len(pcm) else 0.0
    return max(10 * math.log10(power), SILENCE_DB) if power > 0 else SILENCE_DB


def cut(stream: Iterable[Pcm], window_samples: int, shortest_samples: int) -> Iterator[tuple[int, Pcm]]:
    """Windows of a stream, end to end: ``(first sample, pcm)``, each ``window_samples`` long but the last.

    A rest shorter than ``shortest_samples`` is left out, unless the whole stream is that short: then it is the one
    window. An empty stream has none.
    """
    held: list[Pcm] = []
    waiting = start = 0
    for block in stream:
        held.append(block)
        waiting += len(block)
        if waiting < window_samples:
            continue
        ready = np.concatenate(held)
        whole = waiting // window_samples * window_samples
        for at in range(0, whole, window_samples):
            yield start + at, ready[at : at + window_samples]
        held, waiting, start = [ready[whole:]], waiting - whole, start + whole
    if waiting >= shortest_samples or (waiting and not start):
        yield start, np.concatenate(held)


def _name(source: bytes | Path, name: str) -> str:
    return name or (source.name if isinstance(source, Path) else "the given bytes")


@contextmanager
def _opened(source: bytes | Path, name: str, limits: Limits) -> Iterator[tuple[SoundFile, AudioInfo]]:
    """Open, check the header against the limits, close."""
    import soundfile

    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as stream:
        if not stream.read(1):
            raise AudioError(name, "the file is empty")
        missing = _bytes_missing(stream)
        if missing:
            raise AudioError(name, f"the file is cut short: {missing} bytes of its samples are missing")
        try:
            file = soundfile.SoundFile(stream)
        except (soundfile.LibsndfileError, RuntimeError, TypeError, ValueError) as error:
            raise AudioError(name, _reason(error)) from None
        with file:
            info = AudioInfo(file.samplerate, file.channels, max(file.frames, 0), file.format, file.subtype)
            if info.channels > limits.channels:
                raise AudioError(name, f"{info.channels} channels (at most {limits.channels})")
            if not limits.lowest_rate_hz <= info.sample_rate_hz <= limits.highest_rate_hz:
                raise AudioError(name, f"a sample rate of {info.sample_rate_hz} Hz")
            # A stream of unknown length declares the largest number there is; the count while decoding catches it.
            if info.frames < 2**62 and info.duration_s > limits.duration_s:
                raise AudioError(name, f"{info.duration_s:.0f} s long (at most {limits.duration_s:g} s)")
            if info.frames < 2**62 and info.frames * info.channels > limits.samples:
                raise AudioError(name, f"{info.frames * info.channels:,} samples (at most {limits.samples:,})")
            yield file, info


def _read(file: SoundFile, name: str) -> Pcm:
    """The next frames ``[frames, channels]``; none at the end."""
    import soundfile

    try:
        frames: Pcm = file.read(_BLOCK_FRAMES, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise AudioError(name, _reason(error)) from None
    return frames


def _reason(error: Exception) -> str:
    """What libsndfile says, without the memory address that its Python wrapper puts in front."""
    said = str(getattr(error, "error_string", None) or error).removeprefix("Error : ").strip().rstrip(".")
    if not said or "does not exist" in said:  # how it reports a stream whose first frame is damaged
        return "it is not audio, or damaged from the start"
    return f"{said[:1].lower()}{said[1:]}"


def _bytes_missing(stream: BinaryIO) -> int:
    """How many bytes of samples a WAV header promises beyond the end of the file: libsndfile makes up for it silently.

    0 for other formats, and for recorders that write no length (0 or the largest number) because they stream.
    """
    size = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    head = stream.read(12)
    missing = 0
    if head[:4] == b"RIFF" and head[8:12] == b"WAVE":
        at = 12
        while at + 8 <= size:
            stream.seek(at)
            kind, length = stream.read(4), int.from_bytes(stream.read(4), "little")
            if kind == b"data":
                missing = max(at + 8 + length - size, 0) if length < 0xFFFFFF00 else 0
                break
            at += 8 + length + length % 2
    stream.seek(0)
    return missing
