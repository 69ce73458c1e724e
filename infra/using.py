"""Models in use: what `identify`, `compose`, `translate` and `evaluate` do with the champion or the model named."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra import sentences
from ml import registry
from storage import languages, warehouse
from storage.errors import Problem
from storage.media.text import lines as text_lines
from storage.media.text import read_lines
from storage.settings import Settings

if TYPE_CHECKING:
    from ml.translation.translate import Translator

Say = Callable[[str], None]


def champion(family: str, settings: Settings) -> str:
    """The family's champion; one trained on real data before one trained on simulated data, the latest first.

    Raises Problem when there is none.
    """
    with closing(warehouse.connect(settings)) as db, db, db.cursor() as sql:
        sql.execute(
            """
            select p.model
            from (select distinct on (model) * from ml.promotion where promoted order by model, id desc) as p
            left join ml.score as s on (s.model, s.model_version) = (p.model, p.model_version) and s.split = 'valid'
            left join ml.dataset as d on d.version = s.dataset_version
            where p.model like %s
            order by coalesce((d.manifest ->> 'simulated')::boolean, false), p.id desc
            limit 1
            """,
            (f"{family}-%",),
        )
        row = sql.fetchone()
    if row is None:
        raise Problem(
            f"no model of the family {family} is champion yet",
            "Train one with `make run`; `lyrebird model list` shows models that did not beat their baseline",
        )
    return str(row[0])


def _load(name: str, family: str, settings: Settings) -> tuple[Path, str, dict[str, Any]]:
    """The folder of a model, its full name NAME@VERSION, and its model.json."""
    name = name or champion(family, settings)
    folder = registry.fetch(name, settings)
    model, version = registry.resolve(name, settings)
    about = json.loads((folder / "model.json").read_text())
    if about["family"] != family:
        raise Problem(f"{model} is a model of {about['family']}, not of {family}", "`lyrebird model list` shows them")
    return folder, f"{model}@{version}", about


def _origin(about: dict[str, Any], full: str) -> str:
    """The sentence that names model and data under every answer."""
    data = about["dataset"]
    simulated = "; the data it was trained on is simulated" if data.get("simulated") else ""
    return f"{full}, trained on {data['name']} {data['version']}{simulated}"


def identify(paths: list[Path], name: str, settings: Settings, as_json: bool, say: Say) -> int:
    """Print an answer for each file; a file that cannot be read is named and left out. Gives how many failed."""
    from ml.birds import identify as birds

    folder, full, about = _load(name, "birds", settings)
    model = birds.load(folder, full)
    failed = 0
    for path in paths:
        try:
            answer = model.identify(path)
        except Problem as problem:
            say(f"lyrebird: {problem}")
            failed += 1
            continue
        if as_json:
            print(sentences.document(answer), flush=True)
            continue
        top = answer["top"]
        species = sentences.visible(top["species"] or "none of the species it knows")
        print(f"{sentences.visible(str(path))}: {species} ({top['score']:.2f})")
        for line in answer["predictions"]:
            species = sentences.visible(line["species"] or "-")
            print(f"  {line['start_s']:7.1f} s to {line['end_s']:7.1f} s  {species} ({line['score']:.2f})")
    if not as_json:
        print(f"({_origin(about, full)})")
    return failed


def compose(
    out: Path, start: Path | None, frames: int, temperature: float, seed: int, name: str, settings: Settings
) -> dict[str, Any]:
    """Write a MIDI file. Gives what was written, and by which model."""
    from ml.music import compose as music

    _check_writable(out, "--output")
    folder, full, about = _load(name, "music", settings)
    model = music.load(folder, full)
    prime = model.read_midi(start) if start else None
    tune = model.compose(frames, prime=prime, temperature=temperature, seed=seed)
    with _writing(out, "--output"):
        out.write_bytes(model.midi(tune))
    return {"file": str(out), "frames": len(tune), "grid": model.grid, "model": full, "origin": _origin(about, full)}


def translate(
    text: list[str],
    source: str,
    target: str,
    source_file: Path | None,
    target_file: Path | None,
    beam: int,
    best: int,
    fast: bool,
    attention: Path | None,
    name: str,
    settings: Settings,
    as_json: bool,
    say: Say,
) -> None:
    """Translate sentences or a file, a line out for each line in; ``best`` of them, as Moses lists them, if several.

    ``fast`` decodes through CTranslate2, whose form of the model is kept beside it.
    """
    from ml.translation import translate as translation

    if bool(text) == (source_file is not None):
        raise Problem("there is nothing to translate, or too much", "Give sentences, or --input FILE")
    for path, option in ((target_file, "--output"), (attention, "--attention")):
        _check_writable(path, option)
    lines = text or _lines(source_file)
    folder, full, about = _load(name or model_of_pair(source, target), "translation", settings)
    model = translation.load(folder)
    to = languages.long(target)
    found = (_fast(model, folder) if fast else model).candidates(lines, best, beam, to)
    if attention is not None and lines:
        from ml.translation.train import save_attention

        with _writing(attention, "--attention"):
            say(save_attention(model, lines[0], attention, to))
    if as_json:
        rows = [
            {"source": line, "target": ranked[0].text, "model": full}
            | ({"candidates": [asdict(one) for one in ranked]} if best > 1 else {})
            for line, ranked in zip(lines, found, strict=True)
        ]
        body = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    elif best > 1:
        body = "".join(
            f"{number} ||| {one.text} ||| {one.score:.4f}\n" for number, ranked in enumerate(found) for one in ranked
        )
    else:
        body = "".join(f"{ranked[0].text}\n" for ranked in found)
    if target_file is not None:
        with _writing(target_file, "--output"):
            target_file.write_text(body, encoding="utf-8")
    else:
        sys.stdout.write(body)
    say(f"({_origin(about, full)})")


def _fast(model: Translator, folder: Path) -> Translator:
    """The same model with CTranslate2's search."""
    from ml.translation import serving

    try:
        import ctranslate2  # noqa: F401 - is it there?
    except ImportError:
        raise Problem("CTranslate2 is not installed", "`pip install ctranslate2`, or leave out --fast") from None
    kept = folder / "ctranslate2"
    if not kept.is_dir():
        serving.export(model, kept)
    return serving.served(model, kept)


