"""Written music (MusicXML, kern, ABC) as notes, through music21.

A score is read as it is written: ties are joined, repeats are not. :func:`played` gives the notes as they sound, with
the repeats taken, which is what frames and models want.

Scores come from strangers: archives are opened with caps, XML is parsed with defusedxml (no external entities, no
entity bombs), and whatever is wrong with a score is one error that names it. An ABC file holds many tunes, each read
by itself, so that a broken one does not take the others with it.
"""

from __future__ import annotations

import io
import re
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar, cast

from storage.errors import Problem
from storage.media.frames import Note

T = TypeVar("T")

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

CONTENT_TYPES = {
    ".mxl": "application/vnd.recordare.musicxml",
    ".musicxml": "application/vnd.recordare.musicxml+xml",
    ".xml": "application/vnd.recordare.musicxml+xml",
    ".krn": "text/plain",
    ".abc": "text/vnd.abc",
}
MAX_BYTES = 32 << 20  # unpacked
MAX_NOTES = 200_000
_VOICE = re.compile(r"(soprano|alto|tenor|bass)\b", re.IGNORECASE)


class ScoreError(Problem):
    """A score that cannot be read: its name and what is wrong with it."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"cannot read the score {name}: {reason}", "Replace the file with an intact copy")
        self.name = name
        self.reason = reason


@dataclass(frozen=True)
class Tune:
    """One piece of a score file. Times are in quarters from the start, a pickup included."""

    number: int | None  # the reference number (X:) of an ABC tune
    title: str | None
    composer: str | None
    time_signature: str | None  # the first one, such as 3/4
    key_signature: str | None  # the first one: "A major", or "3 sharps" where no mode is given
    tempo_bpm: float | None  # quarters a minute
    parts: tuple[str, ...]  # names from the top of the score, "" where there is none
    notes: tuple[Note, ...]  # as written, ties joined, by onset, part and pitch
    spans: tuple[tuple[float, float], ...]  # what is played, in order: (start, end) in written time

    @property
    def quarters(self) -> float:
        """Length as written."""
        return max((note.onset + note.duration for note in self.notes), default=0.0)


def read(data: bytes, suffix: str, name: str) -> list[Tune | ScoreError]:
    """The tunes of a score file; in place of an ABC tune that cannot be read, its error.

    Raises ScoreError when the file as a whole cannot be read, Problem when music21 is not installed.
    """
    try:
        import music21  # noqa: F401
    except ImportError as error:
        raise Problem("reading scores needs music21", "Install it with: pip install 'lyrebird[demo]'") from error
    if len(data) > MAX_BYTES:
        raise ScoreError(name, f"{len(data):,} bytes are more than {MAX_BYTES:,}")
    if suffix == ".abc":
        return [_attempt(tune, number, f"{name}#{number}") for number, tune in _abc_tunes(_text(data), name)]
    if suffix == ".krn":
        return [_tune(_converted("Humdrum", _text(data), name), None, name)]
    if suffix in (".mxl", ".musicxml", ".xml"):
        return [_tune(_musicxml(_unpacked(data, name) if suffix == ".mxl" else data, name), None, name)]
    raise ScoreError(name, f"no reader for {suffix or 'a file without a suffix'}")


def played(tune: Tune) -> list[Note]:
    """The notes as they sound: repeats taken, and a note that a jump cuts off ends there."""
    notes = []
    at = 0.0
    for start, end in tune.spans:
        for note in tune.notes:
            if start <= note.onset < end:
                duration = min(note.duration, end - note.onset)
                notes.append(replace(note, onset=at + note.onset - start, duration=duration))
        at += end - start
    return notes


def voices(tune: Tune) -> set[int]:
    """The parts that carry the piece: the singers' where a choir is named, all otherwise.

    Chorales come with and without the horns and drums of their cantata; their singers are what the editions share.
    """
    singers = {index for index, part in enumerate(tune.parts) if _VOICE.match(part)}
    return singers if len(singers) >= 4 else set(range(len(tune.parts)))


def _attempt(text: str, number: int, name: str) -> Tune | ScoreError:
    try:
        return _tune(_converted("ABC", text, name), number, name)
    except ScoreError as error:
        return error


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")  # what these formats were written in before Unicode; never fails


def _abc_tunes(text: str, name: str) -> Iterator[tuple[int, str]]:
    """(reference number, ABC text) of each tune; a file's header goes to all. Numbers given twice are counted on."""
    header, *rest = re.split(r"(?m)^(?=X:)", text.replace("\r\n", "\n").replace("\r", "\n"))
    if not rest:
        raise ScoreError(name, "no tune in it: there is no line X:")
    seen: set[int] = set()
    for tune in rest:
        given = re.match(r"X:\s*(\d{1,9})", tune)
        number = int(given[1]) if given else 0
        while number in seen:
            number += 1
        seen.add(number)
        yield number, header.lstrip() + tune


