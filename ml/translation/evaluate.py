"""Score translations: chrF and BLEU as sacreBLEU counts them, with intervals over sentences.

sacreBLEU gives the counts of every sentence and the signature. The formulas here are the same over many resamples at
once, which makes an interval a matter of milliseconds; a test holds them against sacreBLEU's own scores.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from ml.datasets.read import Version
from ml.training.evaluation import Evaluation, from_sums, interval, metric
from ml.translation.data import Pairs, read
from ml.translation.translate import Translator, load
from storage.errors import Problem
from storage.media.text import read_lines

Sums = NDArray[np.float64]


@dataclass(frozen=True)
class Scored:
    """Translations beside their references, and an Evaluation for each metric; `signatures` say how they count."""

    pairs: Pairs
    hypotheses: list[str]
    metrics: dict[str, Evaluation]
    signatures: dict[str, str]


def evaluate(run: Path, version: Version | str, split: str = "valid") -> Evaluation:
    """The decisive score (chrF) of a run's model on a split of a frozen version."""
    version = version if isinstance(version, Version) else Version(version)
    return translate_and_score(load(run), read(version, split)).metrics["chrF"]


def metrics(run: Path, version: Version, split: str = "valid") -> list[dict[str, Any]]:
    """The entries of scores.json for a split, each beside the source copied; chrF decides."""
    return measure(translate_and_score(load(run), read(version, split)))


def measure(scored: Scored, seed: int = 0) -> list[dict[str, Any]]:
    """As :func:`metrics`, of translations that are there."""
    baseline = copy_baseline(scored.pairs)
    return [
        metric(name, scored.metrics[name], "copy the source", baseline.metrics[name], seed=seed)
        | {"signature": scored.signatures[name]}
        for name in ("chrF", "BLEU")
    ]


def translate_and_score(translator: Translator, pairs: Pairs) -> Scored:
    """Translate the sources with the model's own beam and score the result."""
    hypotheses = [""] * len(pairs.sources)
    for language in sorted(set(pairs.languages)):
        rows = [i for i, other in enumerate(pairs.languages) if other == language]
        for i, text in zip(rows, translator.translate([pairs.sources[i] for i in rows], to=language), strict=True):
            hypotheses[i] = text
    return score(pairs, hypotheses)


def copy_baseline(pairs: Pairs) -> Scored:
    """The baseline that any translation has to beat: the source, copied."""
    return score(pairs, list(pairs.sources))


def evaluate_lines(translator: Translator, sources: list[str], references: list[str], to: str | None = None) -> Scored:
    """Translate lines and score them against their references."""
    units = [str(i + 1) for i in range(len(sources))]
    pairs = Pairs(units, sources, references, [to or translator.subwords.languages[0]] * len(units))
    return score(pairs, translator.translate(sources, to=to))


def read_aligned(source: Path, reference: Path) -> tuple[list[str], list[str]]:
    """The lines of a text and of its translation. Raises Problem for files that cannot be read or are not aligned."""
    sources, references = read_lines(source), read_lines(reference)
    if len(sources) != len(references):
        raise Problem(
            f"{source} has {len(sources)} lines and {reference} has {len(references)}",
            "Give two files aligned by line",
        )
    return sources, references


def score(pairs: Pairs, hypotheses: Sequence[str]) -> Scored:
    """chrF (Popović 2015; character 6-grams, beta 2) and BLEU (Papineni et al. 2002; lower case, 13a), 0 to 100."""
    if not pairs.units:
        raise Problem("There is nothing to score: no pair has text on both sides", "Freeze a version with more data")
    chrf, bleu = CHRF(), BLEU(lowercase=True)
    found, references = list(hypotheses), [list(pairs.targets)]
    metrics, signatures = {}, {}
    for name, counter, formula in (("chrF", chrf, _chrf), ("BLEU", bleu, _bleu)):
        # The only place where sacreBLEU gives the counts by sentence; its public scores are of the whole alone.
        counts = np.array(counter._extract_corpus_statistics(found, references), dtype=np.float64)
        metrics[name] = from_sums(pairs.units, counts, formula, "more")
        signatures[name] = str(counter.get_signature())
    return Scored(pairs, found, metrics, signatures)


