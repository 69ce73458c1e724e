"""Average precision and the threshold: the numbers that a multi-label classifier is judged by. Only numpy.

Rows are clips, columns are labels. `truth` says what is there, `scores` is higher where the model is surer.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
Truth = NDArray[np.bool_]


def average_precision(truth: Truth, scores: Numbers) -> float:
    """The area under the precision-recall curve as a sum of steps, one for each distinct score:
    the sum over thresholds n of (recall(n) - recall(n - 1)) * precision(n).

    `truth` and `scores` are (rows,). Rows with equal scores stand together, so a constant score has the prevalence as
    its average precision. NaN where no row is positive.
    """
    return float(_average_precisions(*_sorted(truth, scores), np.ones((1, len(truth))))[0])


def macro_average_precision(truth: Truth, scores: Numbers) -> Callable[[Numbers], Numbers]:
    """A function from row weights (samples, rows) to the mean over labels of the average precision, (samples,).

    A label without a positive among a sample's rows does not count in that sample; NaN where no label counts. A
    bootstrap asks a thousand times with other weights, so each label is sorted only once.
    """
    labels = [_sorted(truth[:, label], scores[:, label]) for label in range(truth.shape[1])]

    def score(weights: Numbers) -> Numbers:
        found = np.stack([_average_precisions(*label, weights) for label in labels])
        counts = np.sum(~np.isnan(found), axis=0)
        return np.asarray(np.where(counts > 0, np.nansum(found, axis=0) / np.maximum(counts, 1), np.nan))

    return score


def _sorted(truth: Truth, scores: Numbers) -> tuple[NDArray[np.int64], Truth, NDArray[np.int64]]:
    """The order of falling score, the truth in that order, and the last place of each run of equal scores."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    return order, truth[order], np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True)[: len(ranked)])


def _average_precisions(order: NDArray[np.int64], truth: Truth, last: NDArray[np.int64], weights: Numbers) -> Numbers:
    """Average precision of one label for many row weights (samples, rows) at once: (samples,)."""
    if len(order) == 0:
        return np.full(len(weights), np.nan)
    ranked = weights[:, order]
    seen = np.cumsum(ranked, axis=1)[:, last]
    hits = np.cumsum(ranked * truth, axis=1)[:, last]
    precision = hits / np.maximum(seen, 1e-12)
    found = np.sum(np.diff(hits, axis=1, prepend=0.0) * precision, axis=1)
    return np.asarray(np.divide(found, hits[:, -1], out=np.full(len(weights), np.nan), where=hits[:, -1] > 0))


def surest(scores: Numbers, threshold: float) -> NDArray[np.int64]:
    """For each row the index of the surest label, or -1 for none where that is below the threshold."""
    return np.where(scores.max(axis=1) >= threshold, scores.argmax(axis=1), -1)


def best_threshold(truth: Truth, scores: Numbers) -> float:
    """The probability from which a label is called heard, chosen for both its uses: the mean of the share of rows whose
    surest label is right (none is right where nothing is there) and of the micro-averaged F1 over all labels.

    Up to 200 levels between neighbouring scores are tried; the lowest of the best is returned, 0.5 where all scores are
    equal.
    """
    levels = np.unique(scores)
    if len(levels) < 2:
        return 0.5
    between = (levels[1:] + levels[:-1]) / 2
    candidates = np.unique(between[np.linspace(0, len(between) - 1, min(200, len(between))).astype(int)])
    rows, silent = np.arange(len(truth)), ~truth.any(axis=1)
    values = []
    for candidate in candidates:
        named, said = surest(scores, candidate), scores >= candidate
        right = np.where(named < 0, silent, truth[rows, named])
        f1 = 2.0 * np.sum(said & truth) / max(1, int(np.sum(said) + np.sum(truth)))
        values.append((np.mean(right) + f1) / 2)
    return float(candidates[int(np.argmax(values))])
