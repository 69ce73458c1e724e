"""How well a model names birds: on a split of a frozen version, or on a folder of files with a table of labels.

The deciding score is the macro average precision: the average precision of each species that is heard in the rows,
averaged. Its baseline is the class prior, which ranks all clips alike and so scores each species' prevalence. Resamples
are of recordings, because clips of one recording are not independent.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ml.birds.data import Clips
from ml.birds.identify import BATCH, NONE, Identifier, load
from ml.birds.metrics import Numbers, average_precision, macro_average_precision
from ml.datasets.read import Version
from ml.training.evaluation import Evaluation, from_sums, metric
from storage.errors import Problem

SPLIT = "valid"


@dataclass(frozen=True)
class Heard:
    """Rows with what is there and what a model says.

    `units` names each row's recording, `species` what is heard in it; `scores` (rows, labels) are the model's
    probabilities and `named` its answers, "" for none.
    """

    units: list[str]
    species: list[tuple[str, ...]]
    labels: list[str]
    scores: Numbers
    named: list[str]


def probabilities(model: Identifier, clips: Clips) -> Numbers:
    """The model's probability of each of its labels in each clip: (clips, labels)."""
    groups = [range(first, min(first + BATCH, len(clips))) for first in range(0, len(clips), BATCH)]
    return np.concatenate([model.scores([clips.pcm(row) for row in rows]) for rows in groups])


def hear(model: Identifier, clips: Clips) -> Heard:
    """What a model says about the clips of a split."""
    scores = probabilities(model, clips)
    named = [model.name_of(row)[0] for row in scores]
    return Heard(clips.recordings, clips.species, model.labels, scores, named)


def evaluate(run_folder: Path, version: Version, split: str = SPLIT) -> Evaluation:
    """The deciding score of a model on a split: macro average precision over recordings.

    The classes are the species heard in the split, not the model's labels, so that two models are judged on the same
    ones; a species that a model does not know is one it ranks at random. Raises Problem for a split without rows.
    """
    model = load(run_folder)
    return average_precision_of(hear(model, Clips(version, split, model.network.config.sample_rate)))


def metrics(run_folder: Path, version: Version, split: str = SPLIT) -> list[dict[str, Any]]:
    """The entries of scores.json for a split, each beside its baseline on the same rows; the first one decides."""
    model = load(run_folder)
    return measure(hear(model, Clips(version, split, model.network.config.sample_rate)), model.about["commonest"])


def measure(heard: Heard, commonest: str) -> list[dict[str, Any]]:
    """Macro average precision beside the class prior, and the share of rows named right beside the answer that would be
    right most often in training."""
    always = [commonest] * len(heard.named)
    return [
        metric("macro average precision", average_precision_of(heard), "class prior", prior(heard)),
        metric("top-1 accuracy", accuracy(heard, heard.named), "commonest answer of training", accuracy(heard, always)),
    ]


def average_precision_of(heard: Heard) -> Evaluation:
    """Macro average precision of the model's scores."""
    classes, truth = _truth(heard)
    place = {name: i for i, name in enumerate(heard.labels)}
    scores = np.zeros((len(heard.units), len(classes)))
    for column, name in enumerate(classes):
        if name in place:
            scores[:, column] = heard.scores[:, place[name]]
    return _macro(heard.units, truth, scores)


def prior(heard: Heard) -> Evaluation:
    """Macro average precision of saying the same of every clip: the mean prevalence."""
    _, truth = _truth(heard)
    return _macro(heard.units, truth, np.zeros(truth.shape))


def accuracy(heard: Heard, answers: Sequence[str]) -> Evaluation:
    """The share of rows whose answer is right: a species that is heard there, or "" where none is."""
    names, unit_of_row = np.unique(heard.units, return_inverse=True)
    pairs = zip(answers, heard.species, strict=True)
    right = np.array([answer in species or (answer == NONE and not species) for answer, species in pairs], float)
    sums = np.zeros((len(names), 2))  # of each recording: right answers, rows
    np.add.at(sums, unit_of_row, np.stack([right, np.ones(len(right))], axis=1))
    return from_sums(names.tolist(), sums, lambda s: s[:, 0] / s[:, 1], "more")


