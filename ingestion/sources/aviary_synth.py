"""The simulated birds: what they sing, who records them, and how a recording sounds. Numbers in, samples out.

The task must need ears that hear time. All species sing in the same band, each individual at its own pitch, so the
mean spectrum says little; what tells species apart is the shape of a syllable and the rhythm of a phrase. A recordist
has one background, and the split goes by recordist, so a model that learns backgrounds learns nothing that helps.

Everything is drawn from ``numpy.random.default_rng((seed, ...))`` and depends on nothing but the seed and the number of
the recording: recording 17 is the same whether 20 or 2000 are asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

RATE_HZ = 16_000
SHORTEST_S, LONGEST_S = 4.5, 5.0
LOWEST_SNR_DB, HIGHEST_SNR_DB = -5.0, 20.0
_FFT = 81_920  # holds the longest recording, and factors into 2 and 5: other lengths take many times longer
_FFT_HZ = np.asarray(np.fft.rfftfreq(_FFT, 1 / RATE_HZ), np.float64)

Split = Literal["train", "valid", "test"]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Syllable:
    """One sound: a carrier that moves along ``contour`` (points in octaves around the pitch), for ``duration_s``.

    ``tremolo_hz`` beats its loudness, ``vibrato`` is (rate in Hz, depth in octaves).
    """

    duration_s: float
    contour: tuple[float, ...]
    tremolo_hz: float = 0.0
    vibrato: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Species:
    """A species: its names, the syllables it knows, and its rhythm.

    A phrase is ``notes`` syllables, ``gap_s`` apart (from end to start), that ``quickens`` (each gap is the one before
    times this); then ``pause_s`` of silence. An individual sings the syllables in an order of its own.
    """

    genus: str
    epithet: str
    english: str
    family: str
    syllables: tuple[Syllable, ...]
    notes: int
    gap_s: float
    pause_s: float
    quickens: float = 1.0

    @property
    def scientific(self) -> str:
        return f"{self.genus} {self.epithet}"


@dataclass(frozen=True)
class Recordist:
    """Who records: the place, the licence, the split, and the background (kind, and the knobs of that kind)."""

    name: str
    split: Split
    background: str
    knobs: tuple[float, ...]
    place: str
    latitude: float
    longitude: float
    licence: str
    device: str


@dataclass(frozen=True)
class Plan:
    """What one recording is going to hold, before a sample of it is made."""

    number: int
    recordist: Recordist
    duration_s: float
    snr_db: float
    species: tuple[Species, ...]  # the first is the one the recording is about
    individuals: tuple[int, ...]


ORDER = "Simulaviformes"
_WHISTLERS, _TRILLERS, _SLIDERS = "Simulavidae", "Fictornithidae", "Imaginavidae"

SPECIES: tuple[Species, ...] = (
    # long notes that glide: the direction and the bend tell them apart
    Species("Simulavis", "ascendens", "Simulated Rising Whistler", _WHISTLERS,
            (Syllable(0.42, (-0.35, 0.35)), Syllable(0.34, (-0.28, 0.30))), 3, 0.16, 0.70),
    Species("Simulavis", "cadens", "Simulated Falling Whistler", _WHISTLERS,
            (Syllable(0.42, (0.35, -0.35)), Syllable(0.34, (0.30, -0.28))), 3, 0.16, 0.70),
    Species("Simulavis", "arcuata", "Simulated Arching Whistler", _WHISTLERS,
            (Syllable(0.46, (-0.32, 0.34, -0.32)), Syllable(0.38, (-0.26, 0.30, -0.26))), 3, 0.16, 0.70),
    Species("Simulavis", "vallis", "Simulated Dipping Whistler", _WHISTLERS,
            (Syllable(0.46, (0.32, -0.34, 0.32)), Syllable(0.38, (0.28, -0.28, 0.28))), 3, 0.16, 0.70),
    # short notes in series: the pace and how it changes tell them apart
    Species("Fictornis", "celer", "Simulated Quick Triller", _TRILLERS,
            (Syllable(0.030, (0.22, -0.22)), Syllable(0.026, (0.26, -0.18))), 22, 0.026, 0.55),
    Species("Fictornis", "tarda", "Simulated Slow Triller", _TRILLERS,
            (Syllable(0.050, (0.25, -0.25)), Syllable(0.044, (0.20, -0.28))), 8, 0.105, 0.55),
    Species("Fictornis", "accelerans", "Simulated Quickening Triller", _TRILLERS,
            (Syllable(0.038, (-0.24, 0.24)), Syllable(0.034, (-0.20, 0.26))), 15, 0.200, 0.60, 0.84),
    Species("Fictornis", "bina", "Simulated Double-noted Triller", _TRILLERS,
            (Syllable(0.070, (-0.30, 0.30)), Syllable(0.070, (0.30, -0.30))), 2, 0.050, 0.30),
    # notes with an inner movement
    Species("Imaginavis", "undulans", "Simulated Wavering Slider", _SLIDERS,
            (Syllable(0.80, (0.0, 0.0), vibrato=(9.0, 0.24)), Syllable(0.65, (0.05, -0.05), vibrato=(9.0, 0.24))),
            1, 0.20, 0.50),
    Species("Imaginavis", "tremens", "Simulated Buzzing Slider", _SLIDERS,
            (Syllable(0.55, (0.12, -0.12), vibrato=(34.0, 0.26)), Syllable(0.45, (-0.1, 0.1), vibrato=(34.0, 0.26))),
            2, 0.22, 0.60),
    Species("Imaginavis", "pulsans", "Simulated Beating Slider", _SLIDERS,
            (Syllable(0.75, (0.30, -0.30), tremolo_hz=13.0), Syllable(0.60, (0.26, -0.26), tremolo_hz=13.0)),
            1, 0.20, 0.55),
    Species("Imaginavis", "gradata", "Simulated Stepping Slider", _SLIDERS,
            (Syllable(0.15, (0.33, 0.33)), Syllable(0.15, (0.0, 0.0)), Syllable(0.15, (-0.33, -0.33))),
            6, 0.030, 0.60),
)  # fmt: skip

_CC = "//creativecommons.org/"
CC0, BY, BY_SA = (_CC + path for path in ("publicdomain/zero/1.0/", "licenses/by/4.0/", "licenses/by-sa/4.0/"))
BY_NC, BY_NC_SA = (_CC + path for path in ("licenses/by-nc/4.0/", "licenses/by-nc-sa/4.0/"))

# Places lie in the open sea around 0 N 0 E, so that no map shows a simulated bird on real land.
RECORDISTS: tuple[Recordist, ...] = (
    Recordist("Sim Aldous", "train", "wind", (1.0, 0.5), "Windward Bank", 0.11, 0.42, CC0, "Simcorder 1"),
    Recordist("Sim Berenice", "train", "stream", (1500, 0.6), "Alder Brook", 0.23, 0.31, BY, "Simcorder 1"),
    Recordist("Sim Corin", "train", "insects", (4600, 28.0), "Cricket Meadow", 0.35, 0.27, BY_SA, "Simcorder 2"),
    Recordist("Sim Delia", "train", "traffic hum", (90, 0.3), "Ring Road Hedge", 0.42, 0.14, BY_NC, "Simcorder 2"),
    Recordist("Sim Edmund", "train", "rustling leaves", (2800, 7.0), "Poplar Row", 0.51, 0.08, BY_NC_SA, "Simphone"),
    Recordist("Sim Flavia", "train", "gale", (1.3, 1.6), "Bald Hill", 0.16, -0.45, BY, "Simphone"),
    Recordist("Sim Gower", "train", "rapids", (2300, 1.4), "Mill Race", 0.28, -0.37, CC0, "Simcorder 1"),
    Recordist("Sim Hermia", "train", "cicadas", (5600, 70.0), "Pine Slope", 0.37, -0.22, BY_NC_SA, "Simcorder 3"),
    Recordist("Sim Ismene", "valid", "rain", (0.5, 3000), "Slate Roof", -0.12, 0.36, BY_SA, "Simcorder 3"),
    Recordist("Sim Jasper", "valid", "generator", (47, 0.8), "Pump House", -0.25, 0.24, BY, "Simphone"),
    Recordist("Sim Kent", "test", "surf", (0.24, 900), "Shingle Cove", -0.33, -0.18, BY_NC, "Simcorder 2"),
    Recordist("Sim Lavinia", "test", "frogs", (1900, 2.2), "Lily Pond", -0.44, -0.29, CC0, "Simcorder 1"),
)


def plan(seed: int, number: int) -> Plan:
    """What recording ``number`` (from 0) is about. Of every six, four are train, one valid, one test."""
    block, place = divmod(number, 6)
    split: Split = "train" if place < 4 else "valid" if place == 4 else "test"
    nth = 4 * block + place if split == "train" else block  # the how-manieth of its split
    crew = [recordist for recordist in RECORDISTS if recordist.split == split]
    turn, at = divmod(nth, len(SPECIES))
    # Each split goes round all species, in an order that is drawn anew each round; the recordists take turns, shifted
    # each round so that everybody meets every species.
    order = np.random.default_rng((seed, 1, place if place >= 4 else 0, turn)).permutation(len(SPECIES))
    rng = np.random.default_rng((seed, 2, number))
    first = int(order[at])
    others = int(rng.choice(4, p=(0.50, 0.27, 0.15, 0.08)))
    rest = rng.choice([index for index in range(len(SPECIES)) if index != first], size=others, replace=False)
    chosen = (first, *(int(index) for index in rest))
    return Plan(
        number=number,
        recordist=crew[(nth + turn) % len(crew)],
        duration_s=round(float(rng.uniform(SHORTEST_S, LONGEST_S)), 2),
        snr_db=round(float(rng.uniform(LOWEST_SNR_DB, HIGHEST_SNR_DB)), 1),
        species=tuple(SPECIES[index] for index in chosen),
        individuals=tuple(int(rng.integers(4)) for _ in chosen),  # each recordist knows four birds of each species
    )


def render(seed: int, plan: Plan) -> Floats:
    """The samples of a recording, float64 ``[samples]`` at 16 kHz, within full scale.

    ``plan.snr_db`` is the power of all song, while there is song, over that of the background within the band that
    birds sing in: a rumble far below does not count. The species of one recording are within 8 dB of each other.
    """
    rng = np.random.default_rng((seed, 3, plan.number))
    samples = round(plan.duration_s * RATE_HZ)
    song = np.zeros(samples)
    for species, individual in zip(plan.species, plan.individuals, strict=True):
        voice = np.random.default_rng((seed, 4, SPECIES.index(species), RECORDISTS.index(plan.recordist), individual))
        song += 10 ** (rng.uniform(-4, 4) / 20) * _sing(species, voice, rng, samples)
    noise = background(plan.recordist, rng, samples)
    sounding = np.abs(song) > 0.05 * np.abs(song).max()
    wanted = _power_in_band(noise) * 10 ** (plan.snr_db / 10)
    mixed = noise + song * np.sqrt(wanted / np.mean(song[sounding] ** 2))
    return np.asarray(mixed * (rng.uniform(0.3, 0.9) / np.abs(mixed).max()))


def _sing(species: Species, voice: np.random.Generator, rng: np.random.Generator, samples: int) -> Floats:
    """One individual's song: ``voice`` is the bird's own (pitch, pace, order), ``rng`` this performance's."""
    pitch_hz = 3_000 * 2 ** voice.uniform(-0.5, 0.5)
    pace = voice.uniform(0.80, 1.25)
    reach, bend = voice.uniform(0.65, 1.2), voice.uniform(-0.12, 0.12)  # how far and how straight its notes move
    order = voice.integers(len(species.syllables), size=species.notes)
    if species.notes < len(species.syllables):  # one note a phrase: the birds still know more than one
        order = voice.permutation(len(species.syllables))[: species.notes]
    if species.epithet in ("bina", "gradata"):  # their order is a cycle; where it begins is the bird's own
        order = (np.arange(species.notes) + voice.integers(len(species.syllables))) % len(species.syllables)
    out = np.zeros(samples)
    at = rng.uniform(0.0, 0.6)
    while at < samples / RATE_HZ - 0.3:
        gap = species.gap_s
        phrase_pitch = pitch_hz * 2 ** rng.normal(0, 0.04)
        for index in order:
            syllable = species.syllables[index]
            sound = _syllable(syllable, phrase_pitch * 2 ** rng.normal(0, 0.015), pace, reach, bend, rng)
            start = round(at * RATE_HZ)
            room = max(min(len(sound), samples - start), 0)
            out[start : start + room] += sound[:room]
            at += len(sound) / RATE_HZ + gap / pace * rng.uniform(0.92, 1.08)
            gap *= species.quickens
        at += species.pause_s / pace * rng.uniform(0.8, 1.3)
    return out


