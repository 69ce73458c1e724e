"""Translation from a frozen version to a translated line: text, batches, training, scores and bad input."""

import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from safetensors.torch import load_file

from ml.datasets.read import Version
from ml.training.evaluation import interval
from ml.training.portable import export
from ml.translation import evaluate, portable, serving, subwords
from ml.translation.data import Encoded, Pairs, encode, pad, read
from ml.translation.train import main, save_attention
from ml.translation.translate import Translator, load
from storage.errors import Problem

ENGLISH = "save open close delete move copy page file folder image user name new old all first"
RUSSIAN = (
    "сохранить открыть закрыть удалить переместить скопировать "
    "страница файл папка изображение пользователь имя новый старый все первый"
)
WORDS = dict(zip(ENGLISH.split(), RUSSIAN.split(), strict=True))
TINY = (
    *("vocabulary=400", "width=64", "heads=4", "encoder_layers=1", "decoder_layers=1", "inner=128", "beam=2"),
    *("dropout=0", "label_smoothing=0", "batch=400", "learning_rate=4e-3", "warmup=20"),
)


def freeze(folder: Path, seed: int = 0, rows: int = 60, targets: tuple[str, ...] = ("rus",)) -> Path:
    """A frozen version of made-up interface texts; the valid split repeats train rows, so that fitting them shows.

    English as a target is English with its words the other way round.
    """
    folder.mkdir()
    generator = random.Random(seed)
    texts = [generator.choices(sorted(WORDS), k=generator.randint(2, 5)) for _ in range(rows)]
    table = [
        {
            "pair_id": f"pair-{i}", "source_language": "eng", "target_language": targets[i % len(targets)],
            "source_text": " ".join(words), "licence": "CC0",
            "target_text": " ".join(
                [WORDS[word] for word in words] if targets[i % len(targets)] == "rus" else reversed(words)
            ),
        }
        for i, words in enumerate(texts)
    ]  # fmt: skip
    shards, schema = [], []
    for split, part in (("train", table), ("valid", table[:25])):
        path = folder / f"{split}-00000.parquet"
        pq.write_table(pa.Table.from_pylist(part), path)
        schema = [{"name": name, "type": "string"} for name in part[0]]
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        shards.append({"file": path.name, "split": split, "rows": len(part), "sha256": digest})
    manifest = {
        "version": f"{seed:016x}", "name": "translation-en-ru", "schema": schema, "shards": shards, "simulated": False,
        "splits": {"train": {"rows": rows}, "valid": {"rows": 25}}, "licences": {"CC0": rows},
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def run_training(version: Path | str, run: Path, *flags: str, settings: tuple[str, ...] = ()) -> None:
    main(["--version", str(version), "--out", str(run), *flags, "--set", *TINY, *settings])


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return freeze(tmp_path_factory.mktemp("versions") / "en-ru")


@pytest.fixture(scope="module", params=["transformer", "recurrent"])
def run(request: pytest.FixtureRequest, version: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that had time to learn its few pairs by heart."""
    run = tmp_path_factory.mktemp("runs") / "overfitted"
    run_training(version, run, settings=("steps=160", "evaluate_every=80", f"kind={request.param}", "decoder_layers=2"))
    return run


@pytest.fixture(scope="module")
def translator(run: Path) -> Translator:
    return load(run)


def test_a_few_pairs_are_learnt_by_heart(translator: Translator, version: Path) -> None:
    pairs = read(Version(version), "valid")
    for beam in (1, 4):
        found = translator.translate(pairs.sources, beam=beam)
        assert sum(a == b for a, b in zip(found, pairs.targets, strict=True)) >= 23


def test_the_run_folder_holds_scores_with_intervals_a_report_and_a_card(run: Path) -> None:
    chrf, bleu = json.loads((run / "scores.json").read_text())["metrics"]
    assert (chrf["name"], bleu["name"]) == ("chrF", "BLEU")
    assert chrf["baseline"]["name"] == "copy the source"
    assert chrf["low"] <= chrf["value"] <= chrf["high"]
    assert chrf["low"] > chrf["baseline"]["high"] + 10
    assert chrf["signature"].startswith("nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no")
    assert bleu["signature"].startswith("nrefs:1|case:lc|eff:no|tok:13a|smooth:exp")
    report = (run / "report.html").read_text()
    assert report.count("data:image/png;base64,") == 2
    assert report.count("<img") == report.count('alt="Loss over') + report.count('alt="Attention from')
    assert "Simulated" not in report
    assert "http" not in report.replace("http-equiv", "")
    card = (run / "card.md").read_text()
    assert "CC0: 60 rows" in card
    assert "copy the source" in card


def test_evaluating_the_folder_gives_the_score_on_record(run: Path, version: Path) -> None:
    chrf = json.loads((run / "scores.json").read_text())["metrics"][0]
    assert interval(evaluate.evaluate(run, str(version), "valid"), seed=1) == pytest.approx(
        (chrf["value"], chrf["low"], chrf["high"])
    )


def test_attention_has_a_row_for_each_target_piece(translator: Translator) -> None:
    across, down, matrix = translator.attention("open new file")
    assert matrix.shape == (len(down), len(across))
    assert (across[0], across[-1], down[-1]) == ("<2rus>", "</s>", "</s>")
    assert matrix.sum(axis=1) == pytest.approx(np.ones(len(down)), abs=1e-4)
    assert translator.attention("open file", target="открыть файл")[1][0].startswith("▁")


def test_attention_is_kept_as_a_picture_and_as_numbers(translator: Translator, tmp_path: Path) -> None:
    words = save_attention(translator, "open new file", tmp_path / "attention.png")
    assert "Each piece looks most: " in words
    assert (tmp_path / "attention.png").read_bytes().startswith(b"\x89PNG")
    kept = json.loads((tmp_path / "attention.json").read_text())
    assert (kept["source"][0], kept["target"][-1]) == ("<2rus>", "</s>")
    assert [sum(row) for row in kept["weights"]] == pytest.approx([1.0] * len(kept["target"]), abs=1e-3)
    assert all(len(row) == len(kept["source"]) for row in kept["weights"])


def test_the_best_few_begin_with_the_translation(translator: Translator, version: Path) -> None:
    lines = [*read(Version(version), "valid").sources[:5], "", " ".join(["save page."] * 200)]
    few = translator.candidates(lines, 3, beam=4)
    assert [found[0].text for found in few] == translator.translate(lines, beam=4)
    for found in few[:5]:
        assert [c.score for c in found] == sorted((c.score for c in found), reverse=True)
        assert len(found) == 3
    assert [c.text for c in few[5]] == [""]
    with pytest.raises(Problem, match="beam of 2 does not give 3"):
        translator.candidates(lines, 3, beam=2)


def test_scores_by_length_are_of_all_rows(translator: Translator, version: Path) -> None:
    pairs = read(Version(version), "train")
    rows = evaluate.by_length(evaluate.score(pairs, pairs.targets))
    assert sum(count for _, count, *_ in rows) == len(pairs.units)
    assert all(bleu.startswith(("100.0", "0.0")) for *_, bleu, _ in rows)  # two words have no 4-grams
    assert all(chrf.startswith("100.0") for *_, chrf in rows)


def test_a_line_out_for_each_line_in_whatever_it_holds(translator: Translator, version: Path) -> None:
    known = read(Version(version), "train")
    odd = ["save\npage\tnew", "日本語 🙂 \u202e", "<2rus> </s>", "%(name)s {0}", "a" * 5000, "\ud800 broken"]
    lines = ["", "   ", known.sources[0], "\x00\x07", *odd]
    found = translator.translate(lines)
    assert len(found) == len(lines)
    assert found[0] == found[1] == found[3] == ""
    assert found[2] == known.targets[0]
    assert not any("\n" in line or "\r" in line for line in found)
    assert translator.translate([]) == []


def test_a_very_long_line_is_translated_in_parts(translator: Translator) -> None:
    line = " ".join(["save page."] * 5000)
    parts = translator._parts(line)
    assert " ".join(parts) == line
    room = translator.config.longest
    assert all(len(pieces) <= room for pieces in translator.subwords.encode_source(parts[:50], ["rus"] * 50))
    words = " ".join(["save"] * 3000)
    assert " ".join(translator._parts(words)) == words
    assert "".join(translator._parts("x" * 3000)) == "x" * 3000


def test_an_unknown_language_a_bad_beam_and_a_wrong_folder(translator: Translator, run: Path, tmp_path: Path) -> None:
    with pytest.raises(Problem, match=r"'fin'.*rus"):
        translator.translate(["save"], to="fin")
    with pytest.raises(Problem, match="beam of 0"):
        translator.translate(["save"], beam=0)
    with pytest.raises(Problem, match=r"no model\.json"):
        load(tmp_path)
    (tmp_path / "model.json").write_text('{"family": "birds"}')
    with pytest.raises(Problem, match="for birds"):
        load(tmp_path)
    (tmp_path / "model.json").write_text((run / "model.json").read_text())
    (tmp_path / "spm.model").write_bytes((run / "spm.model").read_bytes())
    (tmp_path / "weights.safetensors").write_bytes(b"torn")
    with pytest.raises(Problem, match="does not fit"):
        load(tmp_path)


@pytest.mark.parametrize("ends", [("\n", "\n"), ("", "\n"), ("\n", ""), ("\r\n", "")])
def test_files_are_scored_line_by_line(
    translator: Translator, version: Path, tmp_path: Path, ends: tuple[str, str]
) -> None:
    source, reference = tmp_path / "source", tmp_path / "reference"
    known = read(Version(version), "train")
    source.write_text(f"{known.sources[0]}\n\n{known.sources[1]}{ends[0]}", newline="")
    reference.write_text(f"{known.targets[0]}\n\n{known.targets[1]}{ends[1]}", newline="")
    scored = evaluate.evaluate_lines(translator, *evaluate.read_aligned(source, reference))
    assert scored.pairs.units == ["1", "2", "3"]
    assert scored.metrics["chrF"].value() > 90
    reference.write_text("сохранить страница\n")
    with pytest.raises(Problem, match=r"has 3 lines and .* has 1"):
        evaluate.read_aligned(source, reference)


def test_killed_and_resumed_training_ends_with_the_same_bits(version: Path, tmp_path: Path) -> None:
    settings = ("steps=8", "evaluate_every=3", "accumulate=2", "dropout=0.1")
    run_training(version, tmp_path / "whole", settings=settings)
    killed = (
        "import os, signal, sys\n"
        "from ml.translation import train\n"
        "plain, calls = train.TranslationTask.loss, []\n"
        "def loss(self, batch):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 10: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return plain(self, batch)\n"
        "train.TranslationTask.loss = loss\n"
        "train.main(sys.argv[1:])\n"
    )
    flags = ["--version", str(version), "--out", str(tmp_path / "broken"), "--set", *TINY, *settings]
    root = Path(__file__).parent.parent.parent
    done = subprocess.run([sys.executable, "-c", killed, *flags], check=False, cwd=root)
    assert done.returncode == -9
    run_training(version, tmp_path / "broken", "--resume", settings=settings)
    for name in ("weights.safetensors", "spm.model"):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    with pytest.raises(Problem, match=r"model.width was 64, is 32"):
        run_training(version, tmp_path / "broken", "--resume", settings=(*settings, "width=32"))


def test_any_text_survives_the_vocabulary(translator: Translator) -> None:
    generator = random.Random(5)
    for _ in range(200):
        codes = (generator.choice((generator.randint(33, 126), generator.randint(0x400, 0x2FFFF))) for _ in range(20))
        text = subwords.clean("".join(map(chr, codes)))
        assert translator.subwords.decode(translator.subwords.encode_target([text])[0]) == text


def test_the_same_texts_give_the_same_vocabulary(tmp_path: Path, version: Path) -> None:
    pairs = read(Version(version), "train")
    for name in "ab":
        subwords.train(pairs.sources + pairs.targets, ["rus"], 400, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    with pytest.raises(Problem, match="vocabulary of 100 pieces"):
        subwords.train(pairs.sources, ["rus"], 100, tmp_path / "c")


def test_batches_hold_every_pair_once_and_are_not_too_large() -> None:
    generator = random.Random(1)
    pairs = [([5] * generator.randint(1, 30), [6] * generator.randint(2, 30)) for _ in range(300)]
    for i, (source, _) in enumerate(pairs):
        source.append(100 + i)
    encoded = Encoded([s for s, _ in pairs], [t for _, t in pairs])
    seen: list[int] = []
    for source, target in map(encoded.batch, encoded.plan(200, np.random.default_rng(0))):
        assert max(source.numel(), target.numel()) <= 200
        seen += source[source >= 100].tolist()
    assert sorted(seen) == list(range(100, 400))

    def order(seed: int) -> list[list[int]]:
        rows = encoded.plan(200, np.random.default_rng(seed))
        return [s.flatten().tolist() for s, _ in map(encoded.batch, rows)]

    assert order(1) == order(1) != order(2)


def test_one_model_translates_into_several_languages(tmp_path: Path) -> None:
    """The same sources in two languages: only the token of the target language tells which is asked for."""
    version, run = freeze(tmp_path / "both", targets=("rus", "eng")), tmp_path / "run"
    run_training(version, run, settings=("steps=220", "evaluate_every=110"))
    translator, pairs = load(run), read(Version(version), "valid")
    assert translator.subwords.languages == ["eng", "rus"]
    for language in ("rus", "eng"):
        rows = [i for i, other in enumerate(pairs.languages) if other == language]
        found = translator.translate([pairs.sources[i] for i in rows], to=language)
        assert np.mean([text == pairs.targets[i] for i, text in zip(rows, found, strict=True)]) > 0.85
    with pytest.raises(Problem, match="several target languages"):
        translator.translate(["save"])
    scored = evaluate.translate_and_score(translator, pairs)
    assert scored.metrics["chrF"].value() > 90


def test_texts_cut_by_chance_say_the_same_and_are_the_same_each_time(translator: Translator, version: Path) -> None:
    pairs = read(Version(version), "train")
    plain, once, again, other = (
        encode(pairs, translator.subwords, sampling=alpha, seed=seed)
        for alpha, seed in ((0, 0), (0.3, 1), (0.3, 1), (0.3, 2))
    )
    assert once == again != other
    assert once != plain
    texts = [[translator.subwords.decode(row) for row in cut.targets] for cut in (plain, once, other)]
    assert texts[0] == texts[1] == texts[2]


def test_long_pairs_are_left_out_of_training(translator: Translator) -> None:
    pairs = Pairs(["a", "b"], ["save page", "save " * 300], ["сохранить", "сохранить " * 300], ["rus", "rus"])
    assert len(encode(pairs, translator.subwords, 50).sources) == 1
    assert len(encode(pairs, translator.subwords).sources) == 2


@pytest.mark.parametrize("kind", ["alike", "mixed", "nothing alike", "short", "empty"])
def test_the_formulas_are_sacrebleu_s(kind: str) -> None:
    generator = random.Random(kind)
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "another", "Cat", "."]
    references = [" ".join(generator.choices(words, k=generator.randint(1, 12))) for _ in range(40)]
    hypotheses = {
        "alike": list(references),
        "mixed": [" ".join(w for w in r.split() if generator.random() < 0.8) or "cat" for r in references],
        "nothing alike": ["xyz qq"] * 40,
        "short": ["cat"] * 40,
        "empty": [""] * 40,
    }[kind]
    units = [str(i) for i in range(40)]
    scored = evaluate.score(Pairs(units, references, references, ["eng"] * 40), hypotheses)
    chosen = np.array([generator.randrange(40) for _ in range(40)])
    for evaluation, metric in ((scored.metrics["chrF"], CHRF()), (scored.metrics["BLEU"], BLEU(lowercase=True))):
        assert evaluation.value() == pytest.approx(metric.corpus_score(hypotheses, [references]).score, abs=1e-9)
        picked = [hypotheses[i] for i in chosen], [[references[i] for i in chosen]]
        assert evaluation.score(chosen) == pytest.approx(metric.corpus_score(*picked).score, abs=1e-9)


ALONE = """
import sys

class Blocked:
    names = {"airflow", "asyncpg", "boto3", "dbt", "great_expectations", "limits", "mlflow", "psycopg2", "pydantic",
             "pymongo", "redis", "scrapy", "soundfile", "soxr", "sqlalchemy", "symusic", "typer"}

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, Blocked())
from ml.translation.train import main

main(sys.argv[1:])
"""


def test_training_needs_nothing_but_its_extra(version: Path, tmp_path: Path) -> None:
    flags = ["--version", str(version), "--out", str(tmp_path), "--set", *TINY, "steps=2", "evaluate_every=2"]
    done = subprocess.run(
        [sys.executable, "-c", ALONE, *flags], check=False, cwd=Path(__file__).parent.parent.parent,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {"weights.safetensors", "spm.model", "model.json", "scores.json", "report.html", "card.md"} <= {
        path.name for path in tmp_path.iterdir()
    }


def test_ctranslate2_gives_what_our_own_search_gives(translator: Translator, version: Path, tmp_path: Path) -> None:
    if translator.config.kind == "recurrent":
        with pytest.raises(Problem, match="no model of kind 'recurrent'"):
            serving.export(translator, tmp_path / "model")
        return
    serving.export(translator, tmp_path / "model")
    other = serving.served(translator, tmp_path / "model", threads=1)
    lines = [*read(Version(version), "train").sources, "", "save", " ".join(["save page."] * 200), "日本語"]
    for beam in (1, 4):
        ours, theirs = (each.candidates(lines, beam, beam=beam) for each in (translator, other))
        for a, b in zip(ours, theirs, strict=True):
            assert [one.text for one in a] == [one.text for one in b]
            assert [one.score for one in a] == pytest.approx([one.score for one in b], abs=1e-4)
    with pytest.raises(Problem, match="Export the model again"):
        serving.served(translator, tmp_path)


def test_the_onnx_model_gives_torch_s_logits(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For sentences of any number and length, also where the graph was traced with others."""
    portable.main([str(run), str(tmp_path / "model.onnx")])
    assert "differs from torch by" in capsys.readouterr().err
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    translator = load(run)
    sources, targets = ["save page", "open new file user"], ["сохранить страница", "открыть"]
    source = pad(translator.subwords.encode_source(sources, ["rus", "rus"]))
    target = pad([row[:-1] for row in translator.subwords.encode_target(targets)])
    (found,) = session.run(None, {"source": source.numpy(), "target": target.numpy()})
    with torch.no_grad():
        expected = translator.model.logits(translator.model(source, target))  # type: ignore[operator]
    assert np.abs(found - expected.numpy()).max() < 1e-4


def test_an_onnx_model_that_differs_is_not_left_behind(tmp_path: Path) -> None:
    class Drawing(torch.nn.Module):
        """Gives other numbers each time, which no graph can give again."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + float(np.random.random())

    with pytest.raises(Problem, match="differs from torch's by"):
        export(Drawing(), [{"x": torch.zeros(2)}], {}, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_two_processes_leave_one_whole_run(version: Path, tmp_path: Path) -> None:
    """As `torchrun` starts them: the first writes the folder, and it is the model that one process would have made."""
    settings = ("steps=4", "evaluate_every=2", "accumulate=2", "dropout=0.1", "average=0.9", "workers=1")
    run_training(version, tmp_path / "one", settings=settings)
    flags = ["--version", str(version), "--out", str(tmp_path / "two"), "--set", *TINY, *settings]
    launch = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "ml.translation.train"]
    done = subprocess.run(
        [sys.executable, "-m", *launch, *flags], check=False, cwd=Path(__file__).parent.parent.parent,
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "two").iterdir()} == {path.name for path in (tmp_path / "one").iterdir()}
    one, two = (load_file(tmp_path / name / "weights.safetensors") for name in ("one", "two"))
    for name, tensor in one.items():
        assert torch.allclose(tensor, two[name], atol=1e-4), name


def test_a_store_that_vanished_leaves_the_run_as_it_was(
    version: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("steps=4", "evaluate_every=2")
    run_training(version, tmp_path / "run", settings=settings)
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    monkeypatch.setenv("LYREBIRD_S3_ENDPOINT", "http://127.0.0.1:9")  # where nobody listens
    monkeypatch.setenv("LYREBIRD_S3_ACCESS_KEY", "key")
    monkeypatch.setenv("LYREBIRD_S3_SECRET_KEY", "secret")
    with pytest.raises(Problem, match=r"object store at http://127.0.0.1:9 did not give s3://datasets/en-ru"):
        run_training("s3://datasets/en-ru", tmp_path / "run", "--resume", settings=settings)
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before
