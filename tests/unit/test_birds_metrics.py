"""Average precision against scikit-learn, and the choice of the threshold."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from ml.birds.metrics import average_precision, best_threshold, macro_average_precision, surest


def cases(count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Truth and scores, some with many ties."""
    random = np.random.default_rng(20)
    made = []
    for number in range(count):
        rows = int(random.integers(2, 60))
        truth = random.random(rows) < random.uniform(0.1, 0.9)
        truth[random.integers(rows)] = True
        scores = random.random(rows) + truth * random.uniform(0, 1)
        made.append((truth, np.round(scores, 1) if number % 2 else scores))
    return made


def test_average_precision_equals_scikit_learn() -> None:
    for truth, scores in cases(200):
        assert average_precision(truth, scores) == pytest.approx(average_precision_score(truth, scores), abs=1e-12)


def test_macro_average_with_weights_equals_scikit_learn_on_repeated_rows() -> None:
    random = np.random.default_rng(5)
    truth = random.random((40, 4)) < 0.3
    scores = np.round(random.random((40, 4)) + 0.4 * truth, 1)
    macro = macro_average_precision(truth, scores)
    weights = np.stack([np.bincount(random.integers(0, 40, 40), minlength=40) for _ in range(20)]).astype(float)
    for row, ours in zip(weights, macro(weights), strict=True):
        again = np.repeat(np.arange(40), row.astype(int))
        theirs = np.mean(
            [average_precision_score(truth[again, k], scores[again, k]) for k in range(4) if truth[again, k].any()]
        )
        assert ours == pytest.approx(theirs, abs=1e-12)


def test_a_worked_example() -> None:
    # Ranked: hit, miss, hit, miss -> (1/1 + 2/3) / 2.
    assert average_precision(np.array([1, 0, 1, 0], bool), np.array([0.9, 0.8, 0.7, 0.1])) == pytest.approx(5 / 6)


def test_a_constant_score_has_the_prevalence() -> None:
    truth = np.arange(10) < 3
    assert average_precision(truth, np.full(10, 0.4)) == pytest.approx(0.3)


def test_without_a_positive_there_is_no_score() -> None:
    assert np.isnan(average_precision(np.zeros(5, bool), np.arange(5.0)))
    assert np.isnan(average_precision(np.zeros(0, bool), np.zeros(0)))


def test_labels_without_a_positive_do_not_count() -> None:
    truth = np.array([[1, 0], [0, 0]], bool)
    scores = np.array([[0.9, 0.1], [0.2, 0.8]])
    macro = macro_average_precision(truth, scores)
    assert macro(np.ones((1, 2)))[0] == 1.0
    assert np.isnan(macro(np.array([[0.0, 1.0]]))[0])


def test_the_threshold_parts_what_can_be_parted() -> None:
    truth = np.array([[1, 0], [0, 1], [1, 1], [0, 0]], bool)
    scores = np.where(truth, 0.7, 0.4) + np.random.default_rng(1).uniform(-0.05, 0.05, (4, 2))
    assert 0.45 < best_threshold(truth, scores) < 0.65


def test_the_threshold_of_equal_scores_is_a_half() -> None:
    assert best_threshold(np.ones((3, 2), bool), np.full((3, 2), 0.2)) == 0.5


def test_the_surest_label_or_none() -> None:
    assert surest(np.array([[0.2, 0.6], [0.3, 0.1], [0.5, 0.4]]), 0.5).tolist() == [1, -1, 0]
