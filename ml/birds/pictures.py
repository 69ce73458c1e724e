"""The pictures of a birds report: what the model sees of a few clips, when it hears whom, and how well by species."""

from typing import Any

import numpy as np
import torch

from ml.birds.data import FULL_SCALE, Clips
from ml.birds.evaluate import Heard, by_species
from ml.birds.identify import NONE, Identifier
from ml.training import report

SHOWN = 4  # clips


def sections(model: Identifier, clips: Clips, heard: Heard) -> list[tuple[str, str]]:
    """(heading, HTML) of the report's own sections."""
    shown = "".join(clip_figure(model, clips, heard, row) for row in choose_clips(heard))
    return [("By species", species_figure(heard)), ("Clips of the valid split", shown)]


def choose_clips(heard: Heard) -> list[int]:
    """Rows worth looking at: evenly spaced from the surest to the least sure answer, one of each recording."""
    order, seen, rows = np.argsort(-heard.scores.max(axis=1)), set(), []
    for row in order.tolist():
        if heard.units[row] not in seen:
            seen.add(heard.units[row])
            rows.append(row)
    places = np.unique(np.linspace(0, len(rows) - 1, min(SHOWN, len(rows))).astype(int))
    return [rows[place] for place in places]


def clip_figure(model: Identifier, clips: Clips, heard: Heard, row: int) -> str:
    """A clip's spectrogram above its timeline: the probability of the likeliest species in each frame."""
    network = model.network
    pcm = clips.pcm(row)
    wave = torch.from_numpy(np.resize(pcm, max(len(pcm), network.config.window)).astype(np.float32))[None] / FULL_SCALE
    wave = wave.to(next(network.parameters()).device)
    with torch.inference_mode():
        picture, (_, frames) = network.picture(wave)[0].cpu().numpy(), network(wave)
    timeline = frames[0].cpu().numpy()
    seconds = wave.shape[1] / network.config.sample_rate

    figure, axes = report.axes(8.0, 4.2)
    axes.remove()
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    above.imshow(
        picture.T, origin="lower", aspect="auto", cmap="magma",
        extent=(0, seconds, 0, network.config.mels), vmin=np.quantile(picture, 0.05), vmax=np.quantile(picture, 0.998),
    )  # fmt: skip
    above.set_ylabel("mel band")
    there = " + ".join(clips.species[row]) or "no species"
    said = heard.named[row] or "none of them"
    above.set_title(f"heard: {there}; the model says: {said}", fontsize=9)
    times = (np.arange(len(timeline)) + 0.5) * network.frame_s
    for label in np.argsort(-timeline.max(axis=0))[:3]:
        below.plot(times, timeline[:, label], label=model.labels[label], linewidth=1.2)
    below.axhline(model.threshold, color="#888888", linestyle=":", linewidth=1)
    below.set_ylim(0, 1.02)
    below.set_xlabel("seconds")
    below.set_ylabel("probability")
    below.legend(fontsize=7, loc="upper right")
    alt = f"Spectrogram and timeline of clip {clips.keys[row]}: {there} is heard, the model says {said}"
    return report.figure(figure, alt, f"Clip {clips.keys[row]}")


def species_figure(heard: Heard) -> str:
    """Average precision of each species beside its prevalence, as bars and as a table."""
    rows: list[dict[str, Any]] = by_species(heard)
    figure, axes = report.axes(8.0, 0.6 + 0.3 * len(rows))
    places = np.arange(len(rows))[::-1]
    axes.barh(places, [row["average_precision"] for row in rows], color="#0969da", label="model")
    axes.barh(places, [row["prior"] for row in rows], height=0.3, color="#bc4c00", label="class prior")
    axes.set_yticks(places, [row["species"] for row in rows], fontsize=8)
    axes.set_xlim(0, 1)
    axes.set_xlabel("average precision")
    axes.legend(fontsize=8)
    best, worst = rows[0], rows[-1]
    alt = (
        f"Average precision by species, from {best['average_precision']:.2f} ({best['species']}) "
        f"to {worst['average_precision']:.2f} ({worst['species']})"
    )
    table = report.table(
        ["Species", "Average precision", "Class prior", "Clips"],
        [[row["species"], row["average_precision"], row["prior"], row["clips"]] for row in rows],
        f"Clips named {NONE or 'none'} count as negatives of every species",
    )
    return report.figure(figure, alt) + table
