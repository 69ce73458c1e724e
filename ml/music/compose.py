"""Write music with a finished model: from nothing, as the continuation of a tune, or as the harmony under a melody.

Every token is drawn from what may follow (`tokens.allowed`), so whatever the seed and the temperature, the result is a
piece and its file is valid MIDI. Keys and values of what was read are kept, so a token costs one position's work.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ml.music.data import Piece, Surroundings, collate, windows
from ml.music.model import NEVER, Cache, ModelConfig, MusicTransformer, negative_log_likelihood, possible
from ml.music.tokens import END_FRAME, NONE, PITCHES, START, STOP, Frames, describe, encode, tidy
from ml.training.files import read_json
from ml.training.trainer import load_weights, move
from storage.errors import Problem
from storage.media import frames as grids
from storage.media import midi

Floats = np.ndarray[tuple[int], np.dtype[np.float64]]
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
        count = len(melody) if melody is not None else frames
        _check(count, temperature, top_p, melody)
        generator = torch.Generator().manual_seed(seed)
        ids = encode(prime or [], stop=False).tolist()
        first = len(tidy(prime or []))
        reader = _Reader(self.network, self.surroundings)
        for step in range(first, first + count):
            top = NONE if melody is None else (-1 if melody[step - first] is None else melody[step - first])
            while True:
                logits, above = reader.next(ids)
                place = 0 if above == NONE else describe(ids[-VOICES - 1 :]).place[-1]
                if above == NONE and melody is not None:
                    token = END_FRAME if top == NONE else int(top or 0)
                elif place >= VOICES:
                    token = END_FRAME
                else:
                    token = draw(logits, above, temperature, top_p, generator, rest=step > 0)
                ids.append(token)
                if token == END_FRAME:
                    break
        return _decode(ids)

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
