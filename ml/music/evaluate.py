"""How well a model expects music it has not seen: negative log-likelihood per frame, in nats.

The score of a set of pieces is their total negative log-likelihood over their total frames; resamples are of pieces.
The first frame counts, rests and repeated frames count as they come, and the length of a piece is taken as given.

A model may have been trained on the pieces it is asked about, perhaps in another edition or key. So a model carries its
training pieces, and pieces are compared with those of the same fingerprint: the *same* piece is refused. A *variant*
(another edition, or one with other repeats) is let through only where it is an exception, because published splits
hold a few; it is then named, and the score is given without it too.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ml.datasets.read import Version
from ml.music.baseline import NAME, MarkovBaseline
from ml.music.compose import Composer, load
from ml.music.data import rows
from ml.music.tokens import PITCHES, Frames, tidy
from ml.training.evaluation import Evaluation, from_sums, interval, metric
from ml.training.files import read_json
from storage.errors import Problem
from storage.media.frames import fingerprint, overlap

SPLIT = "valid"
SEEN = "train_fingerprints.json"
VARIANT = 0.4  # share of chord progressions that two editions of one setting have in common, at least
SAME = 0.9  # ... and from which, at the same length, they are taken for one piece
EXCEPTIONS = 0.1  # variants in a file of pieces, at most, as a share
FEW = 10  # pieces named in a message

Scores = Sequence[npt.NDArray[np.float64]]


def evaluate(run_folder: Path, version: Version, split: str = SPLIT) -> Evaluation:
    """The deciding score of a model on a split of a version. Problem where the split is on another grid."""
    model = load(run_folder)
    names, frames = _pieces(model, version, split)
    return per_frame(names, model.nll(frames))


def metrics(run_folder: Path, version: Version, split: str = SPLIT) -> list[dict[str, Any]]:
    """The entries of scores.json for a split, beside the baseline fitted on the version's train split."""
    model = load(run_folder)
    names, frames = _pieces(model, version, split)
    baseline = MarkovBaseline(rows(version, "train").frames)
    return measure(names, model.nll(frames), [baseline.nll(piece) for piece in frames])


def measure(names: list[str], scores: Scores, baseline: Scores) -> list[dict[str, Any]]:
    """The model's frame scores beside the baseline's."""
    return [metric("nll_per_frame", per_frame(names, scores), NAME, per_frame(names, baseline))]


def per_frame(names: list[str], scores: Scores) -> Evaluation:
    """Total nats over total frames, from the nats of each frame of each piece."""
    sums = np.array([[piece.sum(), len(piece)] for piece in scores], dtype=np.float64).reshape(len(names), 2)
    return from_sums(names, sums, lambda s: s[:, 0] / s[:, 1], "less")


def evaluate_file(model: Composer, path: Path, name: str, version: str | int) -> dict[str, Any]:
    """The answer of `lyrebird evaluate music`:
    {"nll_per_frame", "low", "high", "frames", "model", "version"}, and where variants of training pieces are
    among them "variants" (their names) and "nll_per_frame_without_variants".

    The file holds JSON: {split: [piece, …]} or [piece, …]; a piece is a list of frames, a frame a list of MIDI pitches,
    on the model's grid. `name` and `version` say which model answered. Raises Problem for a file that is not so, and
    for pieces that the model was trained on.
    """
    names, pieces = read_pieces(path)
    found = find_seen(model, pieces)
    if any(likeness.same for likeness in found.values()) or len(found) > EXCEPTIONS * len(names):
        told = [names[row] for row in found]
        listed = ", ".join(told[:FEW]) + (f" and {len(told) - FEW} more" if len(told) > FEW else "")
        raise Problem(
            f"{name} version {version} was trained on {len(told)} of the {len(names)} pieces in {path}: {listed}",
            "Leave them out, or ask a model that was trained on other pieces",
        )
    scores = model.nll(pieces)
    value, low, high = interval(per_frame(names, scores))
    answer: dict[str, Any] = {
        "nll_per_frame": value, "low": low, "high": high, "frames": sum(map(len, pieces)),
        "model": name, "version": version,
    }  # fmt: skip
    if found:
        others = [row for row in range(len(names)) if row not in found]
        rest = per_frame([names[row] for row in others], [scores[row] for row in others])
        answer |= {
            "variants": [names[row] for row in found],
            "nll_per_frame_without_variants": rest.value(),
        }
    return answer


