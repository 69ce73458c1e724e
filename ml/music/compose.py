"""Write music with a finished model: from nothing, as the continuation of a tune, or as the harmony under a melody.

Every token is drawn from what may follow (`tokens.allowed`), so whatever the seed and the temperature, the result is a
piece and its file is valid MIDI. Keys and values of what was read are kept, so a token costs one position's work.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from ml.music.data import Piece, Surroundings, collate, windows
from ml.music.model import NEVER, Cache, ModelConfig, MusicTransformer, negative_log_likelihood
from ml.music.tokens import END_FRAME, NONE, PITCHES, Described, Frames, allowed, decode, describe, encode, tidy
from ml.training.files import read_json
from ml.training.trainer import load_weights, move
from storage.errors import Problem
from storage.media import frames as grids
from storage.media import midi

Floats = np.ndarray[tuple[int], np.dtype[np.float64]]
FAMILY = "music"
NO_TARGET = np.zeros(0, dtype=np.int64)
VOICES = 16  # pitches in a composed frame at most, so that a frame always ends
SCORED = 16  # windows scored at once
MOST_FRAMES = 10_000


class Composer:
    """A trained network with what it was trained on (`about`, the folder's model.json)."""

    def __init__(self, network: MusicTransformer, about: dict[str, Any], name: str, folder: Path) -> None:
        self.network, self.about, self.name, self.folder = network, about, name, folder
        self.grid: str = about["grid"]
        self.surroundings = Surroundings(network.config.history, network.config.reach)

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        return next(self.network.parameters()).device

    def nll(self, pieces: Sequence[Frames]) -> list[Floats]:
        """Nats for each frame of each piece, given the frames before it and that the piece goes on."""
        return frame_nll(self.network, [Piece.of("", piece, self.surroundings) for piece in pieces])

    def compose(
        self,
        frames: int = 64,
        *,
        prime: Frames | None = None,
        melody: Sequence[int | None] | None = None,
        temperature: float = 1.0,
        top_p: float = 0.95,
        seed: int = 0,
    ) -> Frames:
        """Frames drawn from the model: `prime` first, then `frames` new ones, or one for each note of `melody`.

        `melody` gives the top pitch of each new frame, None for a rest; the voices below it are drawn. `temperature`
        below 1 is more cautious, and `top_p` keeps the likeliest tokens that together have this probability. The same
        seed gives the same music. Raises Problem for numbers that make no sense.
        """
        _check(frames if melody is None else len(melody), temperature, top_p, melody or [])
        tops: Sequence[int | None] = [None] * frames if melody is None else melody
        generator = torch.Generator().manual_seed(seed)
        ids: list[int] = encode(prime or [], stop=False).tolist()
        reader = _Reader(self.network, self.surroundings)
        for top in tops:
            if melody is not None:
                ids.append(END_FRAME if top is None else top)
            begun = melody is not None
            while not begun or ids[-1] != END_FRAME:
                logits, last = reader.next(ids)
                # A piece that begins with a rest could be silent all through; a full frame must end.
                token = draw(logits, int(last.above[0]), temperature, top_p, generator, rest=len(ids) > 1)
                ids.append(END_FRAME if last.place[0] == VOICES else token)
                begun = True
        return decode(ids)

    def midi(self, music: Frames, tempo_bpm: float = midi.DEFAULT_TEMPO) -> bytes:
        """A Standard MIDI File of frames on the model's grid, held pitches merged."""
        return midi.from_frames(music, self.grid, tempo_bpm=tempo_bpm)

    def read_midi(self, path: Path) -> Frames:
        """The frames of a .mid file on the model's grid. Problem where it cannot be read or holds no note."""
        try:
            data = path.read_bytes()
        except OSError as error:
            raise Problem(f"cannot read {path}: {error.strerror or error}", "Name a .mid file that exists") from error
        heard = midi.read(data, str(path))
        music = tidy(grids.to_frames(heard.notes, self.grid))
        if not any(music):
            raise Problem(f"{path} holds no note on the {self.grid} grid", "Name a .mid file with a tune in it")
        return music


class _Reader:
    """Reads a growing piece with a cache; past the context it starts anew from the last half context."""

    def __init__(self, network: MusicTransformer, surroundings: Surroundings) -> None:
        self._network, self._surroundings = network, surroundings
        self._cache: Cache = []
        self._first = self._read = 0  # tokens cached: from, to

    @torch.inference_mode()
    def next(self, ids: list[int]) -> tuple[Tensor, Described]:
        """Logits [OUTPUTS] of the token after `ids`, which begin as they did at the last call; and its columns."""
        context = self._network.config.context
        if len(ids) - self._first > context:
            self._cache, self._first = [], len(ids) - context // 2
            self._read = self._first
        piece = describe(ids)
        new = (piece[self._read :], self._surroundings.of(piece, self._read), NO_TARGET)
        batch = move(collate([new]), next(self._network.parameters()).device)
        logits = self._network(batch, self._cache)[0, -1].float().cpu()
        self._read = len(ids)
        return logits, piece[-1:]


def draw(
    logits: Tensor, above: int, temperature: float, top_p: float, generator: torch.Generator, *, rest: bool = True
) -> int:
    """A token for logits [OUTPUTS], among those that may follow `above`; `rest` says whether a frame may be empty.

    Nucleus sampling (Holtzman et al. 2020): the least likely tokens beyond a total of `top_p` are left out.
    """
    mask = allowed(torch.tensor(above), stop=False)
    if above == NONE and not rest:
        mask[END_FRAME] = False
    p = F.softmax(logits.masked_fill(~mask, NEVER) / temperature, dim=-1)
    ordered, order = p.sort(descending=True, stable=True)
    ordered[ordered.cumsum(0) - ordered >= top_p] = 0.0
    return int(order[torch.multinomial(ordered, 1, generator=generator)])


@torch.inference_mode()
def frame_nll(network: MusicTransformer, pieces: Sequence[Piece]) -> list[Floats]:
    """Nats for each frame of each piece, first frame included; the end of the piece is not scored.

    Long pieces are read in overlapping windows. What stands beside a piece in a batch does not change its score.
    """
    device, scores = next(network.parameters()).device, [np.zeros(len(piece.frames)) for piece in pieces]
    todo = [(row, *part) for row, piece in enumerate(pieces) for part in windows(piece, network.config.context)]
    todo.sort(key=lambda part: len(part[1][0]))
    for first in range(0, len(todo), SCORED):
        group = todo[first : first + SCORED]
        batch = move(collate([crop for _, crop, _ in group]), device)
        nats = negative_log_likelihood(network(batch), batch, stop=False).double().cpu().numpy()
        for values, (row, (read, _, _), scored) in zip(nats, group, strict=True):
            np.add.at(scores[row], read.step[scored:], values[scored : len(read)])
    return scores


def load(folder: Path, name: str = "", device: str = "cpu") -> Composer:
    """A composer from a run folder or a model folder. Problem where it is not one."""
    path = folder / "model.json"
    if not path.exists():
        raise Problem(f"{folder} holds no model.json", "Name the folder of a finished music run")
    about = read_json(path)
    if about.get("family") != FAMILY:
        raise Problem(f"{folder} holds a model of the family {about.get('family')!r}", "Name a music model")
    config = ModelConfig(**about["model"])
    network = MusicTransformer(config, Surroundings(config.history, config.reach).width)
    load_weights(network, folder)
    return Composer(network.to(device), about, name or about["dataset"]["name"], folder)


def _check(frames: int, temperature: float, top_p: float, tops: Sequence[int | None]) -> None:
    if not 1 <= frames <= MOST_FRAMES:
        raise Problem(f"{frames} frames cannot be composed", f"Ask for 1 to {MOST_FRAMES:,}")
    if not 0 < temperature <= 10:
        raise Problem(f"The temperature cannot be {temperature}", "Use a number above 0 and at most 10, such as 0.9")
    if not 0 < top_p <= 1:
        raise Problem(f"top-p cannot be {top_p}", "Use a number above 0 and at most 1, such as 0.95")
    if any(top is not None and not 0 <= top < PITCHES for top in tops):
        raise Problem("The melody has pitches outside 0 to 127", "Use MIDI pitches, or nothing for a rest")
