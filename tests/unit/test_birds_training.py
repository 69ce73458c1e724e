"""From a frozen version to a model that names birds in files: data, training, scores and use, on a tiny made-up set."""

import hashlib
import json
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch

from ml.birds import portable
from ml.birds.data import Clips, fit_window, vocabulary
from ml.birds.evaluate import evaluate, evaluate_folder, metrics, read_labels
from ml.birds.identify import Window, load, timeline
from ml.birds.model import BirdNetwork, ModelConfig
from ml.birds.train import PRESETS, BirdTask, main, train
from ml.datasets.read import Version
from ml.training.config import TrainConfig
from ml.training.evaluation import interval
from storage.errors import Problem

RATE = 16_000
PITCH = {"Avis alta": 6_000.0, "Avis media": 3_000.0, "Avis bassa": 1_200.0}
MODEL = ModelConfig(window_s=1.0, mels=24, channels=4, shift_mels=0, mask_frames=8, mask_mels=2, mix=0.3, dropout=0.0)
TRAIN = TrainConfig(
    preset="test", steps=60, batch=16, learning_rate=1e-2, warmup=5, evaluate_every=20, log_every=20, threads=1
)
SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()), ("recording_id", pa.string()), ("species", pa.list_(pa.string())),
        ("primary_species", pa.string()), ("group_key", pa.string()), ("split", pa.string()),
        ("start_s", pa.float64()), ("end_s", pa.float64()), ("sample_rate", pa.int32()), ("pcm", pa.binary()),
        ("licence", pa.string()), ("is_simulated", pa.bool_()),
    ]
)  # fmt: skip


def song(species: tuple[str, ...], random: np.random.Generator, seconds: float = 1.0) -> np.ndarray:
    """Beeps of each species' pitch over noise: int16 (samples,)."""
    time = np.arange(int(RATE * seconds)) / RATE
    wave = 0.02 * random.standard_normal(len(time))
    for name in species:
        beeps = np.sin(2 * np.pi * 4 * time + random.uniform(0, 6)) > 0
        wave += 0.2 * beeps * np.sin(2 * np.pi * PITCH[name] * random.uniform(0.95, 1.05) * time)
    return np.rint(wave * 32_767).clip(-32_768, 32_767).astype("<i2")


def clip(number: int, split: str, species: tuple[str, ...], pcm: np.ndarray, rate: int = RATE) -> dict[str, Any]:
    return {
        "clip_id": f"{split}-{number}", "recording_id": f"{split}-r{number // 2}", "species": sorted(species),
        "primary_species": species[0] if species else "", "group_key": split, "split": split, "start_s": 0.0,
        "end_s": len(pcm) / RATE, "sample_rate": rate, "pcm": pcm.tobytes(), "licence": "CC0", "is_simulated": True,
    }  # fmt: skip


def some_clips(split: str, count: int, seed: int) -> list[dict[str, Any]]:
    """Clips of one or two species, or of none, from 0.4 to 1.3 s."""
    random, names = np.random.default_rng(seed), list(PITCH)
    rows = []
    for number in range(count):
        kind = number % 5
        species = () if kind == 4 else (names[number % 3], names[(number + 1) % 3])[: 2 if kind == 3 else 1]
        rows.append(clip(number, split, species, song(species, random, random.uniform(0.4, 1.3))))
    return rows


