"""Scores with intervals: the bootstrap over units that are independent of each other.

A unit is what could have been another one in another sample: a recording, a piece, a sentence. Resampling the units
with replacement shows how far a score would move (Efron 1979; for translation, Koehn 2004). Two systems are compared on
the same resamples, so that what is hard for both cancels out.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ml.training.files import write_json
from storage.errors import Problem

Direction = Literal["more", "less"]
_CELLS = 2_000_000  # drawn unit numbers held at a time: 16 MB


@dataclass(frozen=True)
class Evaluation:
    """A system's result on named units, from which the score of any resample can be computed.

    `score` takes the numbers of the chosen units (repeats allowed, shape (n,)) and returns the score over them; it may
    return NaN where a resample has none. `direction` says whether more or less is better. `many`, if given, is the
    same for many resamples at once: counts of each unit, shape (samples, units), to scores, shape (samples,).
    """

    units: list[str]
    score: Callable[[NDArray[np.int64]], float]
    direction: Direction
    many: Callable[[NDArray[np.float64]], NDArray[np.float64]] | None = None

    def value(self) -> float:
        """The score over every unit once."""
        return float(self.score(np.arange(len(self.units))))


def from_sums(
    units: list[str],
    statistics: NDArray[np.float64],
    formula: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    direction: Direction,
) -> Evaluation:
    """An evaluation whose score is a formula of sums over units: fast, as a resample is one row of a matrix product.

    `statistics` has shape (units, k); `formula` takes sums of shape (samples, k) and returns scores (samples,).
    A mean, for example, has k = 2 (total and count) and the formula `lambda s: s[:, 0] / s[:, 1]`.
    """
    table = np.asarray(statistics, dtype=np.float64)
    return Evaluation(
        units=units,
        score=lambda chosen: float(formula(table[chosen].sum(axis=0, keepdims=True))[0]),
        direction=direction,
        many=lambda counts: formula(counts @ table),
    )


def interval(evaluation: Evaluation, seed: int = 0, samples: int = 1000) -> tuple[float, float, float]:
    """The score and the ends of its 95 % percentile bootstrap interval: (value, low, high)."""
    low, high = np.nanpercentile(_resampled([evaluation], seed, samples)[0], [2.5, 97.5])
    return evaluation.value(), float(low), float(high)


def paired(a: Evaluation, b: Evaluation, seed: int = 0, samples: int = 1000) -> tuple[float, float, float]:
    """The difference a - b and its 95 % interval over shared resamples. For `less`, below 0 means a is better."""
    if a.units != b.units or a.direction != b.direction:
        raise Problem("The two results are not over the same rows", "Evaluate both on the same version and split")
    of_a, of_b = _resampled([a, b], seed, samples)
    low, high = np.nanpercentile(of_a - of_b, [2.5, 97.5])
    return a.value() - b.value(), float(low), float(high)


def better(a: Evaluation, b: Evaluation, seed: int = 0, samples: int = 1000) -> bool:
    """Whether a is better than b beyond chance: the paired interval lies wholly on the good side of 0."""
    _, low, high = paired(a, b, seed, samples)
    return low > 0 if a.direction == "more" else high < 0


def metric(
    name: str, evaluation: Evaluation, baseline_name: str, baseline: Evaluation, *, seed: int = 0, samples: int = 1000
) -> dict[str, Any]:
    """One entry of scores.json: the model's score beside its baseline's on the same units, both with intervals."""
    if evaluation.units != baseline.units:
        raise Problem(f"The baseline {baseline_name!r} is not over the same rows", "Evaluate both on the same split")
    value, low, high = interval(evaluation, seed, samples)
    base, base_low, base_high = interval(baseline, seed, samples)
    return {
        "name": name, "value": value, "low": low, "high": high, "direction": evaluation.direction,
        "rows": len(evaluation.units),
        "baseline": {"name": baseline_name, "value": base, "low": base_low, "high": base_high},
    }  # fmt: skip


def write_scores(run: Path, family: str, dataset: str, split: str, metrics: list[dict[str, Any]]) -> None:
    """Write scores.json; the first metric is the one that decides about promotion."""
    write_json(run / "scores.json", {"family": family, "dataset": dataset, "split": split, "metrics": metrics})


def _resampled(evaluations: list[Evaluation], seed: int, samples: int) -> list[NDArray[np.float64]]:
    """Each evaluation's scores over the same resamples, shape (samples,) each."""
    size = len(evaluations[0].units)
    if size == 0:
        raise Problem("There is nothing to score: the split has no rows", "Freeze a version with more data")
    scores: list[list[float]] = [[] for _ in evaluations]
    for chosen in _draws(size, seed, samples):
        counts: NDArray[np.float64] | None = None
        for evaluation, into in zip(evaluations, scores, strict=True):
            if evaluation.many is None:
                into.extend(float(evaluation.score(row)) for row in chosen)
                continue
            if counts is None:
                counts = np.stack([np.bincount(row, minlength=size) for row in chosen]).astype(np.float64)
            into.extend(evaluation.many(counts).tolist())
    return [np.array(into) for into in scores]


def _draws(size: int, seed: int, samples: int) -> Iterator[NDArray[np.int64]]:
    """Blocks of resamples, shape (block, size). The draws depend on the seed and the number of units alone."""
    generator, block = np.random.default_rng(seed), max(1, _CELLS // size)
    for start in range(0, samples, block):
        yield generator.integers(0, size, (min(block, samples - start), size))
