"""Translate with a trained model: a line out for each line in.

translator = load(folder)
translator.translate(["Save this page"])
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ml.training.files import read_json
from ml.training.trainer import load_weights
from ml.translation.data import pad
from ml.translation.model import ModelConfig, Translation, build
from ml.translation.search import Hypothesis, beam_search, greedy, limits
from ml.translation.subwords import PAD, Subwords, clean
from storage.errors import Problem

_CELLS = {"cpu": 4_000, "cuda": 100_000}  # source numbers times hypotheses decoded together
_CHARACTERS = 16  # no piece of the vocabulary has more characters than this (sentencepiece's default)
_SENTENCE_END = re.compile(r"(?<=[.!?…。])\s+")


Sources = list[list[int]]


class Search(Protocol):
    """What decodes, ours or CTranslate2's: the best hypotheses of each source, best first.

    Sources come in groups to decode together, and go out in the same ones.
    """

    def __call__(self, groups: Sequence[Sources], beam: int) -> Iterator[list[list[Hypothesis]]]: ...


@dataclass(frozen=True)
class Candidate:
    """A translation and what it is ranked by: its log probability over its length (see `beam_search`)."""

    text: str
    score: float


@dataclass
class Translator:
    """A model with its vocabulary. Sources longer than the model was trained on are translated in parts.

    `search` takes the place of our own search with the model, where given.
    """

    model: nn.Module
    subwords: Subwords
    config: ModelConfig
    search: Search | None = None

    def translate(self, lines: Sequence[str], beam: int | None = None, to: str | None = None) -> list[str]:
        """One translation for each line; an empty line gives an empty one. `beam` 1 is greedy; None is the model's own.

        `to` is the target language (ISO 639-3) of a model that has several. Whatever a line holds, a line comes back.
        """
        return [found[0].text for found in self.candidates(lines, 1, beam, to)]

    def candidates(
        self, lines: Sequence[str], best: int, beam: int | None = None, to: str | None = None
    ) -> list[list[Candidate]]:
        """The `best` translations of each line, best first; fewer where the search found fewer.

        Of a line in parts the second one holds the second one of each part, and so on.
        """
        beam = max(best, self.config.beam) if beam is None else beam
        if beam < 1:
            raise Problem(f"A beam of {beam} holds no hypothesis", "Give a beam of 1 or more")
        if not 1 <= best <= beam:
            raise Problem(f"A beam of {beam} does not give {best} translations", f"Ask for 1 to {beam}, or widen it")
        language = self._language(to)
        parts = [(i, part) for i, line in enumerate(lines) for part in self._parts(clean(line))]
        sources = self.subwords.encode_source([part for _, part in parts], [language] * len(parts))
        found: list[list[Hypothesis]] = [[] for _ in parts]
        groups = list(_groups(sources, beam, _CELLS.get(next(self.model.parameters()).device.type, 4_000)))
        decoded = (self.search or self._search)([[sources[i] for i in group] for group in groups], beam)
        for group, each in zip(groups, decoded, strict=True):
            for i, hypotheses in zip(group, each, strict=True):
                found[i] = hypotheses[:best]
        of_lines: list[list[list[Hypothesis]]] = [[] for _ in lines]
        for (line, _), hypotheses in zip(parts, found, strict=True):
            of_lines[line].append(hypotheses)
        return [
            [self._joined(ranked) for ranked in zip(*line, strict=False)] or [Candidate("", 0.0)] for line in of_lines
        ]

    def attention(
        self, source: str, target: str | None = None, to: str | None = None
    ) -> tuple[list[str], list[str], NDArray[np.float32]]:
        """The pieces of a source and of its translation, and how much each of these looked at each of those: (T, S).

        `target` takes the place of the model's own greedy translation. Both end with the end mark. A source longer
        than the model takes at once is cut.
        """
        language = self._language(to)
        parts = self._parts(clean(source)) or [""]
        text = clean(target) if target is not None else self.translate(parts[:1], beam=1, to=language)[0]
        sources, targets = self.subwords.encode_source(parts[:1], [language]), self.subwords.encode_target([text])
        device = next(self.model.parameters()).device
        model = cast(Translation, self.model)
        with torch.no_grad():
            matrix = model.attention(pad(sources).to(device), pad([targets[0][:-1]]).to(device))[0]
        # Row t is what the decoder looked at when it wrote target number t + 1: the beginning mark is not shown.
        return self.subwords.names(sources[0]), self.subwords.names(targets[0][1:]), matrix.float().cpu().numpy()

    def _search(self, groups: Sequence[Sources], beam: int) -> Iterator[list[list[Hypothesis]]]:
        model, banned, penalty = cast(Translation, self.model), self.subwords.banned, self.config.length_penalty
        for sources in groups:
            source = pad(sources).to(next(self.model.parameters()).device)
            most = limits(source, PAD)
            if beam == 1:
                yield [[one] for one in greedy(model, source, most, banned, length_penalty=penalty)]
            else:
                yield beam_search(model, source, most, banned, beam=beam, length_penalty=penalty)

    def _joined(self, parts: Sequence[Hypothesis]) -> Candidate:
        texts = [clean(self.subwords.decode(part.tokens)) for part in parts]
        return Candidate(" ".join(text for text in texts if text), sum(part.score for part in parts))

    def _parts(self, line: str) -> list[str]:
        """The line, or pieces of it that the model can take: cut after sentences, else between words, else anywhere."""
        room = self.config.longest - 2  # the language and the end take a place each
        parts: list[str] = []
        for sentence in [line] if self._fits(line, room) else _SENTENCE_END.split(line):
            left = sentence
            while left:
                cut = len(left) if self._fits(left, room) else self._cut(left, room)
                parts.append(left[:cut].strip())
                left = left[cut:].strip()
        return parts

    def _cut(self, text: str, room: int) -> int:
        """Where to cut a text that does not fit: before the last word that is too much, or inside a long one."""
        ends = [match.start() for match in re.finditer(" ", text[: room * _CHARACTERS])]
        words = _largest(len(ends), lambda n: self._fits(text[: ends[n - 1]], room))
        if words:
            return ends[words - 1]
        return max(1, _largest(min(len(text), room * _CHARACTERS), lambda n: self._fits(text[:n], room)))

    def _fits(self, text: str, room: int) -> bool:
        # Most of a very long text need not be encoded to see that it is too long.
        return len(text) <= room * _CHARACTERS and len(self.subwords.encode_target([text])[0]) - 2 <= room

    def _language(self, to: str | None) -> str:
        if to is None and len(self.subwords.languages) > 1:
            raise Problem("This model has several target languages", f"Name one: {', '.join(self.subwords.languages)}")
        return to or self.subwords.languages[0]


def load(folder: Path, device: str = "cpu") -> Translator:
    """The translator in a run folder or model folder; raises Problem if the folder holds none."""
    folder = Path(folder)
    if not (folder / "model.json").exists():
        raise Problem(f"{folder} holds no model.json", "Name the folder of a finished translation run")
    about = read_json(folder / "model.json")
    if about.get("family") != "translation":
        raise Problem(f"The model in {folder} is for {about.get('family')}", "Name the folder of a translation model")
    config, subwords = ModelConfig(**about["model"]), Subwords(folder / "spm.model")
    model = build(config, subwords.size)
    load_weights(model, folder)
    return Translator(model.to(device), subwords, config)


def _largest(most: int, fits: Callable[[int], bool]) -> int:
    """The largest n <= most for which fits(n), by halving; 0 if not even 1 does."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low


def _groups(sources: list[list[int]], beam: int, cells: int) -> Iterator[list[int]]:
    """Numbers of sources to decode together, alike in length and not too many at once."""
    group: list[int] = []
    for i in sorted(range(len(sources)), key=lambda i: len(sources[i])):
        if group and len(sources[i]) * (len(group) + 1) * beam > cells:
            yield group
            group = []
        group.append(i)
    if group:
        yield group