def _syllable(
    syllable: Syllable, pitch_hz: float, pace: float, reach: float, bend: float, rng: np.random.Generator
) -> Floats:
    """One sound: a swept sine with a weak second harmonic, under a smooth envelope."""
    samples = max(round(syllable.duration_s / pace * rng.uniform(0.94, 1.06) * RATE_HZ), 64)
    along = np.linspace(0, 1, samples)
    seconds = np.arange(samples) / RATE_HZ
    octaves = reach * np.interp(along, np.linspace(0, 1, len(syllable.contour)), syllable.contour)
    octaves += bend * np.sin(np.pi * along)
    rate, depth = syllable.vibrato
    if depth:
        octaves += reach * depth * np.sin(2 * np.pi * (rate * pace * seconds + rng.uniform()))
    phase = 2 * np.pi * np.cumsum(pitch_hz * 2**octaves) / RATE_HZ
    edge = min(0.012, syllable.duration_s / 4)
    envelope = np.minimum(1, np.minimum(seconds, seconds[::-1]) / edge)
    if syllable.tremolo_hz:
        envelope = envelope * (0.5 - 0.5 * np.cos(2 * np.pi * syllable.tremolo_hz * pace * seconds)) ** 1.5
    return np.asarray(envelope * (np.sin(phase) + 0.08 * np.sin(2 * phase)))