def by_species(heard: Heard) -> list[dict[str, Any]]:
    """Each species heard in the rows: {"species", "average_precision", "prior", "clips"}, best first."""
    classes, truth = _truth(heard)
    rows = []
    for column, name in enumerate(classes):
        scores = heard.scores[:, heard.labels.index(name)] if name in heard.labels else np.zeros(len(truth))
        rows.append(
            {
                "species": name,
                "average_precision": average_precision(truth[:, column], scores),
                "prior": float(truth[:, column].mean()),
                "clips": int(truth[:, column].sum()),
            }
        )
    return sorted(rows, key=lambda row: -float(row["average_precision"]))


def evaluate_folder(model: Identifier, folder: Path, labels: Path) -> dict[str, Any]:
    """Scores of a model on audio files: {"model", "files", "metrics": […], "species": […], "unknown": […]}.

    `labels` is a CSV file with the columns `file` (relative to the folder) and `scientific_name`, empty where none of
    the species is heard; a file with several species has several lines. A file's score for a species is the highest of
    its windows. `unknown` lists species the model has no label for; they count all the same.
    Raises Problem for a missing file, a damaged one, and a CSV file without those columns.
    """
    truth = read_labels(labels)
    scores = []
    for file in truth:
        windows = list(model.windows(folder / file))
        scores.append(np.max([window.scores for window in windows], axis=0))
    files, species = list(truth), [tuple(names) for names in truth.values()]
    heard = Heard(
        units=files,
        species=species,
        labels=model.labels,
        scores=np.array(scores),
        named=[model.name_of(row)[0] for row in scores],
    )
    if not any(species):
        raise Problem(f"{labels} names no species at all", "Label at least one file with a scientific name")
    return {
        "model": model.name,
        "files": len(files),
        "metrics": measure(heard, model.about["commonest"]),
        "species": by_species(heard),
        "unknown": sorted({name for names in species for name in names} - set(model.labels)),
    }


def read_labels(path: Path) -> dict[str, list[str]]:
    """The species of each file of a CSV file, in its order; none for an empty name. Raises Problem."""
    truth: dict[str, list[str]] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            rows = csv.DictReader(lines)
            if missing := {"file", "scientific_name"} - set(rows.fieldnames or ()):
                raise Problem(
                    f"{path} has no column {' and '.join(sorted(missing))}",
                    "The labels are a CSV file with the columns file and scientific_name",
                )
            for row in rows:
                names = truth.setdefault((row["file"] or "").strip(), [])
                if name := (row["scientific_name"] or "").strip():
                    names.append(name)
    except OSError as error:
        raise Problem(f"cannot read {path}: {error.strerror or error}", "Name a CSV file that exists") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise Problem(f"{path} is not a CSV file in UTF-8 ({error})", "Save the labels as UTF-8 text") from error
    if not truth:
        raise Problem(f"{path} labels no file", "Add a line for each audio file")
    return truth


def _truth(heard: Heard) -> tuple[list[str], NDArray[np.bool_]]:
    """The species heard in the rows, sorted, and which rows they are heard in (rows, species)."""
    classes = sorted({name for names in heard.species for name in names})
    return classes, np.array([[name in names for name in classes] for names in heard.species], dtype=np.bool_)


def _macro(units: Sequence[str], truth: NDArray[np.bool_], scores: Numbers) -> Evaluation:
    if truth.shape[1] == 0:
        raise Problem("no clip of the split holds a species", "Freeze a version whose split has labelled clips")
    names, unit_of_row = np.unique(units, return_inverse=True)
    macro = macro_average_precision(truth, scores)

    def of_chosen(chosen: NDArray[np.int64]) -> float:
        counts = np.bincount(chosen, minlength=len(names)).astype(np.float64)
        return float(macro(counts[None, unit_of_row])[0])

    return Evaluation(names.tolist(), of_chosen, "more", many=lambda counts: macro(counts[:, unit_of_row]))
