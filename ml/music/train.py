"""Train a model that writes and judges chorales: `python -m ml.music.train --version URI --out RUN --preset smoke`.

Leaves a run folder that is the model: `ml.music.compose.load(RUN)` needs nothing else.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ml.datasets.read import Version
from ml.music import pictures
from ml.music.baseline import MarkovBaseline, in_all_keys
from ml.music.compose import FAMILY, Composer, frame_nll
from ml.music.data import Crop, Piece, Rows, Surroundings, crops, cut, rows
from ml.music.evaluate import SEEN, SPLIT, measure, seen_by
from ml.music.model import Batch, ModelConfig, MusicTransformer, negative_log_likelihood
from ml.music.tokens import END_FRAME
from ml.training import report
from ml.training.config import TrainConfig, command, parse, settle
from ml.training.evaluation import write_scores
from ml.training.files import code, write_json
from ml.training.trainer import fit, prepare
from storage.errors import Problem

# Batches are counted in crops. With a few hundred pieces the longer presets need the higher dropout: at 0.2 the smoke
# model is past its best after 750 steps.
PRESETS: dict[str, tuple[ModelConfig, TrainConfig]] = {
    "smoke": (
        ModelConfig(),
        TrainConfig(preset="smoke", steps=500, batch=8, learning_rate=1.5e-3, warmup=40, weight_decay=0.1,
                    evaluate_every=100, threads=1),
    ),
    "cpu": (
        ModelConfig(dropout=0.3),
        TrainConfig(preset="cpu", steps=3_000, batch=8, learning_rate=1.5e-3, warmup=100, weight_decay=0.1,
                    evaluate_every=250, patience=5, threads=2),
    ),
    "gpu": (
        ModelConfig(width=384, layers=6, heads=8, context=768, dropout=0.4),
        TrainConfig(preset="gpu", steps=8_000, batch=32, learning_rate=5e-4, warmup=300, weight_decay=0.1,
                    evaluate_every=250, patience=8, threads=4),
    ),
}  # fmt: skip


class MusicTask:
    """What the trainer asks for: batches of crops, their loss, and the score of the valid split."""

    def __init__(self, network: MusicTransformer, train: Sequence[Piece], valid: Sequence[Piece], batch: int) -> None:
        self.model: torch.nn.Module = network
        self._network, self._train, self._valid, self._batch = network, train, valid, batch

    def plan(self, epoch: int, seed: int) -> list[list[Crop]]:
        """One pass over the train split: random crops, transposed."""
        config = self._network.config
        return crops(self._train, config.context, self._batch, config.transpose, (seed, epoch))

    def batch(self, item: list[Crop]) -> Batch:
        return cut(self._train, self._network.config.context, item)

    def loss(self, batch: Batch) -> Tensor:
        """Nats per frame of a batch; here the end of a piece is learnt too."""
        frames = (batch.target == END_FRAME).sum().clamp(min=1)
        return negative_log_likelihood(self._network(batch), batch, stop=True).sum() / frames

    def valid_loss(self) -> float:
        """Nats per frame of the valid split, as `evaluate` counts them."""
        scores = frame_nll(self._network, self._valid)
        return float(sum(piece.sum() for piece in scores) / sum(map(len, scores)))

    def size(self, batch: Batch) -> int:
        """Frames in a batch."""
        return int((batch.target == END_FRAME).sum())


def train(uri: str, run: Path, model: ModelConfig, config: TrainConfig, resume: bool = False) -> None:
    """Train on a frozen version and leave the run folder: weights, model.json, scores on valid, report, model card.

    Raises Problem where the version has nothing to learn from or to be judged on, or a setting makes no sense.
    """
    version = Version(uri)
    learnt, valid = rows(version, "train"), rows(version, SPLIT)
    if learnt.grid != valid.grid:
        raise Problem(
            f"The version {version.id} has train on the {learnt.grid} grid and {SPLIT} on the {valid.grid} grid",
            "Freeze a version on one grid",
        )
    prepare(config)
    surroundings = Surroundings(model.history, model.reach)
    try:
        network = MusicTransformer(model, surroundings.width)
    except (ValueError, ZeroDivisionError, RuntimeError) as error:
        raise Problem(f"no network can be built: {error}", "Change the setting with --set") from error
    settings = {"model": dataclasses.asdict(model), "train": dataclasses.asdict(config)}
    settle(run, {"family": FAMILY, "dataset": version.id, **settings}, resume)
    write_json(run / SEEN, seen_by(learnt.names, learnt.fingerprints, learnt.frames, learnt.grid))
    about = {
        "family": FAMILY,
        "model": dataclasses.asdict(model),
        "grid": learnt.grid,
        "parameters": sum(p.numel() for p in network.parameters()),
        "dataset": version.describe(),
        "code": code(),
    }
    write_json(run / "model.json", about)
    task = MusicTask(network, _read(learnt, surroundings), _read(valid, surroundings), config.batch)
    if not fit(task, config, run, resume):
        return

    composer = Composer(network, about, version.manifest["name"], run)
    scores = composer.nll(valid.frames)
    baseline = MarkovBaseline(learnt.frames)
    beaten = [baseline.nll(piece) for piece in valid.frames]
    write_scores(run, FAMILY, version.id, SPLIT, measure(valid.names, scores, beaten))
    transposed = MarkovBaseline(in_all_keys(learnt.frames, model.transpose))
    stronger = [transposed.nll(piece) for piece in valid.frames]
    title = f"Music: {len(learnt.names)} pieces of {version.manifest['name']} on the {learnt.grid} grid"
    report.write(run, title, pictures.sections(composer, valid, scores, beaten, stronger))
    report.card(
        run,
        title,
        "Writes music like that of its data, goes on from a tune, harmonises a melody, and says how likely a piece is.",
        [
            f"Knows pitches at the steps of a {learnt.grid} grid: not what is held or struck again, nor how loud.",
            "Carries its training pieces, so that it can refuse to be tested on them; their licences are above.",
            "Its likelihoods are in nats per frame given the length of a piece; the length itself is not scored.",
        ],
    )


def _read(pieces: Rows, surroundings: Surroundings) -> list[Piece]:
    return [Piece.of(name, frames, surroundings) for name, frames in zip(pieces.names, pieces.frames, strict=True)]


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    request = parse(__doc__ or "", PRESETS, argv)
    train(request.version, request.out, request.model, request.train, request.resume)


if __name__ == "__main__":
    command(main)