def read_pieces(path: Path) -> tuple[list[str], list[Frames]]:
    """The pieces of a JSON file and names for them, such as "test[3]". Problem that says what is wrong and where."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Problem(f"cannot read {path}: {error.strerror or error}", "Name a JSON file that exists") from error
    except (ValueError, RecursionError) as error:
        raise Problem(f"{path} is not JSON ({error})", SHAPE) from error
    splits = content if isinstance(content, dict) else {"": content}
    names, pieces = [], []
    for split, listed in splits.items():
        if not isinstance(listed, list):
            raise Problem(f"{path}: {split or 'the file'} is not a list of pieces", SHAPE)
        for number, piece in enumerate(listed):
            name = f"{split or 'piece'}[{number}]"
            names.append(name)
            pieces.append(_piece(path, name, piece))
    if not pieces:
        raise Problem(f"{path} holds no piece", SHAPE)
    return names, pieces


SHAPE = "The file is [piece, …] or {split: [piece, …]}; a piece is a list of frames, a frame a list of MIDI pitches"


def _piece(path: Path, name: str, piece: Any) -> Frames:
    if not isinstance(piece, list) or not piece:
        raise Problem(f"{path}: {name} is not a list of frames with at least one in it", SHAPE)
    for step, frame in enumerate(piece):
        if not isinstance(frame, list) or not all(type(p) is int and 0 <= p < PITCHES for p in frame):
            raise Problem(f"{path}: frame {step} of {name} is not a list of MIDI pitches from 0 to 127", SHAPE)
    return tidy(piece)


@dataclass(frozen=True)
class Likeness:
    """How much a piece has in common with the training piece most like it (0 to 1), and whether it is the same."""

    share: float
    same: bool


def seen_by(names: Sequence[str], fingerprints: Sequence[str], frames: Sequence[Frames], grid: str) -> dict[str, Any]:
    """What `train_fingerprints.json` says about the pieces a model was trained on."""
    pieces = [
        {"piece": name, "fingerprint": mark, "frames": piece}
        for name, mark, piece in zip(names, fingerprints, frames, strict=True)
    ]
    return {"grid": grid, "pieces": pieces}


def find_seen(model: Composer, pieces: Sequence[Frames]) -> dict[int, Likeness]:
    """The numbers of the pieces that the model was trained on, or on a variant of."""
    known: dict[str, list[Frames]] = defaultdict(list)
    seen = read_json(model.folder / SEEN)
    for piece in seen["pieces"]:
        known[piece["fingerprint"]].append(piece["frames"])
    found = {}
    for row, piece in enumerate(pieces):
        likenesses = [_likeness(piece, other, model.grid) for other in known.get(fingerprint(piece, model.grid), [])]
        best = max(likenesses, key=lambda likeness: (likeness.same, likeness.share), default=None)
        if best is not None and (best.same or best.share >= VARIANT):
            found[row] = best
    return found


def _likeness(piece: Frames, other: Frames, grid: str) -> Likeness:
    """A piece too short for chord progressions (share 0) is the same only if its intervals all agree."""
    share = overlap(piece, other, grid, grid)
    if len(piece) != len(other):
        return Likeness(share, same=False)
    return Likeness(share, same=share >= SAME or _intervals(piece) == _intervals(other))


def _intervals(piece: Frames) -> list[list[int]]:
    first = next((max(frame) for frame in piece if frame), 0)
    return [sorted(pitch - first for pitch in frame) for frame in piece]


def _pieces(model: Composer, version: Version, split: str) -> tuple[list[str], list[Frames]]:
    pieces = rows(version, split)
    if pieces.grid != model.grid:
        raise Problem(
            f"The model {model.name} is for the {model.grid} grid, version {version.id} is on the {pieces.grid} grid",
            f"Name a version frozen with grid = '{model.grid}'",
        )
    return pieces.names, pieces.frames