def _power_in_band(sound: Floats) -> float:
    """Mean square of what lies between 1.5 and 7.5 kHz."""
    power = np.abs(np.fft.rfft(sound, _FFT)) ** 2
    return float(2 * power[(_FFT_HZ > 1_500) & (_FFT_HZ < 7_500)].sum() / len(sound) / _FFT)


def background(recordist: Recordist, rng: np.random.Generator, samples: int) -> Floats:
    """What is heard at a recordist's place besides birds, ``[samples]``, mean square 1; other each time, one kind."""
    first, second = recordist.knobs
    seconds = np.arange(samples) / RATE_HZ
    kind = recordist.background
    if kind in ("wind", "gale"):  # steepness, gusts
        sound = _noise(rng, samples, lambda hz: (hz + 40) ** -first) * _swell(rng, seconds, 0.7, second)
    elif kind in ("stream", "rapids"):  # middle Hz, bubbling
        sound = _noise(rng, samples, lambda hz: np.exp(-(np.log2((hz + 1) / first) ** 2) / 2))
        sound *= _swell(rng, seconds, 9.0, second)
    elif kind in ("insects", "cicadas"):  # Hz, beats a second
        tone = _noise(rng, samples, lambda hz: np.exp(-(((hz - first) / 180) ** 2)))
        beat = 0.5 + 0.5 * np.sin(2 * np.pi * second * rng.uniform(0.9, 1.1) * seconds)
        sound = _unit(tone) * beat + 0.35 * _pink(rng, samples)
    elif kind in ("traffic hum", "generator"):  # Hz of the hum, its strength
        hum = sum(np.sin(2 * np.pi * (first * k * seconds + rng.uniform())) / k for k in range(1, 24))
        sound = second * _unit(np.asarray(hum)) + _pink(rng, samples) * _swell(rng, seconds, 0.3, 0.5)
    elif kind in ("rustling leaves", "surf"):  # (middle Hz, bursts a second) or (swells a second, corner Hz)
        speed, corner = (second, first) if kind == "rustling leaves" else (first, second)
        sound = _noise(rng, samples, lambda hz: 1 / (1 + (hz / corner) ** 2)) * _swell(rng, seconds, speed, 1.3)
    elif kind == "rain":  # loudness of the drops, their Hz
        drops = (rng.random(samples) < 0.004) * rng.exponential(1.0, samples)
        ring = np.exp(-seconds[:200] * 900) * np.sin(2 * np.pi * second * seconds[:200])
        sound = first * _unit(np.convolve(drops, ring)[:samples]) + 0.6 * _noise(rng, samples, np.ones_like)
    else:  # frogs: Hz, croaks a second
        sound = 0.45 * _pink(rng, samples)
        for _ in range(rng.poisson(second * seconds[-1])):
            croak = _croak(first * 2 ** rng.uniform(-0.4, 0.1), rng)
            start = int(rng.integers(samples - len(croak)))
            sound[start : start + len(croak)] += rng.uniform(0.5, 2.0) * croak
    return _unit(sound + 0.08 * rng.standard_normal(samples) * np.sqrt(np.mean(sound**2)))


