"""The pictures of a music report: what the model writes beside a real piece, and where music surprises it."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ml.music.baseline import NAME
from ml.music.compose import Composer
from ml.music.data import Rows
from ml.music.evaluate import per_frame
from ml.music.tokens import Frames
from ml.training import report
from ml.training.evaluation import interval
from storage.media.frames import pitch_name

COLOURS = ("#0969da", "#1a7f37", "#bc4c00", "#8250df")  # soprano, alto, tenor, bass
PRIMED = 16  # frames given, where a piece is gone on from
SHOWN = 64  # frames drawn

Scores = Sequence[npt.NDArray[np.float64]]


def sections(model: Composer, valid: Rows, scores: Scores, baseline: Scores, stronger: Scores) -> list[tuple[str, str]]:
    """(heading, HTML) of the report's own sections. `stronger` is the baseline counted in all keys."""
    means = np.array([piece.mean() for piece in scores])
    row = int(np.argsort(means)[len(means) // 2])
    real, name = valid.frames[row], valid.names[row]
    written = model.compose(SHOWN, seed=1)
    start = min(PRIMED, len(real))
    going_on = model.compose(SHOWN - start, prime=real[:start], seed=1)
    melody = [max(frame) if frame else None for frame in real[:SHOWN]]
    harmony = model.compose(melody=melody, seed=1)
    return [
        (
            "Written by the model",
            piano_roll(written, "From nothing, seed 1")
            + piano_roll(going_on, f"Going on from the first {start} frames of {name}", start)
            + piano_roll(harmony, f"Harmony under the melody of {name}"),
        ),
        ("A piece of the valid split", piano_roll(real[:SHOWN], name) + surprise(scores[row], baseline[row], name)),
        (
            "Beside the baselines",
            baselines(valid.names, {"Model": scores, NAME: baseline, f"{NAME}, counts in all keys": stronger}),
        ),
        ("Pieces of the valid split", by_piece(valid.names, means, np.array([piece.mean() for piece in baseline]))),
    ]


def piano_roll(frames: Frames, caption: str, given: int = 0) -> str:
    """Frames as a piano roll, coloured from the top voice down; a line stands where what was `given` ends."""
    fig, ax = report.axes(8.0, 2.6)
    for step, frame in enumerate(frames):
        for voice, pitch in enumerate(sorted(frame, reverse=True)):
            ax.barh(pitch, 1, left=step, height=0.9, color=COLOURS[min(voice, len(COLOURS) - 1)], linewidth=0)
    if given:
        ax.axvline(given, color="#57606a", linewidth=1)
    pitches = [pitch for frame in frames for pitch in frame] or [60]
    octaves = [p for p in range(128) if p % 12 == 0 and min(pitches) - 3 <= p <= max(pitches) + 3]
    ax.set_yticks(octaves, [pitch_name(p) for p in octaves])
    ax.set_xlim(0, max(len(frames), 1))
    ax.set_xlabel("step")
    ax.grid(axis="y", alpha=0.3)
    span = f"between {pitch_name(min(pitches))} and {pitch_name(max(pitches))}"
    return report.figure(fig, f"Piano roll of {len(frames)} frames {span}", caption)


def baselines(names: list[str], systems: dict[str, Scores]) -> str:
    """Nats per frame with intervals; as the model is transposed in training, one of the baselines is too."""
    rows, first = [], 0.0
    for name, scores in systems.items():
        value, low, high = interval(per_frame(names, scores))
        first = first or value
        rows.append([name, value, f"{low:.3f} to {high:.3f}", f"{first / value:.3f}"])
    return report.table(["", "Nats per frame", "95 % interval", "Model's share of it"], rows)


def surprise(model: npt.NDArray[np.float64], baseline: npt.NDArray[np.float64], name: str) -> str:
    """Nats per frame over a piece, the model's and the baseline's."""
    fig, ax = report.axes(8.0, 2.2)
    for values, label, colour in ((baseline, "Markov", "#bc4c00"), (model, "model", "#0969da")):
        ax.step(range(min(SHOWN, len(values))), values[:SHOWN], where="mid", label=label, color=colour, linewidth=1)
    ax.set_xlabel("step")
    ax.set_ylabel("nats")
    ax.legend(fontsize=8)
    alt = f"Surprise over {name}: {model.mean():.2f} nats a frame for the model, {baseline.mean():.2f} for the baseline"
    return report.figure(fig, alt, "How little each frame was expected")


def by_piece(names: Sequence[str], model: npt.NDArray[np.float64], baseline: npt.NDArray[np.float64]) -> str:
    """Each piece as a point, and the best and worst as a table."""
    fig, ax = report.axes(4.5, 4.0)
    ax.scatter(baseline, model, s=10, color="#0969da")
    ends = [0, float(max(baseline.max(), model.max())) * 1.05]
    ax.plot(ends, ends, color="#57606a", linewidth=1)
    ax.set_xlabel("Markov, nats per frame")
    ax.set_ylabel("model, nats per frame")
    won = int((model < baseline).sum())
    order = np.argsort(model).tolist()
    chosen = order if len(order) <= 10 else order[:5] + order[-5:]
    table = report.table(
        ["Piece", "Model", "Markov"], [[names[i], float(model[i]), float(baseline[i])] for i in chosen],
        "The most and the least expected pieces, nats per frame",
    )  # fmt: skip
    return report.figure(fig, f"The model expects {won} of {len(model)} pieces better than the Markov model") + table
