"""What a model must beat: an order-2 Markov chain over whole frames, with backoff.

A frame depends on the two before it. Counts of (two frames -> frame) are interpolated with counts of
(one frame -> frame), these with counts of frames, and these with a distribution that gives every one of the 2**128 sets
of pitches a probability, so frames never heard are possible at each level:

    p_k(f | h) = max(0, c(h, f) - d) / c(h) + d * kinds(h) / c(h) * p_(k-1)(f | shorter h)

This is absolute discounting with interpolation (Ney, Essen & Kneser 1994). For a history never heard p_k is p_(k-1).
The lowest level spells the frame from the top, each pitch given the one above it, by Witten-Bell smoothing (1991) of
counts, with the uniform distribution over what may follow below that. Everything sums to one, and all counts are from
the train split. The discount was chosen on the published valid chorales, in the baseline's favour; Witten-Bell at every
level is 0.01 nats worse there.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ml.music.tokens import END_FRAME, NONE, PITCHES, Frames

Frame = tuple[int, ...]
NAME = "order-2 Markov model with backoff"
BEGINNING: Frame = (NONE,)  # stands before the first frame


@dataclass
class Counts:
    """How often each thing followed each context."""

    follows: dict[Hashable, Counter[Hashable]] = field(default_factory=lambda: defaultdict(Counter))

    def add(self, context: Hashable, thing: Hashable) -> None:
        self.follows[context][thing] += 1

    def discounted(self, context: Hashable, thing: Hashable, discount: float, lower: float) -> float:
        """Absolute discounting; `lower` is the thing's probability one level down."""
        seen = self.follows.get(context)
        if not seen:
            return lower
        return (max(0.0, seen[thing] - discount) + discount * len(seen) * lower) / seen.total()

    def witten_bell(self, context: Hashable, thing: Hashable, lower: float) -> float:
        """Witten-Bell: as much weight for the lower level as there are kinds of things seen."""
        seen = self.follows.get(context)
        return (seen[thing] + len(seen) * lower) / (seen.total() + len(seen)) if seen else lower


class MarkovBaseline:
    """An order-2 Markov chain over frames; `pitches` is the size of the universe (smaller in tests only)."""

    def __init__(self, pieces: Iterable[Frames], discount: float = 0.75, pitches: int = PITCHES) -> None:
        self._discount, self._pitches = discount, pitches
        self._orders = [Counts(), Counts(), Counts()]
        self._spelling = Counts()
        for piece in pieces:
            for history, frame in _with_history(piece):
                for order, counts in enumerate(self._orders):
                    counts.add(history[2 - order :], frame)
                for above, token in _spelled(frame):
                    self._spelling.add(above, token)

    def probability(self, history: Sequence[Frame], frame: Frame) -> float:
        """p(frame | the two frames before it); frames are written from the highest pitch down."""
        past = tuple(history)
        p = 1.0
        for above, token in _spelled(frame):
            choices = (self._pitches if above == NONE else above) + 1  # the pitches below, or the end of the frame
            p *= self._spelling.witten_bell(above, token, 1.0 / choices)
        for order, counts in enumerate(self._orders):
            p = counts.discounted(past[2 - order :], frame, self._discount, p)
        return p

    def nll(self, piece: Frames) -> npt.NDArray[np.float64]:
        """Nats for each frame of a piece, the first one included."""
        return np.array([-math.log(self.probability(history, frame)) for history, frame in _with_history(piece)])


def in_all_keys(pieces: Iterable[Frames], semitones: int = 6) -> Iterable[Frames]:
    """The pieces transposed up and down so far as their common range of pitches allows: a stronger baseline's data."""
    pieces = list(pieces)
    ranges = [[pitch for frame in piece for pitch in frame] or [0] for piece in pieces]
    lowest, highest = min(map(min, ranges)), max(map(max, ranges))
    for piece, pitches in zip(pieces, ranges, strict=True):
        down, up = max(-semitones, lowest - min(pitches)), min(semitones, highest - max(pitches))
        for shift in range(down, up + 1):
            yield [[pitch + shift for pitch in frame] for frame in piece]


def _with_history(piece: Frames) -> Iterable[tuple[tuple[Frame, Frame], Frame]]:
    history = (BEGINNING, BEGINNING)
    for notes in piece:
        frame = tuple(sorted(set(notes), reverse=True))
        yield history, frame
        history = (history[1], frame)


def _spelled(frame: Frame) -> list[tuple[int, int]]:
    """(the pitch above, what follows it) for each pitch of a frame and its end."""
    return list(zip((NONE, *frame), (*frame, END_FRAME), strict=True))