def sentence_scores(scored: Scored) -> list[float]:
    """chrF of each sentence alone, for the best and the worst."""
    evaluation = scored.metrics["chrF"]
    return [evaluation.score(np.array([i])) for i in range(len(evaluation.units))]


def by_length(scored: Scored, seed: int = 0) -> list[tuple[str, int, str, str]]:
    """BLEU and chrF with intervals for short, middling and long sources: (words, rows, BLEU, chrF)."""
    words = np.array([len(source.split()) for source in scored.pairs.sources])
    edges = [0, *sorted({int(edge) for edge in np.quantile(words, [0.25, 0.5, 0.75])}), int(words.max())]
    rows = []
    for low, high in pairwise(edges):
        chosen = np.flatnonzero((words > low) & (words <= high))
        if len(chosen):
            told = []
            for name in ("BLEU", "chrF"):
                value, least, most = interval(_part(scored.metrics[name], chosen), seed, 200)
                told.append(f"{value:.1f} [{least:.1f}, {most:.1f}]")
            rows.append((f"{low + 1} to {high}", len(chosen), told[0], told[1]))
    return rows


def _part(evaluation: Evaluation, chosen: NDArray[np.int64]) -> Evaluation:
    """The evaluation over some of its units."""
    units = [evaluation.units[i] for i in chosen]
    return Evaluation(units, lambda drawn: evaluation.score(chosen[drawn]), evaluation.direction)


def _chrf(sums: Sums) -> Sums:
    """Sums of (hypothesis, reference, matched) n-grams for n = 1, 2, …, shape (samples, 3 * orders) -> chrF2.

    Orders that one side has no n-grams of do not count, and there is no smoothing beyond that.
    """
    hypothesis, reference, matched = sums[:, 0::3], sums[:, 1::3], sums[:, 2::3]
    counted = (hypothesis > 0) & (reference > 0)
    orders = counted.sum(axis=1)
    zero = np.zeros_like(matched)
    precision = np.divide(matched, hypothesis, out=zero.copy(), where=counted).sum(axis=1)
    recall = np.divide(matched, reference, out=zero.copy(), where=counted).sum(axis=1)
    precision, recall = (
        np.divide(part, orders, out=np.zeros_like(part), where=orders > 0) for part in (precision, recall)
    )
    below = 4 * precision + recall  # beta = 2: recall weighs four times as much
    f_score: Sums = np.divide(5 * precision * recall, below, out=np.zeros_like(below), where=below > 0)
    return 100 * f_score


def _bleu(sums: Sums) -> Sums:
    """Sums of (hypothesis words, reference words, 4 matches, 4 n-grams), shape (samples, 10) -> BLEU.

    An order with no match counts as half a match, the next such order as a quarter (sacreBLEU's `exp`); a text without
    4-grams is scored by the orders that it has none of as 0.
    """
    words, reference, matched, total = sums[:, 0], sums[:, 1], sums[:, 2:6], sums[:, 6:10]
    smoothing, logs = np.ones(len(sums)), np.zeros(len(sums))
    empty = (matched.sum(axis=1) == 0) | (total == 0).any(axis=1)
    for order in range(4):
        none = matched[:, order] == 0
        smoothing = np.where(none, smoothing * 2, smoothing)
        above = np.where(none, 1 / smoothing, matched[:, order])
        logs += np.log(above / np.maximum(total[:, order], 1)) / 4
    brevity = np.where(words < reference, np.exp(1 - reference / np.maximum(words, 1)), 1.0)
    return np.where(empty, 0.0, 100 * brevity * np.exp(logs))
