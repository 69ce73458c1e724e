"""Name the birds in a recording: a finished model as an object that works from its folder alone.

A recording is decoded as a stream and heard in windows of the length the model was trained on, so its length does not
matter to memory. A window in which several species are surer than the model's threshold names all of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ml.birds.data import fit_window
from ml.birds.metrics import Numbers
from ml.birds.model import BirdNetwork, ModelConfig
from ml.training.files import read_json
from ml.training.trainer import load_weights
from storage.errors import Problem
from storage.media import audio

NONE = ""  # the name of no species
BATCH = 16  # windows heard at once
SHORTEST_S = 1.0  # a rest shorter than this is heard as part of the window before it


@dataclass(frozen=True)
class Window:
    """A stretch of a recording and the probability of each of the model's labels in it (labels,)."""

    start_s: float
    end_s: float
    scores: Numbers


class Identifier:
    """A trained network with its labels and threshold; `about` is the folder's model.json."""

    def __init__(self, network: BirdNetwork, about: dict[str, Any], name: str) -> None:
        self.network = network
        self.about = about
        self.name = name
        self.labels: list[str] = about["labels"]
        self.threshold: float = about["threshold"]

    @property
    def simulated(self) -> bool:
        """Whether the model was trained on simulated recordings."""
        return bool(self.about["dataset"]["simulated"])

    def identify(self, path: Path) -> dict[str, Any]:
        """The answer of `lyrebird identify` for one file:
        {"file", "top": {"species", "score"}, "predictions": [{"start_s", "end_s", "species", "score"}], "model"}.

        A species is a scientific name, or "" where the model hears none of those it knows. Predictions cover the whole
        recording; neighbouring windows with the same species are one. The score is the species' highest probability,
        for "" the probability that even the likeliest species is not there. Raises Problem naming a file that cannot be
        read.
        """
        windows = list(self.windows(path))
        top = np.max([window.scores for window in windows], axis=0)
        species, score = self.name_of(top)
        return {
            "file": str(path),
            "top": {"species": species, "score": round(score, 4)},
            "predictions": timeline(windows, self.labels, self.threshold),
            "model": self.name,
        }

    def name_of(self, scores: Numbers) -> tuple[str, float]:
        """The surest species of label probabilities (labels,); below the threshold "" and the probability of none."""
        best = int(scores.argmax())
        score = float(scores[best])
        return (self.labels[best], score) if score >= self.threshold else (NONE, 1.0 - score)

    def windows(self, path: Path) -> Iterator[Window]:
        """A recording's windows in order, end to end. Raises Problem where the file is missing or damaged."""
        rate, held = self.network.config.sample_rate, []
        for start, pcm in self._cut(path):
            held.append((start, pcm))
            if len(held) == BATCH:
                yield from self._hear(held, rate)
                held = []
        yield from self._hear(held, rate)

    def scores(self, clips: list[NDArray[np.int16]]) -> Numbers:
        """Label probabilities of clips of any length, each repeated to at least a window: (clips, labels)."""
        size = self.network.config.window
        clips = [pcm if len(pcm) > size else fit_window(pcm, size) for pcm in clips]
        out = np.zeros((len(clips), len(self.labels)))
        device = next(self.network.parameters()).device
        for length in sorted({len(pcm) for pcm in clips}):
            rows = [row for row, pcm in enumerate(clips) if len(pcm) == length]
            wave = torch.from_numpy(np.stack([audio.to_float32(clips[row]) for row in rows])).to(device)
            with torch.inference_mode():
                out[rows] = self.network(wave)[0].cpu().numpy()
        return out

    def _cut(self, path: Path) -> Iterator[tuple[int, NDArray[np.int16]]]:
        """(first sample, samples) of each window; 16 bit, as in the clips that the model learned from."""
        config = self.network.config
        before: tuple[int, NDArray[np.int16]] | None = None
        try:
            stream = audio.blocks(path, config.sample_rate, name=str(path))
            for start, pcm in audio.cut(stream, config.window, 1):
                now = audio.to_int16(pcm)
                if before is not None and len(now) < SHORTEST_S * config.sample_rate:
                    before = (before[0], np.concatenate([before[1], now]))
                    continue
                if before is not None:
                    yield before
                before = (start, now)
        except OSError as error:
            raise Problem(f"cannot read {path}: {error.strerror or error}", "Name an audio file that exists") from error
        if before is not None:
            yield before

    def _hear(self, held: list[tuple[int, NDArray[np.int16]]], rate: int) -> Iterator[Window]:
        if held:
            scores = self.scores([pcm for _, pcm in held])
            for (start, pcm), row in zip(held, scores, strict=True):
                yield Window(start / rate, (start + len(pcm)) / rate, row)


def timeline(windows: list[Window], labels: list[str], threshold: float) -> list[dict[str, Any]]:
    """Who is heard when: one entry for each unbroken run of windows with a species, ordered by start, surest first."""
    entries: list[dict[str, Any]] = []
    running: dict[str, dict[str, Any]] = {}
    for window in windows:
        heard = {labels[i]: float(window.scores[i]) for i in np.flatnonzero(window.scores >= threshold)}
        heard = heard or {NONE: 1.0 - float(window.scores.max())}
        running = {name: entry for name, entry in running.items() if name in heard}
        for name, score in heard.items():
            if name in running:
                running[name].update(end_s=window.end_s, score=max(running[name]["score"], score))
            else:
                running[name] = {"start_s": window.start_s, "end_s": window.end_s, "species": name, "score": score}
                entries.append(running[name])
    for entry in entries:
        entry.update({key: round(entry[key], 4) for key in ("start_s", "end_s", "score")})
    return sorted(entries, key=lambda entry: (entry["start_s"], -entry["score"]))


def load(folder: Path, name: str = "", device: str = "cpu") -> Identifier:
    """A model from its folder. `name` is what its answers call it; by default the data set's name and version.

    Raises Problem for a folder that holds no birds model.
    """
    path = folder / "model.json"
    if not path.exists():
        raise Problem(f"{folder} holds no model.json", "Name the folder of a finished run")
    about = read_json(path)
    if about.get("family") != "birds":
        raise Problem(f"{folder} holds a model of the family {about.get('family')}, not birds", "Name a birds model")
    network = BirdNetwork(ModelConfig(**about["model"]), len(about["labels"]))
    load_weights(network, folder)
    dataset = about["dataset"]
    return Identifier(network.to(device), about, name or f"{dataset['name']}@{dataset['version']}")