def _lines(path: Path | None) -> list[str]:
    """Lines of a UTF-8 file, or of stdin for ``-``."""
    if path is None or str(path) == "-":
        return text_lines(sys.stdin.buffer.read(), "the standard input")
    return read_lines(path)


def model_of_pair(source: str, target: str) -> str:
    """The model of a pair of languages, given by their codes of two or three letters."""
    for code in (source, target):
        if not languages.known(code):
            raise Problem(f"there is no language with the code {code!r}", "Give one of ISO 639, such as en or eng")
    if languages.long(source) != "eng" or languages.long(target) == "eng":
        raise Problem(f"there is no model from {source} to {target}", "Models translate from English, --from en")
    return f"translation-en-{languages.short(target)}"


@contextmanager
def _writing(path: Path, option: str) -> Iterator[None]:
    """What goes wrong with a file that a person named is said in a sentence."""
    try:
        yield
    except OSError as error:
        raise Problem(f"cannot write {path}: {error.strerror}", f"Name another file with {option}") from error


def _check_writable(path: Path | None, option: str) -> None:
    """Find out before the work that a file cannot be written; leave what is there as it is."""
    if path is not None and not path.is_fifo():  # whoever reads a pipe would take this for its end
        new = not (path.exists() or path.is_symlink())
        with _writing(path, option):
            path.open("ab").close()
            if new:
                path.unlink()


def evaluate_birds(folder: Path, labels: Path, name: str, settings: Settings) -> dict[str, Any]:
    """Score a birds model on labelled files."""
    from ml.birds import evaluate, identify

    place, full, _ = _load(name, "birds", settings)
    return evaluate.evaluate_folder(identify.load(place, full), folder, labels)


def evaluate_music(pieces: Path, name: str, settings: Settings) -> dict[str, Any]:
    """Nats per frame of a music model on pieces it was not trained on."""
    from ml.music import compose, evaluate

    place, full, _ = _load(name, "music", settings)
    model, version = full.split("@")
    return evaluate.evaluate_file(compose.load(place, full), pieces, model, int(version))


def evaluate_translation(
    source: Path, reference: Path, from_: str, to: str, name: str, settings: Settings
) -> dict[str, Any]:
    """chrF and BLEU of a translation model on a file, with intervals and signatures."""
    from ml.training.evaluation import interval
    from ml.translation import evaluate, translate

    sources, references = evaluate.read_aligned(source, reference)
    place, full, _ = _load(name or model_of_pair(from_, to), "translation", settings)
    scored = evaluate.evaluate_lines(translate.load(place), sources, references, languages.long(to))
    metrics = []
    for metric, evaluation in scored.metrics.items():
        value, low, high = interval(evaluation)
        metrics.append(
            {"name": metric, "value": value, "low": low, "high": high, "signature": scored.signatures[metric]}
        )
    return {"model": full, "lines": len(scored.hypotheses), "metrics": metrics}