def freeze(folder: Path, splits: dict[str, list[dict[str, Any]]]) -> Path:
    """A frozen version as `lyrebird dataset freeze` lays it out, in two shards for each split."""
    folder.mkdir()
    shards: list[dict[str, Any]] = []
    for split, rows in splits.items():
        for number, part in enumerate((rows[::2], rows[1::2])):
            path = folder / f"{split}-{number:05d}.parquet"
            pq.write_table(pa.Table.from_pylist(part, SCHEMA), path)
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            shards.append({"file": path.name, "split": split, "rows": len(part), "bytes": 1, "sha256": digest})
    manifest = {
        "version": "0123456789abcdef", "name": "birds-test", "mart": "mart_birds_training_clips", "where": "",
        "key": ["clip_id"], "schema": [{"name": f.name, "type": str(f.type)} for f in SCHEMA],
        "rows": sum(map(len, splits.values())), "shards": shards, "statistics": {}, "licences": {"CC0": 1},
        "splits": {split: {"rows": len(rows), "groups": 1} for split, rows in splits.items()},
        "simulated": True, "loads": {}, "code": "", "created_at": "2026-01-01T00:00:00Z",
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return freeze(
        tmp_path_factory.mktemp("birds") / "version",
        {"train": some_clips("train", 60, 1), "valid": some_clips("valid", 30, 2)},
    )


@pytest.fixture(scope="module")
def run(version: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("birds") / "run"
    train(str(version), folder, MODEL, TRAIN)
    return folder


# data


def test_a_window_is_cropped_or_repeated() -> None:
    pcm = np.arange(5, dtype=np.int16)
    assert fit_window(pcm, 3).tolist() == [0, 1, 2]
    assert fit_window(pcm, 3, start=1.0).tolist() == [2, 3, 4]
    assert fit_window(pcm, 5).tolist() == [0, 1, 2, 3, 4]
    assert fit_window(pcm, 12).tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]
    with pytest.raises(ValueError, match="without samples"):
        fit_window(pcm[:0], 3)


def test_clips_are_the_rows_of_the_version(version: Path) -> None:
    clips = Clips(Version(version), "train", RATE)
    written = {row["clip_id"]: row for row in some_clips("train", 60, 1)}
    assert sorted(clips.keys) == sorted(written)
    labels = vocabulary(clips)
    assert labels == sorted(PITCH)
    for row in (0, 29, 30, 59):  # the first and last of both shards
        expected = written[clips.keys[row]]
        assert clips.pcm(row).tobytes() == expected["pcm"]
        assert [name for name, there in zip(labels, clips.targets(labels)[row], strict=True) if there] == list(
            expected["species"]
        )
    assert not clips.targets(labels)[[not names for names in clips.species]].any()


def test_a_pass_takes_every_clip_once_in_an_order_fixed_by_the_seed(version: Path) -> None:
    clips = Clips(Version(version), "train", RATE)
    labels = vocabulary(clips)
    task = BirdTask(BirdNetwork(MODEL, len(labels)), clips, clips, labels, 16)
    first, again, other = ([task.batch(item) for item in task.plan(0, seed)] for seed in (1, 1, 2))
    assert [len(batch.wave) for batch in first] == [16, 16, 16, 12]
    assert all(a.wave.equal(b.wave) and a.seed == b.seed for a, b in zip(first, again, strict=True))
    assert not first[0].wave.equal(other[0].wave)
    total = sum(batch.target.sum(dim=0) for batch in first)
    assert total.tolist() == clips.targets(labels).sum(axis=0).tolist()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"pcm": b""}, "clip train-3 of dataset version 0123456789abcdef holds no 16 bit samples"),
        ({"pcm": b"abc"}, "clip train-3 .* holds no 16 bit samples"),
        ({"pcm": None}, "clip train-3 .* holds no 16 bit samples"),
        ({"sample_rate": 22_050}, "clip train-3 .* has 22050 samples a second"),
    ],
)
def test_a_broken_clip_is_named(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    rows = some_clips("train", 10, 1)
    rows[3] |= change
    with pytest.raises(Problem, match=says):
        Clips(Version(freeze(tmp_path / "v", {"train": rows})), "train", RATE)


def only(species: str, split: str) -> list[dict[str, Any]]:
    random = np.random.default_rng(3)
    return [clip(number, split, (species,), song((species,), random, 0.5)) for number in range(4)]


@pytest.mark.parametrize(
    ("splits", "says"),
    [
        ({"train": some_clips("train", 5, 1), "valid": []}, "no rows in its split 'valid'|has no valid clips"),
        ({"train": some_clips("train", 5, 1)}, "has no split 'valid'"),
        (
            {"train": only("Avis alta", "train"), "valid": some_clips("valid", 5, 1)},
            "every training clip holds the same",
        ),
        (
            {"train": some_clips("train", 60, 1)[4::5], "valid": some_clips("valid", 5, 1)},
            "no training clip names a species",
        ),
        ({"train": some_clips("train", 5, 1), "valid": some_clips("valid", 10, 1)[4::5]}, "no valid clip of dataset"),
    ],
)
def test_a_version_without_anything_to_learn_or_judge_is_refused(
    tmp_path: Path, splits: dict[str, list[dict[str, Any]]], says: str
) -> None:
    version = freeze(tmp_path / "v", splits)
    with pytest.raises(Problem, match=says):
        train(str(version), tmp_path / "run", MODEL, TRAIN)


def test_a_setting_that_makes_no_network_is_refused(version: Path, tmp_path: Path) -> None:
    with pytest.raises(Problem, match="f_min < f_max"):
        train(str(version), tmp_path / "run", replace(MODEL, f_max=9_000), TRAIN)


# training


def test_it_learns_the_tiny_set_far_better_than_the_prior(run: Path, version: Path) -> None:
    scores = json.loads((run / "scores.json").read_text())
    assert (scores["family"], scores["dataset"], scores["split"]) == ("birds", "0123456789abcdef", "valid")
    first, second = scores["metrics"]
    truth = Clips(Version(version), "valid", RATE).targets(sorted(PITCH))
    assert first["baseline"]["value"] == pytest.approx(truth.mean(axis=0).mean())
    assert first["value"] > 0.9 and first["low"] > first["baseline"]["high"]
    assert second["value"] > 0.8 and second["low"] > second["baseline"]["high"]
    assert first["rows"] == 15  # recordings, of two clips each


def test_the_run_folder_tells_all_and_says_simulated(run: Path) -> None:
    model = json.loads((run / "model.json").read_text())
    assert model["labels"] == sorted(PITCH)
    assert 0 < model["threshold"] < 1
    assert model["dataset"]["simulated"] is True and model["dataset"]["version"] == "0123456789abcdef"
    page = (run / "report.html").read_text()
    assert "Simulated data" in page and page.count("data:image/png;base64,") >= 4
    assert "://" not in page
    assert "Avis media" in page and "Simulated data" in (run / "card.md").read_text()


def test_the_same_seed_gives_the_same_weights_and_scores(version: Path, tmp_path: Path) -> None:
    short = replace(TRAIN, steps=6, evaluate_every=3)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(str(version), tmp_path / name, MODEL, replace(short, seed=seed))
    weights = [(tmp_path / name / "weights.safetensors").read_bytes() for name in "abc"]
    scores = [(tmp_path / name / "scores.json").read_text() for name in "abc"]
    assert weights[0] == weights[1] and scores[0] == scores[1]
    assert weights[0] != weights[2]


def test_the_command_line_trains_and_resumes(version: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    settings = [f"{key}={value}" for key, value in vars(MODEL).items()]
    settings += ["steps=4", "evaluate_every=2", "threads=1"]
    main(["--version", str(version), "--out", str(out), "--preset", "smoke", "--set", *settings])
    weights = (out / "weights.safetensors").read_bytes()
    main(["--version", str(version), "--out", str(out), "--preset", "smoke", "--set", *settings, "--resume"])
    assert (out / "weights.safetensors").read_bytes() == weights
    assert set(PRESETS) == {"smoke", "cpu", "gpu"}
    with pytest.raises(Problem, match=r"no setting 'colour'.*mels"):
        main(["--version", str(version), "--out", str(out), "--set", "colour=red"])


# scores


def test_evaluating_the_folder_gives_the_scores_it_was_filed_with(run: Path, version: Path) -> None:
    filed = json.loads((run / "scores.json").read_text())["metrics"]
    assert metrics(run, Version(version)) == filed
    value, low, high = interval(evaluate(run, Version(version), "valid"))
    assert (value, low, high) == (filed[0]["value"], filed[0]["low"], filed[0]["high"])
    assert low <= value <= high


def test_one_resample_is_the_same_alone_and_among_many(run: Path, version: Path) -> None:
    evaluation = evaluate(run, Version(version), "valid")
    chosen = np.random.default_rng(4).integers(0, len(evaluation.units), (5, len(evaluation.units)))
    counts = np.stack([np.bincount(row, minlength=len(evaluation.units)) for row in chosen]).astype(float)
    assert evaluation.many is not None
    assert evaluation.many(counts).tolist() == [evaluation.score(row) for row in chosen]


def test_the_onnx_model_gives_torch_s_probabilities(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """For any number of clips of any length, also where the graph was traced with others."""
    portable.main([str(run), str(tmp_path / "model.onnx")])
    assert "differs from torch by" in capsys.readouterr().err
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    model = load(run)
    for clips, samples in ((1, 16_000), (4, 30_001)):
        wave = np.random.default_rng(clips).uniform(-1, 1, (clips, samples)).astype(np.float32)
        (found,) = session.run(None, {"wave": wave})
        with torch.no_grad():
            expected = model.network.eval()(torch.from_numpy(wave))[0]
        assert np.abs(found - expected.numpy()).max() < 1e-4


def test_a_species_the_model_does_not_know_is_ranked_at_random(run: Path, tmp_path: Path) -> None:
    rows = some_clips("valid", 10, 2)
    for row in rows[:5]:
        row["species"] = ["Avis ignota"]
    for row in rows[5:]:
        row["species"] = []
    version = Version(freeze(tmp_path / "v", {"valid": rows}))
    assert evaluate(run, version, "valid").value() == pytest.approx(0.5)


# use


def write(path: Path, pcm: np.ndarray) -> Path:
    soundfile.write(path, pcm, RATE)
    return path


def test_identify_follows_the_contract_and_names_who_sings_when(run: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(9)
    parts = [song(("Avis alta",), random, 2.0), song((), random, 2.0), song(("Avis bassa",), random, 3.4)]
    answer = load(run, "birds-test@1").identify(write(tmp_path / "walk.flac", np.concatenate(parts)))
    assert json.loads(json.dumps(answer)) == answer
    assert list(answer) == ["file", "top", "predictions", "model"]
    assert answer["model"] == "birds-test@1" and answer["file"].endswith("walk.flac")
    assert answer["top"]["species"] in ("Avis alta", "Avis bassa")
    found = [(p["start_s"], p["end_s"], p["species"]) for p in answer["predictions"]]
    assert found == [(0.0, 2.0, "Avis alta"), (2.0, 4.0, ""), (4.0, 7.4, "Avis bassa")]
    assert all(0.5 < p["score"] <= 1 for p in answer["predictions"])


def test_a_clip_has_the_same_answer_in_the_version_and_as_a_file(run: Path, version: Path, tmp_path: Path) -> None:
    model, clips = load(run), Clips(Version(version), "valid", RATE)
    rows = [row for row in range(len(clips)) if len(clips.pcm(row)) <= RATE][:3]
    for row in rows:
        (window,) = model.windows(write(tmp_path / f"{row}.wav", clips.pcm(row)))
        np.testing.assert_allclose(window.scores, model.scores([clips.pcm(row)])[0], atol=1e-6)
        assert window.end_s == len(clips.pcm(row)) / RATE


@pytest.mark.parametrize("seconds", [0.3, 0.99, 1.0, 1.5, 2.0, 2.6])
def test_windows_cover_a_recording_of_any_length(run: Path, tmp_path: Path, seconds: float) -> None:
    path = write(tmp_path / "a.wav", song((), np.random.default_rng(1), seconds))
    windows = list(load(run).windows(path))
    assert windows[0].start_s == 0 and windows[-1].end_s == pytest.approx(seconds)
    assert all(a.end_s == b.start_s for a, b in pairwise(windows))


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_silence_and_a_full_scale_constant_are_no_bird(run: Path, tmp_path: Path, level: float) -> None:
    answer = load(run).identify(write(tmp_path / "still.wav", np.full(RATE * 3, level)))
    assert 0 <= answer["top"]["score"] <= 1
    assert answer["predictions"][-1]["end_s"] == 3.0


def test_unreadable_files_are_named(run: Path, tmp_path: Path) -> None:
    model = load(run)
    (tmp_path / "noise.wav").write_bytes(b"this is no sound")
    (tmp_path / "empty.flac").write_bytes(b"")
    for name in ("noise.wav", "empty.flac", "absent.wav"):
        with pytest.raises(Problem, match=name):
            model.identify(tmp_path / name)
    with pytest.raises(Problem, match=tmp_path.name):
        model.identify(tmp_path)


def test_a_folder_that_is_no_birds_model_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(Problem, match=r"no model\.json"):
        load(tmp_path)
    shutil.copytree(run, tmp_path / "music")
    about = json.loads((run / "model.json").read_text())
    (tmp_path / "music" / "model.json").write_text(json.dumps(about | {"family": "music"}))
    with pytest.raises(Problem, match="family music"):
        load(tmp_path / "music")


def test_the_timeline_joins_neighbours_and_keeps_overlaps_apart() -> None:
    rows = [[0.9, 0.1], [0.7, 0.8], [0.2, 0.6], [0.1, 0.2], [0.6, 0.1]]
    windows = [Window(float(i), i + 1.0, np.array(row)) for i, row in enumerate(rows)]
    found = [(e["start_s"], e["end_s"], e["species"], e["score"]) for e in timeline(windows, ["a", "b"], 0.5)]
    assert found == [(0, 2, "a", 0.9), (1, 3, "b", 0.8), (3, 4, "", 0.8), (4, 5, "a", 0.6)]


def test_a_folder_with_labels_is_scored(run: Path, tmp_path: Path) -> None:
    random, lines = np.random.default_rng(11), ["file,scientific_name,english_name"]
    for number, species in enumerate(
        [("Avis alta",), ("Avis media",), ("Avis bassa",), (), ("Avis alta", "Avis bassa")] * 3
    ):
        write(tmp_path / f"{number}.wav", song(species, random, 1.5))
        lines += [f"{number}.wav,{name},x" for name in species or ("",)]
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    found = evaluate_folder(load(run), tmp_path, tmp_path / "labels.csv")
    assert json.loads(json.dumps(found)) == found
    assert found["files"] == 15 and found["unknown"] == []
    first, second = found["metrics"]
    assert first["baseline"]["value"] == pytest.approx((6 + 3 + 6) / 45)
    assert first["value"] > 0.9 and first["low"] <= first["value"] <= first["high"]
    assert second["value"] > 0.7
    assert {row["species"]: row["clips"] for row in found["species"]} == {
        "Avis alta": 6, "Avis bassa": 6, "Avis media": 3,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"name,species\na.wav,b\n", "no column file and scientific_name"),
        (b"file,scientific_name\n", "labels no file"),
        (b"file,scientific_name\na.wav,\xff\xfe\n", "UTF-8"),
    ],
)
def test_labels_that_cannot_be_read_are_explained(tmp_path: Path, body: bytes, says: str) -> None:
    (tmp_path / "labels.csv").write_bytes(body)
    with pytest.raises(Problem, match=says):
        read_labels(tmp_path / "labels.csv")
    with pytest.raises(Problem, match=r"absent\.csv"):
        read_labels(tmp_path / "absent.csv")
