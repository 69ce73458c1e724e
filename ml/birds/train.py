"""Train a model that names birds: `python -m ml.birds.train --version URI --out RUN --preset smoke`.

Leaves a run folder that is the model: `ml.birds.identify.load(RUN)` needs nothing else.
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ml.birds import pictures
from ml.birds.data import Batch, Clips, Draw, shuffled, vocabulary
from ml.birds.evaluate import SPLIT, Heard, hear, measure, probabilities
from ml.birds.features import mix, shift_and_gain
from ml.birds.identify import NONE, Identifier
from ml.birds.metrics import Truth, best_threshold
from ml.birds.model import BirdNetwork, ModelConfig, binary_cross_entropy
from ml.datasets.read import Version
from ml.training import report
from ml.training.config import TrainConfig, command, parse, settle
from ml.training.evaluation import write_scores
from ml.training.files import code, write_json
from ml.training.trainer import fit, prepare
from storage.errors import Problem

FAMILY = "birds"
PRESETS: dict[str, tuple[ModelConfig, TrainConfig]] = {
    "smoke": (
        ModelConfig(mix=0.25),  # a short run learns faster from clips that are not made harder
        TrainConfig(preset="smoke", steps=400, batch=16, learning_rate=3e-3, warmup=30, evaluate_every=100, threads=1),
    ),
    "cpu": (
        ModelConfig(channels=24),
        TrainConfig(
            preset="cpu",
            steps=4_000,
            batch=32,
            learning_rate=2e-3,
            warmup=200,
            evaluate_every=200,
            patience=8,
            threads=2,
        ),
    ),
    "gpu": (
        ModelConfig(channels=64, dropout=0.2),
        TrainConfig(
            preset="gpu",
            steps=12_000,
            batch=128,
            learning_rate=1e-3,
            warmup=500,
            evaluate_every=250,
            patience=12,
            threads=4,
        ),
    ),
}


class BirdTask:
    """What the trainer asks for: batches of waveforms, their loss, and the loss on the valid split."""

    def __init__(self, network: BirdNetwork, train: Clips, valid: Clips, labels: Sequence[str], batch: int) -> None:
        self.model: torch.nn.Module = network
        self._network, self._train, self._valid, self._labels, self._batch = network, train, valid, labels, batch
        self._truth, self._valid_truth = (
            torch.from_numpy(c.targets(labels).astype(np.float32)) for c in (train, valid)
        )

    def plan(self, epoch: int, seed: int) -> list[Draw]:
        """One pass over the train split, in an order that epoch and seed fix."""
        fixed = int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0] >> 1)
        return shuffled(len(self._train), self._batch, fixed)

    def batch(self, item: Draw) -> Batch:
        wave = self._train.waves(item.rows, self._network.config.window, item.starts)
        return Batch(wave, self._truth[item.rows], item.seed)

    def loss(self, batch: Batch) -> Tensor:
        """Cross-entropy of a batch whose clips are turned round in time, made louder or softer, mixed and masked."""
        config = self._network.config
        generator = torch.Generator().manual_seed(batch.seed)
        wave = shift_and_gain(batch.wave, generator, config.gain_db)
        wave, target = mix(wave, batch.target, generator, config.mix)
        clip, _ = self._network(wave, seed=batch.seed)
        return binary_cross_entropy(clip, target)

    def valid_loss(self) -> float:
        """Cross-entropy of the valid split, nothing added."""
        device, total = next(self._network.parameters()).device, 0.0
        for rows, wave in self._valid.batches(self._batch, self._network.config.window):
            clip, _ = self._network(wave.to(device))
            total += binary_cross_entropy(clip.cpu(), self._valid_truth[rows]).item() * len(rows)
        return total / len(self._valid)

    def size(self, batch: Batch) -> int:
        """Clips in a batch."""
        return len(batch.wave)


def train(uri: str, run: Path, model: ModelConfig, config: TrainConfig, resume: bool = False) -> None:
    """Train on a frozen version and leave the run folder: weights, model.json, scores on valid, report, model card.

    Raises Problem where the version has nothing to learn from or to be judged on, or a setting makes no sense.
    """
    version = Version(uri)
    clips, valid = Clips(version, "train", model.sample_rate), Clips(version, SPLIT, model.sample_rate)
    labels = vocabulary(clips)
    if not valid.targets(labels).any():
        raise Problem(
            f"no {SPLIT} clip of dataset version {version.id} holds a species that training clips hold",
            "Freeze a version whose splits share species",
        )
    prepare(config)
    try:
        network = BirdNetwork(model, len(labels))
    except ValueError as error:
        raise Problem(f"no network can be built: {error}", "Change the setting with --set") from error
    _start_at_prior(network, clips.targets(labels))
    settings = {"model": dataclasses.asdict(model), "train": dataclasses.asdict(config)}
    settle(run, {"family": FAMILY, "dataset": version.id, **settings}, resume)
    if not fit(BirdTask(network, clips, valid, labels, config.batch), config, run, resume):
        return

    commonest = _commonest(clips)
    about: dict[str, Any] = {
        "family": FAMILY,
        "model": dataclasses.asdict(model),
        "labels": labels,
        "threshold": 0.5,
        "commonest": commonest,
        "dataset": version.describe(),
        "code": code(),
    }
    identifier = Identifier(network, about, version.manifest["name"])
    about["threshold"] = identifier.threshold = best_threshold(valid.targets(labels), probabilities(identifier, valid))
    write_json(run / "model.json", about)
    heard = hear(identifier, valid)
    write_scores(run, FAMILY, version.id, SPLIT, measure(heard, commonest))
    _report(run, identifier, clips, valid, heard)


def _commonest(clips: Clips) -> str:
    """The answer that is right most often: a species, or "" where most clips hold none."""
    return Counter(name for names in clips.species for name in names or (NONE,)).most_common(1)[0][0]


def _start_at_prior(network: BirdNetwork, truth: Truth) -> None:
    """Let the untrained network say each species' prevalence, so that the first steps do not go into learning that."""
    prior = truth.mean(axis=0).clip(0.01, 0.99)
    with torch.no_grad():
        network.pool.classifier.bias.copy_(torch.from_numpy(np.log(prior / (1 - prior))))


def _report(run: Path, model: Identifier, clips: Clips, valid: Clips, heard: Heard) -> None:
    """report.html and card.md."""
    names = ", ".join(model.labels)
    title = f"Birds: {len(model.labels)} species from {model.about['dataset']['name']}"
    report.write(run, title, pictures.sections(model, valid, heard))
    report.card(
        run,
        title,
        f"Names the species heard in a recording, of these: {names}.",
        [
            f"Knows {len(model.labels)} species, learnt from {len(clips)} clips, and may take another bird for one of "
            "them.",
            f"Listens at {model.network.config.sample_rate} Hz in windows of {model.network.config.window_s:g} s.",
            f"Names a species from a probability of {model.threshold:.2f} on, which was chosen on the split {SPLIT}.",
        ],
    )


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    request = parse(__doc__ or "", PRESETS, argv)
    train(request.version, request.out, request.model, request.train, request.resume)


if __name__ == "__main__":
    command(main)
