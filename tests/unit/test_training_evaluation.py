"""Intervals: they cover what they should, both ways of computing them agree, and pairs cancel out common luck."""

import json
from pathlib import Path

import numpy as np
import pytest

from ml.training.evaluation import Evaluation, better, from_sums, interval, metric, paired, write_scores
from storage.errors import Problem


def mean_of(values: np.ndarray, direction: str = "more") -> Evaluation:
    table = np.stack([values, np.ones_like(values)], axis=1)
    units = [str(i) for i in range(len(values))]
    return from_sums(units, table, lambda sums: sums[:, 0] / sums[:, 1], direction)  # type: ignore[arg-type]


def test_the_interval_of_a_mean_is_the_textbook_s() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    value, low, high = interval(mean_of(values))
    half = 1.96 * values.std() / 20
    assert value == pytest.approx(values.mean())
    assert low == pytest.approx(values.mean() - half, abs=0.03)
    assert high == pytest.approx(values.mean() + half, abs=0.03)


def test_resampling_one_by_one_and_all_at_once_agree() -> None:
    values = np.random.default_rng(1).exponential(size=50)
    fast = mean_of(values)
    slow = Evaluation(fast.units, lambda chosen: float(values[chosen].mean()), "more")
    assert interval(slow, seed=5, samples=200) == pytest.approx(interval(fast, seed=5, samples=200))
    assert paired(slow, fast, samples=100) == pytest.approx((0, 0, 0), abs=1e-12)


def test_intervals_cover_the_truth_about_95_times_in_100() -> None:
    generator = np.random.default_rng(2)
    hits = 0
    for _ in range(200):
        _, low, high = interval(mean_of(generator.normal(0, 1, 60)), samples=300)
        hits += low <= 0 <= high
    assert 178 <= hits <= 199


def test_a_small_steady_gain_shows_in_pairs_though_the_intervals_overlap() -> None:
    luck = np.random.default_rng(3).normal(0, 5, 300)
    champion, challenger = mean_of(luck), mean_of(luck + np.random.default_rng(4).normal(0.2, 0.5, 300))
    assert interval(challenger)[1] < interval(champion)[2]
    difference, low, _ = paired(challenger, champion)
    assert 0 < low < difference
    assert better(challenger, champion)
    assert not better(champion, challenger)
    assert not better(champion, champion)


def test_less_can_be_better() -> None:
    values = np.random.default_rng(5).normal(0, 1, 100)
    assert better(mean_of(values - 1, "less"), mean_of(values, "less"))


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.random.default_rng(6).normal(size=40)
    assert interval(mean_of(values), seed=1) == interval(mean_of(values), seed=1)
    assert interval(mean_of(values), seed=1) != interval(mean_of(values), seed=2)


def test_resamples_without_a_score_are_left_out() -> None:
    def score(chosen: np.ndarray) -> float:
        return float("nan") if 0 not in chosen else 1.0

    assert interval(Evaluation(["a", "b", "c"], score, "more")) == (1.0, 1.0, 1.0)


def test_results_on_other_rows_are_not_compared() -> None:
    with pytest.raises(Problem, match="not over the same rows"):
        paired(mean_of(np.ones(3)), mean_of(np.ones(4)))


def test_an_empty_split_is_a_problem() -> None:
    with pytest.raises(Problem, match="nothing to score"):
        interval(mean_of(np.ones(0)))


def test_scores_json(tmp_path: Path) -> None:
    entry = metric("accuracy", mean_of(np.ones(5)), "guess", mean_of(np.zeros(5)))
    write_scores(tmp_path, "birds", "abc", "valid", [entry])
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["metrics"][0] == {
        "name": "accuracy", "value": 1.0, "low": 1.0, "high": 1.0, "direction": "more", "rows": 5,
        "baseline": {"name": "guess", "value": 0.0, "low": 0.0, "high": 0.0},
    }  # fmt: skip
    assert (scores["family"], scores["dataset"], scores["split"]) == ("birds", "abc", "valid")