def _unpacked(data: bytes, name: str) -> bytes:
    """The score inside a compressed MusicXML file, which its META-INF/container.xml names."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            inside = {entry.filename: entry for entry in archive.infolist()}
            path = None
            if container := inside.get("META-INF/container.xml"):
                root = _xml(_member(archive, container, name), name)
                path = next((node.get("full-path") for node in root.iter() if node.tag.endswith("rootfile")), None)
            if path not in inside:
                path = next((n for n in inside if n.endswith((".xml", ".musicxml")) and "META-INF" not in n), None)
            if path is None:
                raise ScoreError(name, "the archive holds no score")
            return _member(archive, inside[path], name)
    except (zipfile.BadZipFile, EOFError, OSError, RuntimeError, NotImplementedError, ValueError) as error:
        raise ScoreError(name, f"no intact archive: {error}") from error


def _member(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, name: str) -> bytes:
    with archive.open(entry) as file:
        data = file.read(MAX_BYTES + 1)  # the declared size may lie
    if len(data) > MAX_BYTES:
        raise ScoreError(name, f"unpacks to more than {MAX_BYTES:,} bytes")
    return data


def _xml(data: bytes, name: str) -> Element:
    from xml.etree.ElementTree import ParseError

    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import fromstring

    try:
        root: Element = fromstring(data)
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:
        raise ScoreError(name, f"no safe and well-formed XML: {error}") from error
    return root


def _musicxml(data: bytes, name: str) -> Any:
    from music21.musicxml import xmlToM21

    root = _xml(data, name)
    if root.tag != "score-partwise":
        raise ScoreError(name, f"no partwise MusicXML, but <{root.tag}>")
    importer: Any = cast(Any, xmlToM21).MusicXMLImporter()
    _guarded(lambda: importer.xmlRootToScore(root, importer.stream), name)
    return importer.stream


def _converted(format: str, text: str, name: str) -> Any:
    """A stream out of ``Humdrum`` (kern) or ``ABC`` text."""
    from music21.converter import subConverters

    converter: Any = getattr(subConverters, f"Converter{format}")()
    _guarded(lambda: converter.parseData(text), name)
    return converter.stream


def _guarded(work: Callable[[], T], name: str) -> T:
    """Run music21 on what may be anything: its complaints go nowhere, its errors become ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return work()
        except ScoreError:
            raise
        except Exception as error:
            raise ScoreError(name, f"{type(error).__name__}: {error}") from error


def _tune(score: Any, number: int | None, name: str) -> Tune:
    tune = _guarded(lambda: _extract(score, number), name)
    if not tune.notes:
        raise ScoreError(name, "no notes in it")
    if len(tune.notes) > MAX_NOTES:
        raise ScoreError(name, f"{len(tune.notes):,} notes are more than {MAX_NOTES:,}")
    return tune


def _extract(score: Any, number: int | None) -> Tune:
    parts = list(score.parts) or [score]
    notes = [note for index, part in enumerate(parts) for note in _notes(part, index)]
    singers = [part for part in parts if _VOICE.match(_part_name(part))]
    metadata = score.metadata
    return Tune(
        number=number,
        title=_clean(metadata.title or metadata.movementName) if metadata else None,
        composer=_clean(metadata.composer) if metadata else None,
        time_signature=next((meter.ratioString for meter in _all(score, "TimeSignature")), None),
        key_signature=next((_key_name(key) for key in _all(score, "KeySignature")), None),
        tempo_bpm=next((_tempo(mark) for mark in _all(score, "MetronomeMark") if _tempo(mark)), None),
        parts=tuple(_part_name(part) for part in parts),
        notes=tuple(sorted(notes, key=lambda note: (note.onset, note.part, note.pitch))),
        spans=tuple(_spans((singers or parts)[0])),
    )


