"""The Transformer and the searches: shapes, masks, and that the quick ways give what the plain ways give."""

from itertools import product

import pytest
import torch
from torch import Tensor

from ml.translation.data import pad
from ml.translation.loss import cross_entropy
from ml.translation.model import ModelConfig, build
from ml.translation.search import beam_search, greedy, limits
from ml.translation.subwords import BOS, EOS, PAD, UNKNOWN
from ml.translation.transformer import Transformer
from storage.errors import Problem

VOCABULARY = 23
BANNED = [PAD, BOS, UNKNOWN]
CONFIG = ModelConfig(width=16, heads=4, encoder_layers=2, decoder_layers=2, inner=24)


@pytest.fixture(params=["transformer", "recurrent"])
def model(request: pytest.FixtureRequest) -> Transformer:
    torch.manual_seed(7)
    made = build(ModelConfig(**{**vars(CONFIG), "kind": request.param}), VOCABULARY).eval()
    with torch.no_grad():  # a fresh model is nearly indifferent; sharper choices make a stricter test
        for parameter in made.parameters():
            parameter.mul_(1.7)
    return made  # type: ignore[return-value]


@pytest.fixture
def source() -> Tensor:
    generator = torch.Generator().manual_seed(3)
    rows = [torch.randint(4, VOCABULARY, (n,), generator=generator).tolist() for n in (5, 2, 9, 1)]
    return pad([[*row, EOS] for row in rows])


def test_shapes(model: Transformer, source: Tensor) -> None:
    target = torch.full((4, 6), 5)
    hidden = model(source, target)
    assert hidden.shape == (4, 6, CONFIG.width)
    assert model.logits(hidden).shape == (4, 6, VOCABULARY)
    assert model.attention(source, target).shape == (4, 6, source.shape[1])


def test_padding_changes_nothing(model: Transformer, source: Tensor) -> None:
    target = pad([[BOS, 5, 6, 7], [BOS, 8]])
    both = model(source[:2], target)
    alone = model(source[1:2, :3], target[1:, :2])
    assert torch.allclose(both[1, :2], alone[0], atol=1e-5)


def test_no_position_sees_what_comes_after_it(model: Transformer, source: Tensor) -> None:
    target = torch.tensor([[BOS, 5, 6, 7, 8]])
    changed = target.clone()
    changed[0, 3:] = 9
    a, b = model(source[:1], target), model(source[:1], changed)
    assert torch.allclose(a[0, :3], b[0, :3], atol=1e-5)
    assert not torch.allclose(a[0, 3], b[0, 3], atol=1e-3)


def test_the_source_matters(model: Transformer, source: Tensor) -> None:
    target = torch.tensor([[BOS, 5]])
    assert not torch.allclose(model(source[:1], target), model(source[2:3], target), atol=1e-3)


def test_attention_is_a_distribution_over_what_is_not_padding(model: Transformer, source: Tensor) -> None:
    matrix = model.attention(source, torch.full((4, 3), 5))
    assert torch.allclose(matrix.sum(dim=-1), torch.ones(4, 3), atol=1e-5)
    assert matrix[:, 0][source == PAD].abs().max().item() == 0.0


def test_steps_with_a_cache_give_what_the_whole_gives(model: Transformer, source: Tensor) -> None:
    beam, length = 3, 7
    tokens = torch.randint(4, VOCABULARY, (4, beam, length), generator=torch.Generator().manual_seed(1))
    tokens[:, :, 0] = BOS
    repeated = source.repeat_interleave(beam, dim=0)
    whole = model.logits(model(repeated, tokens.flatten(0, 1))).view(4, beam, length, VOCABULARY)
    state = model.start(source, beam)
    steps = torch.stack([model.step(tokens[:, :, t], state) for t in range(length)], dim=2)
    assert torch.allclose(steps, whole, atol=1e-4)


def test_a_state_follows_its_hypotheses(model: Transformer, source: Tensor) -> None:
    """Reordered and thinned out, the cache gives what a fresh one for the same hypotheses gives."""
    first = torch.tensor([[[BOS, 5], [BOS, 6]]] * 4)
    state = model.start(source, 2)
    for t in range(2):
        model.step(first[:, :, t], state)
    state.reorder(torch.tensor([1, 0, 3, 3, 4, 5, 7, 6]))
    state.keep(torch.tensor([0, 3]))
    now = model.step(torch.tensor([[8, 9], [8, 9]]), state)
    wanted = torch.tensor([[BOS, 6, 8], [BOS, 5, 9]])
    for row, sentence in enumerate((0, 3)):
        plain = model.logits(model(source[[sentence, sentence]], wanted))[:, -1]
        assert torch.allclose(now[row], plain, atol=1e-4)


def test_greedy_gives_what_uncached_greedy_gives(model: Transformer, source: Tensor) -> None:
    most = [12] * 4
    for row, hypothesis in enumerate(greedy(model, source, most, BANNED, length_penalty=1.0)):
        tokens = [BOS]
        while len(tokens) <= most[row]:
            logits = model.logits(model(source[row : row + 1], torch.tensor([tokens])))[0, -1]
            logits[BANNED] = -torch.inf
            tokens.append(int(logits.argmax()))
            if tokens[-1] == EOS:
                break
        assert hypothesis.tokens == [token for token in tokens[1:] if token != EOS]