def _noise(rng: np.random.Generator, samples: int, gain: Callable[[Floats], Floats]) -> Floats:
    """Gaussian noise with the amplitude spectrum ``gain(hz)``, mean square 1."""
    spectrum = np.fft.rfft(rng.standard_normal(_FFT))
    return _unit(np.fft.irfft(spectrum * gain(_FFT_HZ), _FFT)[:samples])


def _pink(rng: np.random.Generator, samples: int) -> Floats:
    return _noise(rng, samples, lambda hz: (hz + 50) ** -0.5)


def _swell(rng: np.random.Generator, seconds: Floats, per_second: float, depth: float) -> Floats:
    """A loudness that wanders: log-normal, about ``per_second`` times a second, ``depth`` nepers deep."""
    points = int(seconds[-1] * per_second * 2) + 3
    return np.asarray(np.exp(depth / 2 * np.interp(seconds, np.linspace(0, seconds[-1], points),
                                                   rng.standard_normal(points))))  # fmt: skip


def _croak(pitch_hz: float, rng: np.random.Generator) -> Floats:
    seconds = np.arange(round(rng.uniform(0.10, 0.25) * RATE_HZ)) / RATE_HZ
    pulses = (0.5 + 0.5 * np.sin(2 * np.pi * 45 * seconds)) ** 3
    return np.asarray(pulses * np.sin(2 * np.pi * pitch_hz * seconds) * np.hanning(len(seconds)))


def _unit(sound: NDArray[np.floating]) -> Floats:
    return np.asarray(sound / np.sqrt(np.mean(sound**2) + 1e-12), np.float64)
