"""The network gives every set of pitches a probability, whatever stands beside it and however it is read."""

import itertools

import numpy as np
import pytest
import torch

from ml.music.compose import frame_nll
from ml.music.data import Piece, Surroundings, collate, crop, crops, cut, windows
from ml.music.model import Batch, ModelConfig, MusicTransformer, log_probabilities, negative_log_likelihood
from ml.music.tokens import END_FRAME, PITCHES, STOP, describe, encode

CONFIG = ModelConfig(width=32, layers=2, heads=2, context=48, history=2, reach=12, dropout=0.1)
AROUND = Surroundings(CONFIG.history, CONFIG.reach)
NO_TARGET = np.zeros(0, dtype=np.int64)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Tests run side by side: more threads would only wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture
def network() -> MusicTransformer:
    """A network whose numbers are random and large enough for its answers to differ much."""
    torch.manual_seed(3)
    network = MusicTransformer(CONFIG, AROUND.width)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return network.eval()


def music(seed: int, steps: int) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [sorted(set(rng.integers(40, 90, rng.integers(0, 6)).tolist())) for _ in range(steps)]


def reading(ids: list[int]) -> Batch:
    read = describe(ids)
    return collate([(read, AROUND.of(read), NO_TARGET)])


def test_the_probabilities_of_all_frames_sum_to_one(network):
    # A frame that has got down to pitch 6 goes on with any of the 2**6 sets of the pitches below it.
    start = [*encode(music(1, 5), stop=False).tolist(), 70, 6]
    total = 0.0
    for size in range(7):
        for rest in itertools.combinations(range(5, -1, -1), size):
            ids = [*start, *rest, END_FRAME]
            batch = reading(ids)
            with torch.inference_mode():
                log_p = log_probabilities(network(batch), batch.above, stop=False)[0]
            steps = range(len(start) - 1, len(ids) - 1)
            total += float(torch.stack([log_p[i, ids[i + 1]] for i in steps]).double().sum().exp())
    assert total == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("stop", [True, False])
def test_the_probabilities_of_what_may_follow_sum_to_one_and_the_rest_have_none(network, stop):
    batch = reading(encode(music(2, 8)).tolist())
    with torch.inference_mode():
        p = log_probabilities(network(batch), batch.above, stop).exp()[0]
    assert torch.allclose(p.sum(-1), torch.ones(len(p)), atol=1e-5)
    for row, above in zip(p, batch.above[0].tolist(), strict=True):
        assert float(row[: above if above >= 0 else PITCHES].sum() + row[END_FRAME]) == pytest.approx(
            1 - float(row[STOP]), abs=1e-5
        )
        assert (float(row[STOP]) > 0) == (stop and above < 0)


@pytest.mark.parametrize("parts", [[1] * 40, [10, 1, 1, 5, 20, 3], [40]])
def test_reading_with_a_cache_gives_the_same_logits(network, parts):
    read = describe(encode(music(4, 20)))[:40]
    around = AROUND.of(describe(encode(music(4, 20))))[:40]
    with torch.inference_mode():
        whole = network(collate([(read, around, NO_TARGET)]))
        cache: list[tuple[torch.Tensor, torch.Tensor]] = []
        ends = np.cumsum(parts).tolist()
        pieces = [
            network(collate([(read[end - n : end], around[end - n : end], NO_TARGET)]), cache)
            for n, end in zip(parts, ends, strict=True)
        ]
    assert torch.allclose(torch.cat(pieces, dim=1), whole, atol=1e-4)
    assert cache[0][0].shape == (1, CONFIG.heads, 40, CONFIG.width // CONFIG.heads)


def test_a_score_does_not_depend_on_the_batch_or_its_padding(network):
    pieces = [Piece.of(str(n), music(n, steps), AROUND) for n, steps in enumerate((1, 30, 4, 17, 3, 60))]
    together = frame_nll(network, pieces)
    for piece, scores in zip(pieces, together, strict=True):
        assert scores == pytest.approx(frame_nll(network, [piece])[0], abs=1e-4)
        assert len(scores) == len(piece.frames)


def test_the_future_does_not_change_a_score(network):
    one, other = music(7, 12), music(8, 12)
    scores = frame_nll(network, [Piece.of("", music(6, 3) + end, AROUND) for end in (one, other)])
    assert scores[0][:3] == pytest.approx(scores[1][:3], abs=1e-5)
    assert scores[0][3] != pytest.approx(scores[1][3], abs=1e-3)


def test_a_frame_costs_the_sum_of_its_tokens_the_first_and_rests_included(network):
    piece = Piece.of("", [[72, 60], [], [71]], AROUND)
    batch = collate([crop(piece, 0, len(piece.read) - 2)])
    with torch.inference_mode():
        nats = negative_log_likelihood(network(batch), batch, stop=False)[0].tolist()
    # START 72 60 END | END | 71 END
    expected = [sum(nats[:3]), nats[3], sum(nats[4:])]
    assert frame_nll(network, [piece])[0] == pytest.approx(expected, abs=1e-4)


def test_windows_score_every_token_of_a_long_piece_once_with_half_a_context_before_it():
    piece = Piece.of("", music(9, 100), AROUND)
    scored: list[int] = []
    for (read, _, target), done in windows(piece, CONFIG.context):
        assert len(read) <= CONFIG.context
        assert done == 0 or done >= CONFIG.context // 2
        scored += target[done:].tolist()
    assert scored == piece.read.ids[1:-1].tolist()


def test_pitches_at_the_ends_of_midi_and_full_chords_have_a_probability(network):
    scores = frame_nll(network, [Piece.of("", [[0, 127], list(range(128)), [0], []], AROUND)])[0]
    assert np.isfinite(scores).all()
    assert (scores > 0).all()
    assert (scores < 1e6).all()  # no token was one that may never follow


def test_crops_cover_what_follows_them_and_stay_within_the_range_of_the_pieces():
    pieces = [Piece.of(str(n), [[60 + n, 48], [62 + n]] * 30, AROUND) for n in range(5)]
    moved = set()
    for epoch in range(8):
        for batch in (cut(pieces, 32, group) for group in crops(pieces, 32, 4, 6, (1, epoch))):
            assert batch.ids.shape[1] <= 32
            real = batch.ids[:, 1:][batch.target[:, 1:] >= 0]
            assert (real == batch.target[:, :-1][batch.target[:, 1:] >= 0]).all()
            sounding = batch.ids[batch.ids < PITCHES]
            assert int(sounding.min()) >= 48
            assert int(sounding.max()) <= 66
            moved |= set(batch.ids[batch.ids < PITCHES].tolist())
    assert moved - {pitch for piece in pieces for frame in piece.frames for pitch in frame}  # some were transposed


def test_batches_depend_on_seed_and_epoch_alone():
    pieces = [Piece.of(str(n), music(n, 40), AROUND) for n in range(6)]

    def ids(*seed: int) -> list[list[int]]:
        groups = crops(pieces, 32, 2, 3, seed)
        return [row for group in groups for row in cut(pieces, 32, group).ids.tolist()]

    assert ids(1, 0) == ids(1, 0)
    assert ids(1, 0) != ids(1, 1)
    assert ids(1, 0) != ids(2, 0)


def test_a_width_that_the_heads_cannot_share_is_refused():
    with pytest.raises(ValueError, match="width 30"):
        MusicTransformer(ModelConfig(width=30, heads=4), AROUND.width)
