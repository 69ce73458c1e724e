"""Train a translation model from a frozen version.

    python -m ml.translation.train --version FOLDER|s3://… --out RUN --preset smoke [--set key=value …] [--resume]

The run folder then holds all that is needed to translate, and what a person wants to see about the run.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from torch import Tensor, nn

from ml.datasets.read import Version
from ml.training import report
from ml.training.config import Request, command, parse, settle
from ml.training.evaluation import write_scores
from ml.training.files import code, write, write_json
from ml.training.trainer import fit, load_weights, move, prepare
from ml.translation import subwords as vocabulary
from ml.translation.data import Encoded, Pairs, encode, read
from ml.translation.evaluate import Scored, by_length, measure, sentence_scores, translate_and_score
from ml.translation.loss import cross_entropy
from ml.translation.model import PRESETS, ModelConfig, Translation, build
from ml.translation.subwords import PAD, Subwords
from ml.translation.translate import Translator
from storage.errors import Problem

if TYPE_CHECKING:
    from matplotlib.figure import Figure


WAYS = 8  # of cutting the texts, when they are cut by chance
Item = tuple[int, list[int]]  # a way of cutting the texts, and pairs


class TranslationTask:
    """What the trainer asks: batches of pairs, the smoothed loss to train on, the plain loss to judge by.

    `train` holds the same pairs cut in several ways, which take turns; or in one.
    """

    def __init__(
        self, model: nn.Module, train: Sequence[Encoded], valid: Encoded, tokens: int, smoothing: float
    ) -> None:
        self.model = model
        self._train, self._valid, self._tokens, self._smoothing = train, valid, tokens, smoothing

    def plan(self, epoch: int, seed: int) -> list[Item]:
        cut = epoch % len(self._train)
        return [(cut, rows) for rows in self._train[cut].plan(self._tokens, np.random.default_rng((seed, epoch)))]

    def batch(self, item: Item) -> tuple[Tensor, Tensor]:
        cut, rows = item
        return self._train[cut].batch(rows)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return self._loss(batch, self._smoothing)

    def valid_loss(self) -> float:
        """Negative log likelihood of a target number, in nats, the mean over the split."""
        device, total, count = next(self.model.parameters()).device, 0.0, 0
        for rows in self._valid.plan(self._tokens):
            batch = self._valid.batch(rows)
            total += self._loss(move(batch, device), 0.0).item() * self.size(batch)
            count += self.size(batch)
        return total / count

    def size(self, batch: tuple[Tensor, Tensor]) -> int:
        """Target numbers to predict in a batch."""
        return int((batch[1][:, 1:] != PAD).sum())

    def _loss(self, batch: tuple[Tensor, Tensor], smoothing: float) -> Tensor:
        source, target = batch
        model = cast(Translation, self.model)
        return cross_entropy(self.model(source, target[:, :-1]), model.output(), target[:, 1:], smoothing)


def train(request: Request[ModelConfig]) -> None:
    """Train, evaluate on valid, and write the run folder."""
    run, config = request.out, request.model
    device = prepare(request.train)
    version = Version(request.version)
    pairs, valid_pairs = read(version, "train"), read(version, "valid")
    if not pairs.units or not valid_pairs.units:
        raise Problem(
            f"The version {version.id} has no pair with text on both sides", "Freeze a version with more data"
        )
    settings = {"family": "translation", "dataset": version.id, "model": asdict(config), "train": asdict(request.train)}
    settle(run, settings, request.resume)

    subwords = _vocabulary(run, pairs, config.vocabulary)
    longest, seed = config.longest, request.train.seed
    encoded = [
        encode(pairs, subwords, longest, config.sampling, 1000 * seed + 2 * way)
        for way in range(WAYS if config.sampling else 1)
    ]
    valid = encode(valid_pairs, subwords, longest)
    model = build(config, subwords.size)
    languages = sorted(set(version.table("train", ["source_language"]).column(0).to_pylist()))
    about = {
        "family": "translation", "model": asdict(config), "vocabulary": subwords.size,
        "languages": {"source": languages, "target": subwords.languages},
        "parameters": sum(p.numel() for p in model.parameters()), "dataset": version.describe(), "code": code(),
        "left_out": len(pairs.units) - len(encoded[0].sources),
    }  # fmt: skip
    write_json(run / "model.json", about)
    task = TranslationTask(model, encoded, valid, request.train.batch, config.label_smoothing)
    if not fit(task, request.train, run, request.resume):
        return

    load_weights(model, run)
    translator = Translator(model.to(device), subwords, config)
    scored = translate_and_score(translator, valid_pairs)
    write_scores(run, "translation", version.id, "valid", measure(scored, request.train.seed))
    title = f"Translation {'/'.join(languages)} to {'/'.join(subwords.languages)}"
    report.write(run, title, _sections(translator, scored))
    report.card(
        run, title,
        "Translates text like that of its data: one line in, one line out. It is not meant for decisions that matter.",
        [
            "Text of another kind than the data's comes out badly, and nothing in the output says so.",
            f"Lines of more than {longest} subwords are translated in parts that do not know of each other.",
            "Names, numbers and placeholders can come out changed.",
        ],
    )  # fmt: skip


def _vocabulary(run: Path, pairs: Pairs, size: int) -> Subwords:
    texts = (text for both in zip(pairs.sources, pairs.targets, strict=True) for text in both)
    return vocabulary.train(texts, sorted(set(pairs.languages)), size, run / "spm.model")


def _sections(translator: Translator, scored: Scored, shown: int = 10) -> list[tuple[str, str]]:
    """The report's own sections: an attention matrix; the best and the worst lines by number, without their text."""
    pairs, scores = scored.pairs, sentence_scores(scored)
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    middling = [i for i in order if 4 <= len(pairs.sources[i].split()) <= 10] or order
    chosen = middling[len(middling) // 4]
    rows = [(name, i + 1, pairs.units[i], scores[i], len(pairs.sources[i].split()))
            for name, part in (("best", order[:shown]), ("worst", order[: -shown - 1 : -1])) for i in part]  # fmt: skip
    return [
        ("Attention", attention_figure(translator, pairs.sources[chosen], pairs.languages[chosen])),
        (
            "Scores by length",
            report.table(
                ["Source words", "Rows", "BLEU", "chrF"], by_length(scored), "In brackets the 95 % bootstrap interval"
            ),
        ),
        ("Best and worst", report.table(["", "Line", "Pair", "chrF", "Words"], rows, "Lines of the valid split")),
    ]


def draw_attention(translator: Translator, source: str, to: str | None = None) -> tuple["Figure", str]:
    """The attention matrix of one sentence, source across and translation down, and what it shows in words."""
    across, down, matrix = translator.attention(source, to=to)
    fig, ax = report.axes(max(4.0, 0.45 * len(across)), max(3.0, 0.4 * len(down)))
    ax.imshow(matrix, cmap="Greys", vmin=0, vmax=1, aspect="auto")
    ax.set_xticks(range(len(across)), across, rotation=60, ha="right")
    ax.set_yticks(range(len(down)), down)
    ax.set_xlabel("source")
    ax.set_ylabel("translation")
    peaks = ", ".join(f"{down[t]} at {across[int(matrix[t].argmax())]}" for t in range(len(down)))
    return fig, f"Attention from translation to source. Each piece looks most: {peaks}"


def save_attention(translator: Translator, source: str, path: Path, to: str | None = None) -> str:
    """Write the attention matrix of one sentence to `path` as PNG and beside it as JSON; gives it in words.

    The JSON is {"source": pieces, "target": pieces, "weights": a row for each target piece, which adds up to 1}.
    """
    across, down, matrix = translator.attention(source, to=to)
    weights = [[round(float(weight), 6) for weight in row] for row in matrix]
    write_json(path.with_suffix(".json"), {"source": across, "target": down, "weights": weights})
    fig, words = draw_attention(translator, source, to)
    write(path, lambda temporary: fig.savefig(temporary, format="png", bbox_inches="tight"))
    return words


def attention_figure(translator: Translator, source: str, to: str) -> str:
    """The attention matrix of one sentence as HTML."""
    fig, words = draw_attention(translator, source, to)
    return report.figure(fig, words, "▁ is a space")


def main(argv: Sequence[str] | None = None) -> None:
    train(parse(__doc__ or "", PRESETS, argv))


if __name__ == "__main__":
    command(main)
