"""The simulated birds: the same from the same seed, shaped like xeno-canto, and hard enough to be worth hearing."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from upstreams.landed_bytes import LandedBytes

from ingestion.contract import BadPage, Context, Gone, Page, Resource
from ingestion.rows import check
from ingestion.sources import aviary
from ingestion.sources import aviary_synth as synth
from storage.errors import Problem
from storage.media import audio
from storage.settings import Settings

SEED = 7


def fetch(resource: Resource, recordings: Any, cursor: dict[str, Any] | None = None, seed: Any = SEED) -> list[Any]:
    config = {"recordings": recordings, "seed": seed}
    return list(resource.fetch(Context(config, cursor or {}, resource, None, Settings(), lambda text: None)))


def parsed(resource: Resource, pages: list[Page]) -> list[dict[str, Any]]:
    return [
        record
        for page in pages
        for record in resource.parse(LandedBytes(page.body, page.name, page.content_type, **page.meta))  # type: ignore[arg-type, misc]
    ]


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others() -> None:
    once, again, other = (fetch(aviary.AUDIO, 6, seed=seed) for seed in (SEED, SEED, 8))
    assert [page.body for page in once] == [page.body for page in again]
    assert not {page.body for page in once} & {page.body for page in other}
    assert [page.body for page in fetch(aviary.RECORDINGS, 6)] == [page.body for page in fetch(aviary.RECORDINGS, 6)]


def test_pages_are_shaped_like_the_real_catalogue() -> None:
    pages = fetch(aviary.RECORDINGS, 230)
    bodies = [json.loads(page.body) for page in pages]
    assert [(body["page"], body["numPages"], len(body["recordings"])) for body in bodies] == [
        *((1, 3, 100), (2, 3, 100), (3, 3, 30)),
    ]
    assert bodies[0]["numRecordings"] == "230" and bodies[0]["numSpecies"] == "12"
    wanted = (
        "id gen sp ssp grp en rec cnt loc lat lon alt type sex stage method url file file-name lic q length time date"
    )
    for record in parsed(aviary.RECORDINGS, pages):
        assert set(wanted.split()) < set(record)
        assert check(aviary.RECORDINGS, record) == ""
        assert record["simulated"] is True and record["length"] in ("0:04", "0:05")


def test_a_second_ingest_finds_nothing_and_a_larger_count_only_the_new() -> None:
    for resource in (aviary.RECORDINGS, aviary.AUDIO):
        first = fetch(resource, 7)
        assert fetch(resource, 7, first[-1].cursor) == []
        more = fetch(resource, 9, first[-1].cursor)
        key = resource.key[0]
        assert [record[key] for record in parsed(resource, more)] == ["SIM00008", "SIM00009"]
        at_once = parsed(resource, fetch(resource, 9))
        assert parsed(resource, first) + parsed(resource, more) == at_once
        assert fetch(resource, 3, more[-1].cursor) == []


def test_another_seed_starts_again_and_takes_back_what_it_does_not_replace() -> None:
    first = fetch(aviary.RECORDINGS, 9)
    second = fetch(aviary.RECORDINGS, 6, first[-1].cursor, seed=8)
    assert len(parsed(aviary.RECORDINGS, [page for page in second if isinstance(page, Page)])) == 6
    assert [item.key for item in second if isinstance(item, Gone)] == [("SIM00007",), ("SIM00008",), ("SIM00009",)]
    assert fetch(aviary.RECORDINGS, 6, second[-1].cursor, seed=8) == []


def test_an_empty_aviary_has_no_pages_and_nonsense_is_refused() -> None:
    assert fetch(aviary.RECORDINGS, 0) == fetch(aviary.AUDIO, 0) == []
    for wrong in ("many", -1, 100_000, 1.5):
        with pytest.raises(Problem, match="aviary"):
            fetch(aviary.RECORDINGS, wrong)


def test_what_is_no_page_of_recordings_is_a_bad_page() -> None:
    for body in (b"<html>", b"[]", b"{}"):
        with pytest.raises(BadPage):
            list(aviary.RECORDINGS.parse(LandedBytes(body)))


def test_audio_says_what_the_file_is() -> None:
    page = fetch(aviary.AUDIO, 1)[0]
    record = parsed(aviary.AUDIO, [page])[0]
    assert check(aviary.AUDIO, record) == ""
    assert record["bytes"] == len(page.body) and record["content_type"] == "audio/flac"
    info = audio.verify(page.body)
    assert (info.sample_rate_hz, info.channels, info.encoding) == (16_000, 1, "PCM_16")
    assert 4.5 <= info.duration_s <= 5.0


def test_splits_share_no_recordist_and_no_background() -> None:
    plans = [synth.plan(SEED, number) for number in range(576)]
    assert len(synth.SPECIES) >= 12 and len({plan.recordist.name for plan in plans}) >= 12
    of: dict[str, dict[str, set[str]]] = {"recordist": defaultdict(set), "background": defaultdict(set)}
    for plan in plans:
        of["recordist"][plan.recordist.split].add(plan.recordist.name)
        of["background"][plan.recordist.split].add(plan.recordist.background)
    for names in of.values():
        assert set(names) == {"train", "valid", "test"}
        for one, other in itertools.combinations(names.values(), 2):
            assert not one & other
    heard: dict[str, set[synth.Species]] = defaultdict(set)
    for plan in plans:
        heard[plan.recordist.split].add(plan.species[0])
    assert all(len(species) == len(synth.SPECIES) for species in heard.values())


def test_mixtures_and_levels_are_as_promised() -> None:
    plans = [synth.plan(SEED, number) for number in range(576)]
    together = [len(plan.species) for plan in plans]
    assert max(together) == 4 and np.mean(np.array(together) >= 2) >= 0.40
    levels = np.array([plan.snr_db for plan in plans])
    assert levels.min() >= -5 and levels.max() <= 20 and levels.std() > 6
    assert 0.12 < np.mean(together) / len(synth.SPECIES) < 0.18


def test_the_level_of_the_song_is_that_of_the_metadata() -> None:
    """The quiet parts of a recording are its background: what is louder by the stated ratio is song."""
    for number in (n for n in range(200) if synth.plan(SEED, n).recordist.background in ("stream", "rapids", "surf")):
        plan = synth.plan(SEED, number)
        if len(plan.species) > 1 or plan.snr_db < 10:
            continue
        sound = synth.render(SEED, plan)
        frames = np.lib.stride_tricks.sliding_window_view(sound, 512)[::128]
        hz = np.fft.rfftfreq(512, 1 / synth.RATE_HZ)
        power = (np.abs(np.fft.rfft(frames * np.hanning(512))) ** 2)[:, (hz > 1500) & (hz < 7500)].sum(1)
        quiet, loud = np.percentile(power, 15), np.percentile(power, 97)
        assert abs(10 * np.log10(loud / quiet) - plan.snr_db) < 9


def log_mel(pcm: np.ndarray) -> np.ndarray:
    """Log-mel spectrogram [frames, 64] of 16 kHz sound: 64 ms windows, 32 ms apart, 150 to 7800 Hz."""
    points = 700 * (10 ** (np.linspace(2595 * np.log10(1 + 150 / 700), 2595 * np.log10(1 + 7800 / 700), 66) / 2595) - 1)
    hz = np.fft.rfftfreq(1024, 1 / 16_000)
    bank = np.stack(
        [
            np.clip(np.minimum((hz - low) / (middle - low), (high - hz) / (high - middle)), 0, None)
            for low, middle, high in zip(points, points[1:], points[2:], strict=False)
        ]
    )
    frames = np.lib.stride_tricks.sliding_window_view(pcm, 1024)[::512]
    mel: np.ndarray = np.log(np.abs(np.fft.rfft(frames * np.hanning(1024))) ** 2 @ bank.T + 1e-6)
    return mel


def test_the_mean_spectrum_does_not_tell_the_species() -> None:
    """A logistic regression on the mean log-mel stays below 0.60 macro AP on unseen recordists, or it is too easy."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import average_precision_score
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    plans = [synth.plan(SEED, number) for number in range(360)]
    with threadpool_limits(1):  # small matrices: threads would only wait for each other
        means = np.stack([log_mel(synth.render(SEED, plan)).mean(0) for plan in plans])
    species = np.array([[one in plan.species for one in synth.SPECIES] for plan in plans])
    train, test = (np.array([plan.recordist.split == split for plan in plans]) for split in ("train", "test"))
    assert train.sum() == 240 and test.sum() == 60
    best = 0.0
    for strength in (0.01, 0.1, 1.0):  # the best on test itself, so that no other choice would pass 0.60
        model = make_pipeline(StandardScaler(), OneVsRestClassifier(LogisticRegression(C=strength, max_iter=300)))
        with threadpool_limits(1):
            scores = model.fit(means[train], species[train]).predict_proba(means[test])
        best = max(best, average_precision_score(species[test], scores))
    prior = species[test].mean()
    print(f"macro AP {best:.3f}, prior {prior:.3f}")
    assert prior < best < 0.60