def test_a_beam_of_one_is_greedy(model: Transformer, source: Tensor) -> None:
    most = limits(source, PAD)
    one = beam_search(model, source, most, BANNED, beam=1, length_penalty=0.7)
    plain = greedy(model, source, most, BANNED, length_penalty=0.7)
    assert [found[0].tokens for found in one] == [hypothesis.tokens for hypothesis in plain]
    assert [found[0].score for found in one] == pytest.approx([hypothesis.score for hypothesis in plain], abs=1e-4)


@pytest.mark.parametrize("beam", [1, 4])
def test_a_sentence_is_translated_alike_alone_and_in_company(model: Transformer, source: Tensor, beam: int) -> None:
    most = limits(source, PAD)
    together = beam_search(model, source, most, BANNED, beam=beam, length_penalty=1.0)
    for row in range(4):
        length = int((source[row] != PAD).sum())
        alone = beam_search(
            model, source[row : row + 1, :length], most[row : row + 1], BANNED, beam=beam, length_penalty=1.0
        )[0]
        assert [found.tokens for found in alone] == [found.tokens for found in together[row]]


def test_scores_are_the_model_s_own_and_in_order(model: Transformer, source: Tensor) -> None:
    penalty = 0.6
    for row, found in enumerate(beam_search(model, source, [6] * 4, BANNED, beam=5, length_penalty=penalty)):
        assert len(found) == 5
        assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)
        assert len({tuple(h.tokens) for h in found}) == 5
        for hypothesis in found:
            tokens = [*hypothesis.tokens, EOS] if len(hypothesis.tokens) < 6 else hypothesis.tokens
            score = _probability(model, source[row], tokens) / len(tokens) ** penalty
            assert hypothesis.score == pytest.approx(score, abs=1e-4)


def test_a_wide_beam_finds_the_best_of_all(model: Transformer, source: Tensor) -> None:
    """With room for every prefix the search is exhaustive: compare with trying all of them."""
    banned = [number for number in range(VOCABULARY) if number not in (EOS, 7, 8, 9)]
    found = beam_search(model, source[:1], [3], banned, beam=27, length_penalty=0.0)[0][0]
    texts = [list(text) for n in range(4) for text in product((7, 8, 9), repeat=n)]
    scores = [_probability(model, source[0], [*text, EOS] if len(text) < 3 else text, banned) for text in texts]
    assert found.tokens == texts[max(range(len(texts)), key=scores.__getitem__)]
    assert found.score == pytest.approx(max(scores), abs=1e-4)


def test_an_unknown_kind_names_the_known_ones() -> None:
    with pytest.raises(Problem, match=r"'mamba'.*transformer"):
        build(ModelConfig(kind="mamba"), VOCABULARY)


@pytest.mark.parametrize(
    ("kind", "change", "says"),
    [
        ("transformer", {"width": 30}, "width of 30 cannot be shared by 4 heads"),
        ("recurrent", {"width": 33}, "width of 33 cannot be shared by 2 ways"),
        ("transformer", {"heads": 0}, "heads cannot be 0"),
        ("recurrent", {"decoder_layers": 0}, "decoder_layers cannot be 0"),
        ("transformer", {"dropout": 1.0}, "dropout cannot be 1.0"),
        ("transformer", {"label_smoothing": -0.1}, "label_smoothing cannot be -0.1"),
    ],
)
def test_a_model_that_cannot_be_is_refused(kind: str, change: dict[str, float], says: str) -> None:
    with pytest.raises(Problem, match=says):
        build(ModelConfig(**{**vars(CONFIG), "kind": kind, **change}), VOCABULARY)


def _probability(model: Transformer, source: Tensor, tokens: list[int], banned: list[int] = BANNED) -> float:
    """The log probability of numbers after the source, computed without a cache."""
    logits = model.logits(model(source[None], torch.tensor([[BOS, *tokens[:-1]]])))[0]
    logits[:, banned] = -torch.inf
    return float(logits.log_softmax(dim=-1).gather(1, torch.tensor(tokens)[:, None]).sum().detach())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_in_pieces_is_torch_s_own(smoothing: float) -> None:
    generator = torch.Generator().manual_seed(5)
    wanted = torch.randint(1, 40, (7, 60), generator=generator)  # 420 rows are several pieces
    wanted[3:, 20:] = PAD
    leaves = [torch.randn(7, 60, 16, generator=generator), torch.randn(40, 16, generator=generator)]
    results = []
    for how in ("ours", "torch"):
        hidden, weights = (leaf.clone().requires_grad_() for leaf in leaves)
        if how == "ours":
            loss = cross_entropy(hidden, weights, wanted, smoothing)
        else:
            logits = torch.nn.functional.linear(hidden[wanted != PAD], weights)
            loss = torch.nn.functional.cross_entropy(logits, wanted[wanted != PAD], label_smoothing=smoothing)
        (3 * loss).backward()
        results.append((loss.detach(), hidden.grad, weights.grad))
    for ours, theirs in zip(*results, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        assert cross_entropy(*leaves, wanted, smoothing).item() == pytest.approx(results[1][0].item(), rel=1e-5)
