"""A small model is trained, judged and used as a person would: version in, run folder out, music and scores from it."""

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import onnxruntime
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ml.datasets.read import Version
from ml.music import portable, train
from ml.music.compose import VOICES, Composer, load
from ml.music.data import Piece, Surroundings, collate
from ml.music.evaluate import evaluate, evaluate_file, metrics
from ml.music.model import PADDING, ModelConfig, MusicTransformer
from ml.training.config import TrainConfig, override
from ml.training.trainer import fit, prepare
from storage.errors import Problem
from storage.media import midi
from storage.media.frames import fingerprint, to_frames

SETTINGS = [
    "steps=100", "batch=4", "warmup=10", "evaluate_every=50", "learning_rate=0.01", "dropout=0", "threads=1",
    "width=32", "layers=1", "heads=2", "context=64", "reach=12",
]  # fmt: skip
SCALE = [0, 2, 4, 5, 7, 9, 11]


def chorale(seed: int, steps: int = 24) -> list[list[int]]:
    """A phrase of four beats, again and again, in three voices that move together: easy once intervals are understood.

    Each seed has a phrase and a key of its own.
    """
    rng = np.random.default_rng(seed)
    phrase = rng.integers(0, 8, 4).tolist()
    key = 40 + int(rng.integers(0, 12))
    degrees = [7 + phrase[step % 4] for step in range(steps)]
    return [sorted({key + 12 * (d // 7) + SCALE[d % 7] for d in (n, n - 2, n - 4)}) for n in degrees]


def freeze(folder: Path, splits: dict[str, list[list[list[int]]]], grid: str = "quarter") -> Path:
    """A frozen version with these pieces."""
    folder.mkdir(parents=True)
    shards, counts = [], {}
    for split, pieces in splits.items():
        marks = [fingerprint(piece, grid) for piece in pieces]
        table = pa.table(
            {
                "piece_id": [f"{split}-{n}" for n in range(len(pieces))],
                "grid": [grid] * len(pieces),
                "frames": pa.array(pieces, pa.list_(pa.list_(pa.int16()))),
                "fingerprint": marks,
            }
        )
        file = folder / f"{split}-00000.parquet"
        pq.write_table(table, file)
        sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
        shards.append({"file": file.name, "split": split, "rows": len(pieces), "bytes": 1, "sha256": sha256})
        counts[split] = {"rows": len(pieces), "groups": len(set(marks))}
    manifest = {
        "version": "0123456789abcdef", "name": "music-tests", "splits": counts, "shards": shards, "simulated": False,
        "schema": [{"name": field.name, "type": str(field.type)} for field in table.schema], "licences": {"CC0": 1},
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pieces = [chorale(seed) for seed in range(16)]
    return freeze(tmp_path_factory.mktemp("music") / "version", {"train": pieces[:12], "valid": pieces[12:]})


@pytest.fixture(scope="module")
def run(version: Path) -> Path:
    out = version.parent / "run"
    train.main(["--version", str(version), "--out", str(out), "--set", *SETTINGS])
    return out


@pytest.fixture(scope="module")
def model(run: Path) -> Composer:
    return load(run, "music-tests")


def written(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def score(model: Composer, path: Path) -> dict[str, object]:
    return evaluate_file(model, path, "music-tests", 3)


# --- training -------------------------------------------------------------------------------------------------------


def test_it_learns_music_that_has_a_pattern_and_beats_the_markov_model(run):
    [metric] = json.loads((run / "scores.json").read_text())["metrics"]
    assert (metric["name"], metric["direction"], metric["rows"]) == ("nll_per_frame", "less", 4)
    assert metric["low"] <= metric["value"] <= metric["high"]
    assert metric["value"] < 0.8 * metric["baseline"]["value"]
    assert metric["high"] < metric["baseline"]["low"]


def fitted(run: Path, pieces: list[list[list[int]]], **settings: float) -> MusicTransformer:
    """A network trained on pieces, which are its valid split too."""
    sizes = ModelConfig(
        width=32, layers=1, heads=2, context=64, reach=12, dropout=settings.pop("dropout", 0.0), transpose=0
    )
    config = override(TrainConfig(batch=2, warmup=5, threads=1), [f"{key}={value}" for key, value in settings.items()])
    prepare(config)
    around = Surroundings(sizes.history, sizes.reach)
    network = MusicTransformer(sizes, around.width)
    read = [Piece.of(str(number), piece, around) for number, piece in enumerate(pieces)]
    fit(train.MusicTask(network, read, read, config.batch), config, run)
    return network


def test_it_can_learn_a_few_pieces_by_heart(tmp_path):
    rng = np.random.default_rng(3)
    pieces = [[sorted(set(rng.integers(50, 80, 3).tolist())) for _ in range(20)] for _ in range(2)]
    fitted(tmp_path, pieces, steps=120, learning_rate=0.02, evaluate_every=60)
    best = json.loads((tmp_path / "events.jsonl").read_text().splitlines()[-1])["best"]
    assert best < 0.3


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path):
    pieces = [chorale(seed) for seed in range(4)]
    weights = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        fitted(tmp_path / name, pieces, steps=6, evaluate_every=3, dropout=0.1, seed=seed)
        weights.append((tmp_path / name / "weights.safetensors").read_bytes())
    assert weights[0] == weights[1]
    assert weights[0] != weights[2]


def test_the_run_folder_says_what_it_is_and_shows_it(run):
    about = json.loads((run / "model.json").read_text())
    assert (about["family"], about["grid"], about["dataset"]["version"]) == ("music", "quarter", "0123456789abcdef")
    page = (run / "report.html").read_text()
    assert page.count("data:image/png;base64") >= 6
    assert "http://" not in page and "https://" not in page
    assert "Piano roll of" in page
    assert "CC0" in (run / "card.md").read_text()


@pytest.mark.parametrize(
    ("splits", "grid_of_valid", "message"),
    [
        ({"train": [], "valid": [chorale(1)]}, "quarter", "train"),
        ({"train": [chorale(1)], "valid": [[[60, 128]]]}, "quarter", "valid-0"),
        ({"train": [chorale(1)], "valid": [[]]}, "quarter", "valid-0"),
    ],
)
def test_a_version_that_cannot_be_learnt_from_is_refused(tmp_path, splits, grid_of_valid, message):
    folder = freeze(tmp_path / "version", splits, grid_of_valid)
    with pytest.raises(Problem, match=message):
        train.main(["--version", str(folder), "--out", str(tmp_path / "run"), "--set", *SETTINGS])


def test_settings_that_make_no_network_are_refused(version, tmp_path):
    with pytest.raises(Problem, match="no network can be built"):
        train.main(["--version", str(version), "--out", str(tmp_path / "run"), "--set", "width=30", "heads=4"])


# --- scores ---------------------------------------------------------------------------------------------------------


def test_a_file_of_pieces_gets_the_score_of_the_split_it_holds(model, run, version, tmp_path):
    pieces = Version(version).table("valid")["frames"].to_pylist()
    answer = score(model, written(tmp_path / "pieces.json", {"valid": pieces}))
    assert set(answer) == {"nll_per_frame", "low", "high", "frames", "model", "version"}
    assert (answer["frames"], answer["model"], answer["version"]) == (4 * 24, "music-tests", 3)
    assert answer["low"] <= answer["nll_per_frame"] <= answer["high"]
    assert answer["nll_per_frame"] == pytest.approx(evaluate(run, Version(version)).value())
    assert answer["nll_per_frame"] == pytest.approx(metrics(run, Version(version))[0]["value"])
    assert score(model, written(tmp_path / "list.json", pieces)) == answer


def test_order_and_doubling_of_pitches_do_not_count_but_rests_and_repeats_do(model, tmp_path):
    plain = score(model, written(tmp_path / "plain.json", [[[50, 60], [], [50, 60], [50, 60]]]))
    mixed = score(model, written(tmp_path / "mixed.json", [[[60, 50, 60], [], [50, 60], [60, 50]]]))
    assert plain == mixed
    assert plain["frames"] == 4
    shorter = score(model, written(tmp_path / "shorter.json", [[[50, 60], [50, 60], [50, 60]]]))
    assert shorter["nll_per_frame"] != pytest.approx(plain["nll_per_frame"])


def test_pitches_that_the_model_never_heard_have_a_finite_score(model, tmp_path):
    answer = score(model, written(tmp_path / "far.json", [[[0, 127], [1], list(range(128))]]))
    assert math.isfinite(answer["nll_per_frame"])


def test_pieces_it_was_trained_on_are_refused_by_name_in_any_key(model, tmp_path):
    unseen, trained = chorale(100), [[pitch + 5 for pitch in frame] for frame in chorale(7)]
    path = written(tmp_path / "pieces.json", {"test": [unseen, trained, chorale(3)]})
    with pytest.raises(Problem, match=r"music-tests version 3 was trained on 2 of the 3 .*: test\[1\], test\[2\]"):
        score(model, path)
    assert "variants" not in score(model, written(path, {"test": [unseen]}))


def test_a_variant_is_refused_alone_and_named_where_it_is_the_exception(model, tmp_path):
    variant = chorale(7)[:19]  # the end is missing, as where an edition does not write out a repeat
    path = tmp_path / "pieces.json"
    with pytest.raises(Problem, match=r"trained on 1 of the 1 pieces"):
        score(model, written(path, [variant]))
    others = [chorale(seed) for seed in range(200, 219)]
    answer = score(model, written(path, [*others, variant]))
    assert answer["variants"] == ["piece[19]"]
    without = score(model, written(path, others))
    assert answer["nll_per_frame_without_variants"] == pytest.approx(without["nll_per_frame"])
    assert answer["frames"] == 19 * 24 + 19


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[[[60, 64]", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ([], "holds no piece"),
        ({}, "holds no piece"),
        ({"test": []}, "holds no piece"),
        ({"test": 3}, "test is not a list of pieces"),
        (3, "the file is not a list of pieces"),
        ([[]], r"piece\[0\] is not a list of frames"),
        ([[[60]], "abc"], r"piece\[1\] is not a list of frames"),
        ([[[60], 60]], r"frame 1 of piece\[0\]"),
        ([[[60], [60.5]]], r"frame 1 of piece\[0\]"),
        ([[[True]]], r"frame 0 of piece\[0\]"),
        ({"test": [[[60, 128]]]}, r"frame 0 of test\[0\]"),
        ([[[-1]]], r"frame 0 of piece\[0\]"),
    ],
)
def test_a_file_that_holds_no_pieces_is_one_sentence(model, tmp_path, content, message):
    with pytest.raises(Problem, match=message):
        score(model, written(tmp_path / "pieces.json", content))


def test_files_that_are_missing_or_not_text_are_one_sentence(model, tmp_path):
    with pytest.raises(Problem, match="cannot read"):
        score(model, tmp_path / "none.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00[")
    with pytest.raises(Problem, match="not JSON"):
        score(model, tmp_path / "bytes.json")


def test_a_version_on_another_grid_is_refused(run, tmp_path):
    folder = freeze(tmp_path / "version", {"train": [chorale(1)], "valid": [chorale(2)]}, "16th")
    with pytest.raises(Problem, match="quarter grid"):
        evaluate(run, Version(folder))


# --- composing ------------------------------------------------------------------------------------------------------


def sounds(model: Composer, music: list[list[int]]) -> list[list[int]]:
    """The frames that the music's MIDI file holds."""
    return to_frames(midi.read(model.midi(music), "tune.mid").notes, model.grid, len(music))


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 0.95), (10.0, 1.0), (0.01, 0.01), (1e-6, 1.0)])
@pytest.mark.parametrize("seed", [0, 1])
def test_whatever_is_drawn_is_music_that_a_midi_file_holds(model, temperature, top_p, seed):
    music = model.compose(12, temperature=temperature, top_p=top_p, seed=seed)
    assert len(music) == 12
    assert music[0]  # never silent all through
    for frame in music:
        assert frame == sorted(set(frame), reverse=True)
        assert len(frame) <= VOICES
        assert all(0 <= pitch < 128 for pitch in frame)
    assert [sorted(frame) for frame in music] == sounds(model, music)


def test_the_same_seed_writes_the_same_music(model):
    assert model.compose(20, seed=4) == model.compose(20, seed=4)
    assert model.compose(20, seed=4) != model.compose(20, seed=5)


def test_music_longer_than_the_context_goes_on(model):
    music = model.compose(60, seed=2)  # four tokens a frame, 64 tokens of context
    assert len(music) == 60
    assert np.mean([len(frame) == 3 for frame in music[30:]]) > 0.8  # and is still of its kind


def test_it_goes_on_from_a_midi_file(model, tmp_path):
    start = chorale(40, 10)
    path = tmp_path / "start.mid"
    path.write_bytes(midi.from_frames(start, "quarter"))
    music = model.compose(6, prime=model.read_midi(path), seed=1)
    assert [sorted(frame) for frame in music[:10]] == start
    assert len(music) == 16


def test_it_puts_a_harmony_under_a_melody(model):
    melody = [60, 62, None, 64, 62, 60]
    music = model.compose(melody=melody, seed=1)
    assert [frame[0] if frame else None for frame in music] == melody
    assert sum(len(frame) > 1 for frame in music) >= 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"frames": 0}, "0 frames"),
        ({"frames": 10**9}, "frames cannot"),
        ({"melody": []}, "0 frames"),
        ({"melody": [60, 128]}, "outside 0 to 127"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0.0}, "top-p"),
        ({"top_p": 1.5}, "top-p"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(model, settings, message):
    with pytest.raises(Problem, match=message):
        model.compose(**settings)


def test_midi_that_is_missing_broken_or_silent_is_refused(model, tmp_path):
    with pytest.raises(Problem, match="cannot read"):
        model.read_midi(tmp_path / "none.mid")
    (tmp_path / "broken.mid").write_bytes(b"MThd broken")
    with pytest.raises(Problem, match=r"broken\.mid"):
        model.read_midi(tmp_path / "broken.mid")
    (tmp_path / "silent.mid").write_bytes(midi.write([]))
    with pytest.raises(Problem, match="holds no note"):
        model.read_midi(tmp_path / "silent.mid")


def test_a_folder_without_a_music_model_is_refused(tmp_path):
    with pytest.raises(Problem, match=r"no model\.json"):
        load(tmp_path)
    written(tmp_path / "model.json", {"family": "birds"})
    with pytest.raises(Problem, match="birds"):
        load(tmp_path)


def test_the_onnx_model_gives_torch_s_logits(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For pieces as the model reads them, also where the graph was traced with others."""
    portable.main([str(run), str(tmp_path / "model.onnx")])
    assert "differs from torch by" in capsys.readouterr().err
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    model = load(run)
    config = model.network.config
    piece = Piece.of("one", chorale(3, 40), Surroundings(config.history, config.reach))
    batch = collate([(piece.read, piece.around, np.full(len(piece.read), PADDING))])
    (found,) = session.run(None, {name: getattr(batch, name).numpy() for name in portable.INPUTS})
    with torch.no_grad():
        expected = model.network.eval()(batch)
    assert np.abs(found - expected.numpy()).max() < 1e-4
