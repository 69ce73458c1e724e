"""The Markov baseline is a probability distribution over sets of pitches, and an honest one."""

import itertools
import math

import numpy as np
import pytest

from ml.music.baseline import BEGINNING, MarkovBaseline, in_all_keys

SETS = [frame for size in range(5) for frame in itertools.combinations(range(3, -1, -1), size)]  # of 4 pitches
TRAIN = [
    [[3, 1], [2, 0], [3, 1], [2, 0], [], [1]],
    [[3, 1], [2], [3, 1], [2, 0], [3]],
]


@pytest.mark.parametrize(
    "history",
    [
        (BEGINNING, BEGINNING),
        (BEGINNING, (3, 1)),
        ((3, 1), (2, 0)),  # both frames heard together
        ((0,), (2, 0)),  # the second frame heard, not after the first
        ((0,), (3, 2, 1)),  # neither heard
    ],
)
def test_probabilities_of_all_sets_sum_to_one(history):
    model = MarkovBaseline(TRAIN, pitches=4)
    probabilities = [model.probability(history, frame) for frame in SETS]
    assert len(SETS) == 16
    assert min(probabilities) > 0
    assert sum(probabilities) == pytest.approx(1, abs=1e-12)


def test_the_distribution_learnt_from_nothing_is_proper_too():
    model = MarkovBaseline([], pitches=4)
    assert sum(model.probability((BEGINNING, BEGINNING), frame) for frame in SETS) == pytest.approx(1, abs=1e-12)


def test_every_frame_is_scored_the_first_rests_and_repeats_included():
    model = MarkovBaseline(TRAIN, pitches=4)
    piece = [[1, 3], [], [], [0]]
    nll = model.nll(piece)
    assert nll.shape == (4,)
    assert nll[0] == pytest.approx(-math.log(model.probability((BEGINNING, BEGINNING), (3, 1))))
    assert nll[2] == pytest.approx(-math.log(model.probability(((3, 1), ()), ())))
    assert nll[3] == pytest.approx(-math.log(model.probability(((), ()), (0,))))


def test_two_frames_of_context_help_where_the_music_needs_them():
    # What follows A depends on what came before it: A B A C A B A C …
    a, b, c = [3], [2], [1]
    model = MarkovBaseline([[a, b, a, c] * 20], pitches=4)
    assert model.probability(((2,), (3,)), (1,)) > 0.9
    assert model.probability(((1,), (3,)), (2,)) > 0.9
    assert 0.4 < model.probability(((0,), (3,)), (2,)) < 0.6  # never heard: one frame of context is left


def test_it_is_better_on_music_like_its_own_than_on_other_music():
    rng = np.random.default_rng(5)
    walk = [[[60 + int(p), 48 + int(p)] for p in np.cumsum(rng.integers(-2, 3, 40))] for _ in range(20)]
    model = MarkovBaseline(walk[:18])
    ours = np.concatenate([model.nll(piece) for piece in walk[18:]]).mean()
    noise = [[sorted(set(rng.integers(0, 128, 4).tolist())) for _ in range(40)]]
    assert ours < 5
    assert model.nll(noise[0]).mean() > 2 * ours


def test_counts_in_all_keys_hold_each_transposition_within_the_range_once():
    pieces = [[[60, 52], [62]], [[55], []]]
    assert list(in_all_keys(pieces, 2)) == [
        [[60, 52], [62]],  # spans the whole range
        [[53], []],
        [[54], []],
        [[55], []],
        [[56], []],
        [[57], []],
    ]
