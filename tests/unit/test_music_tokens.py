"""Frames become tokens and come back, and only sets of pitches can be spelled."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ml.music import tokens
from ml.music.data import Surroundings
from ml.music.tokens import END_FRAME, NONE, OUTPUTS, PITCHES, START, STOP

FRAMES = st.lists(st.lists(st.integers(0, 127), max_size=7), max_size=12)
FEW = settings(max_examples=50, deadline=None, derandomize=True)


@FEW
@given(FRAMES)
def test_decoding_gives_the_sets_that_were_encoded(frames):
    assert tokens.decode(tokens.encode(frames)) == [sorted(set(frame), reverse=True) for frame in frames]


@FEW
@given(FRAMES)
def test_the_columns_say_what_a_reader_from_left_to_right_knows(frames):
    read = tokens.describe(tokens.encode(frames))
    done, frame = [], []
    for i, token in enumerate(read.ids.tolist()):
        if token == END_FRAME:
            done.append(frame)
            frame = []
        elif token < PITCHES:
            frame.append(token)
        last = done[-1] if done else []
        assert read.step[i] == len(done)
        assert read.place[i] == len(frame)
        assert read.above[i] == (frame[-1] if frame else NONE)
        assert read.before[i] == (last[len(frame)] if len(frame) < len(last) else NONE)


@FEW
@given(FRAMES)
def test_every_token_of_a_piece_is_allowed_where_it_stands_and_no_ascending_one_is(frames):
    read = tokens.describe(tokens.encode(frames))
    mask = tokens.allowed(torch.from_numpy(read.above[:-1]), stop=True).numpy()
    assert mask[np.arange(len(mask)), read.ids[1:]].all()
    for row, above in zip(mask, read.above[:-1], strict=True):
        ceiling = PITCHES if above == NONE else above
        assert row[:PITCHES].tolist() == [pitch < ceiling for pitch in range(PITCHES)]
        assert row[END_FRAME]
        assert row[STOP] == (above == NONE)


def test_the_end_of_a_piece_can_be_left_out():
    above = torch.tensor([NONE, 60])
    assert not tokens.allowed(above, stop=False)[:, STOP].any()
    assert tokens.allowed(above, stop=False).shape == (2, OUTPUTS)


@FEW
@given(st.lists(st.lists(st.integers(20, 100), max_size=5), min_size=1, max_size=10), st.integers(-20, 20))
def test_transposing_the_columns_is_transposing_the_music_and_changes_no_surroundings(frames, semitones):
    read = tokens.describe(tokens.encode(frames))
    moved = tokens.describe(tokens.encode([[pitch + semitones for pitch in frame] for frame in frames]))
    shifted = read.transposed(semitones)
    for column in ("ids", "step", "place", "above", "before"):
        assert getattr(shifted, column).tolist() == getattr(moved, column).tolist(), column
    around = Surroundings(history=2, reach=24)
    assert (around.of(read) == around.of(moved)).all()


@FEW
@given(FRAMES, st.integers(0, 20))
def test_surroundings_of_the_end_of_a_piece_are_the_end_of_its_surroundings(frames, start):
    read = tokens.describe(tokens.encode(frames))
    start = min(start, len(read) - 1)
    around = Surroundings(history=3, reach=12)
    assert (around.of(read, start) == around.of(read)[start:]).all()
    assert around.of(read).shape == (len(read), around.width)


def test_surroundings_show_the_frames_before_on_a_keyboard_centred_on_the_voice():
    read = tokens.describe(tokens.encode([[60, 64, 67], [59]]))
    around = Surroundings(history=1, reach=12).of(read)
    at = read.step.tolist().index(1)  # nothing of the second frame is written yet; the top voice comes from 67
    under_way, before, classes, there = np.split(around[at, : 2 * 25 + 12 + 1], [25, 50, 62])
    assert not under_way.any()
    assert (np.flatnonzero(before) - 12).tolist() == [-7, -3, 0]
    assert np.flatnonzero(classes).tolist() == [0, 5, 9]  # G, C and E, counted from G
    assert there == 255
    assert not around[at, 2 * 25 + 13 :].any()  # no pitch above it yet


def test_a_person_can_read_the_dump():
    ids = tokens.encode([[72, 67, 64, 48], [], [61, 72]])
    assert tokens.dump(ids) == "   0  C5 G4 E4 C3\n   1  (rest)\n   2  C5 C#4\n      (end)"


def test_a_piece_without_its_end_decodes_up_to_its_last_whole_frame():
    assert tokens.decode([START, 60, END_FRAME, 72, 67]) == [[60]]
    assert tokens.encode([[60]], stop=False).tolist() == [START, 60, END_FRAME]


@pytest.mark.parametrize("ids", [[START, 60, 62, END_FRAME], [START, 60, 60, END_FRAME], [START, 60, START]])
def test_what_spells_no_set_is_refused(ids):
    with pytest.raises(ValueError, match="token 2"):
        tokens.decode(ids)


@pytest.mark.parametrize("frame", [[-1], [128], [60, 200]])
def test_pitches_that_midi_does_not_have_are_refused(frame):
    with pytest.raises(ValueError, match="outside 0 to 127"):
        tokens.encode([[60], frame])