def _part_name(part: Any) -> str:
    return _clean(getattr(part, "partName", None)) or ""


def _notes(part: Any, index: int) -> Iterator[Note]:
    """Notes of a part with ties joined. Chord symbols, grace notes and drums without pitch are no sounding notes."""
    open_ties: dict[int, Note] = {}
    flat = part.flatten()
    for element in flat.notes:
        if "Harmony" in element.classes or not hasattr(element, "pitches"):
            continue
        onset, duration = float(element.getOffsetBySite(flat)), float(element.duration.quarterLength)
        if duration <= 0:
            continue
        for single in element.notes if element.isChord else [element]:
            note = Note(onset, duration, single.pitch.midi, None, index)
            tie = single.tie.type if single.tie is not None else None
            before = open_ties.pop(note.pitch, None)
            if before is not None:
                if tie in ("stop", "continue") and abs(before.onset + before.duration - onset) < 1e-6:
                    note = replace(before, duration=onset + duration - before.onset)
                else:
                    yield before
            if tie in ("start", "continue"):
                open_ties[note.pitch] = note
            else:
                yield note
    yield from open_ties.values()


def _spans(part: Any) -> list[tuple[float, float]]:
    """What is played, in order, in written time; measures that follow one another are one span."""
    measures = list(part.getElementsByClass("Measure"))
    end = float(part.highestTime)
    if not measures:
        return [(0.0, end)]
    starts = [float(measure.getOffsetBySite(part)) for measure in measures]
    bounds = list(pairwise([*starts, max(end, starts[-1])]))
    spans: list[tuple[float, float]] = []
    for index in _order(part, measures):
        start, stop = bounds[index]
        if spans and spans[-1][1] == start:
            spans[-1] = (spans[-1][0], stop)
        else:
            spans.append((start, stop))
    return spans


def _order(part: Any, measures: list[Any]) -> list[int]:
    """Indexes of the measures as they are played.

    An end of a repeat goes back to the last start, or where there is none to where the repeat before it ended: that is
    how tunes are written, and what music21's own expander does not do. Da capo and dal segno are not taken.
    """
    last = len(measures) - 1
    goes_back = {index: times for index, measure in enumerate(measures) if (times := _times(measure.rightBarline))}
    for index, measure in enumerate(measures[1:]):
        if times := _times(measure.leftBarline):
            goes_back.setdefault(index, times)
    begins = {index for index, measure in enumerate(measures) if _direction(measure.leftBarline) == "start"}
    places = {id(measure): index for index, measure in enumerate(measures)}
    endings: dict[int, set[int]] = {}
    for bracket in _all(part, "RepeatBracket"):
        for measure in bracket.getSpannedElements():
            if id(measure) in places:
                endings.setdefault(places[id(measure)], set()).update(bracket.numberRange)
    order: list[int] = []
    at = start = 0
    turn = 1
    while at <= last and len(order) < 20 * len(measures):
        if at in begins and at != start:
            start, turn = at, 1
        if at in endings and turn not in endings[at]:
            at += 1
            continue
        order.append(at)
        times = max(goes_back.get(at, 1), max((max(endings[i]) for i in endings if start <= i <= at), default=1))
        if at in goes_back and turn < times:
            turn += 1
            at = start
            continue
        if at in goes_back or (at in endings and at + 1 not in endings):
            start, turn = at + 1, 1
        at += 1
    return order


def _direction(line: Any) -> str | None:
    return line.direction if line is not None and "Repeat" in line.classes else None


def _times(line: Any) -> int:
    """How often what ends at this barline is played; 0 where no repeat ends."""
    return (line.times or 2) if _direction(line) == "end" else 0


def _all(stream: Any, kind: str) -> Iterable[Any]:
    return stream.recurse().getElementsByClass(kind)  # type: ignore[no-any-return]


def _key_name(key: Any) -> str:
    mode = getattr(key, "mode", None)
    if mode:
        return f"{key.tonic.name.replace('-', 'b')} {mode}"
    count = abs(key.sharps)
    return f"{count} {'sharp' if key.sharps >= 0 else 'flat'}{'' if count == 1 else 's'}"


def _tempo(mark: Any) -> float | None:
    bpm = mark.getQuarterBPM()
    return round(float(bpm), 3) if bpm else None


def _clean(text: object) -> str | None:
    return " ".join(str(text).split()) or None if text else None
