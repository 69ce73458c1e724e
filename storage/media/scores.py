"""Written music (MusicXML, kern, ABC) as notes.

A score is read as it is written: ties are joined, repeats are not. :func:`played` gives the notes as they sound, with
the repeats taken, which is what frames and models want.

kern and ABC are read by music21. MusicXML, which is most of what there is, is read here (:class:`_MusicXml`), six times
as fast; a test compares the two. Scores come from strangers: archives are opened with caps, XML is parsed with
defusedxml (no external entities, no entity bombs), and whatever is wrong with a score is one error that names it. An
ABC file holds many tunes, each read by itself, so that a broken one does not take the others with it.
"""

from __future__ import annotations

import io
import re
import struct
import warnings
import zipfile
import zlib
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate, zip_longest
from typing import TYPE_CHECKING, Any

from storage.errors import Problem
from storage.media.frames import GRIDS, MAX_STEPS, Note

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
MAX_MEMBERS = 1_000  # of a compressed score: itself, its container, pictures
MAX_NOTES = 200_000  # written, and played
MAX_QUARTERS = MAX_STEPS * GRIDS["16th"]  # frames of any grid hold it
MAX_SOUNDING = 1_000_000.0  # quarters of all notes together
MAX_PARTS = 200
MAX_MEASURES = 20_000
MAX_DENOMINATOR = 10**12  # of a quarter: the smallest parts that tuplets of real music have in common are far larger
# music21's time grows with the square of these. The longest in its corpora: a tune of 2,556 characters, 3,077 lines.
MAX_TUNE = 5_000
MAX_KERN_LINES = 6_000
MAX_KERN_BYTES = 1 << 18
# In music, not in what is written about it: music21 takes for ever over a bar of 99,999 quarters.
_HUGE_NUMBER = re.compile(r"(?m)^(?!!|%|[A-JN-PR-UW-Za-z]:).*[0-9]{5}")
_STEPS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
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
    if len(data) > MAX_BYTES:
        raise ScoreError(name, f"{len(data):,} bytes are more than {MAX_BYTES:,}")
    if suffix == ".abc":
        return [_attempt(tune, number, f"{name}#{number}") for number, tune in _abc_tunes(_text(data), name)]
    if suffix == ".krn":
        if len(data) > MAX_KERN_BYTES or data.count(b"\n") > MAX_KERN_LINES:
            raise ScoreError(name, f"more than {MAX_KERN_LINES:,} lines or {MAX_KERN_BYTES:,} bytes of kern")
        return [_from_music21("Humdrum", _text(data), None, name)]
    if suffix in (".mxl", ".musicxml", ".xml"):
        root = _xml(_unpacked(data, name) if suffix == ".mxl" else data, name)
        return [_from_musicxml(root, name)]
    raise ScoreError(name, f"no reader for {suffix or 'a file without a suffix'}")


def played(tune: Tune) -> list[Note]:
    """The notes as they sound: repeats taken, and a note that a jump cuts off ends there."""
    onsets = [note.onset for note in tune.notes]
    notes = []
    at = 0.0
    for start, end in tune.spans:
        for note in tune.notes[bisect_left(onsets, start) : bisect_left(onsets, end)]:
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
        if len(text) > MAX_TUNE:
            raise ScoreError(name, f"{len(text):,} characters are more than {MAX_TUNE:,}")
        return _from_music21("ABC", text, number, name)
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
    if data.count(b"PK\x01\x02") > MAX_MEMBERS:  # zipfile makes an object of each
        raise ScoreError(name, f"an archive of more than {MAX_MEMBERS:,} files")
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
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, RuntimeError, ValueError) as error:
        raise ScoreError(name, f"no intact archive: {error!s:.200}") from error


def _member(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, name: str) -> bytes:
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # zipfile unpacks others without bounds
        raise ScoreError(name, f"it is compressed by method {entry.compress_type}, which is not read here")
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


@dataclass(frozen=True)
class _Measure:
    """What the order of playing depends on. Times are in quarters."""

    start: float
    end: float
    begins: bool = False  # a repeat starts here
    times: int = 0  # a repeat ends here, and so often it is played; 0 where none ends
    endings: frozenset[int] = frozenset()  # it is played in these turns only; empty: in all


def _spans(measures: Sequence[_Measure]) -> tuple[tuple[float, float], ...]:
    """What is played, in order, in written time; measures that follow one another are one span."""
    spans: list[tuple[float, float]] = []
    for index in _order(measures):
        start, end = measures[index].start, measures[index].end
        if spans and abs(spans[-1][1] - start) < 1e-9:
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((start, end))
    return tuple(spans)


def _order(measures: Sequence[_Measure]) -> list[int]:
    """Indexes of the measures as they are played.

    An end of a repeat goes back to the last start, or where there is none to where the repeat before it ended: that is
    how tunes are written. Da capo and dal segno are not taken.
    """
    order: list[int] = []
    at = start = 0
    turn = 1
    while at < len(measures) and len(order) < 20 * len(measures):
        measure = measures[at]
        if measure.begins and at != start:
            start, turn = at, 1
        if measure.endings and turn not in measure.endings:
            at += 1
            continue
        order.append(at)
        if measure.times:
            turns = max(measure.times, *(max(one.endings, default=1) for one in measures[start : at + 1]))
            if turn < turns:
                turn += 1
                at = start
                continue
        following = measures[at + 1].endings if at + 1 < len(measures) else frozenset()
        if measure.times or (measure.endings and not following):
            start, turn = at + 1, 1
        at += 1
    return order


def _joined(notes: Iterable[tuple[Note, bool, bool]]) -> Iterator[Note]:
    """Notes of one part with ties joined, out of (note, tied to the one before, tied to the next one)."""
    waiting: dict[int, Note] = {}
    for note, goes_on, stays_open in notes:
        whole = note
        before = waiting.get(note.pitch)
        # A tie ends at a note that says so: another voice may touch the same pitch meanwhile.
        if goes_on and before is not None and abs(before.onset + before.duration - note.onset) < 1e-6:
            whole = replace(before, duration=note.onset + note.duration - before.onset)
            del waiting[note.pitch]
        if stays_open:
            if note.pitch in waiting:
                yield waiting[note.pitch]
            waiting[note.pitch] = whole
        else:
            yield whole
    yield from waiting.values()


def _checked(tune: Tune, name: str) -> Tune:
    if not tune.notes:
        raise ScoreError(name, "no notes in it")
    if len(tune.notes) > MAX_NOTES:
        raise ScoreError(name, f"{len(tune.notes):,} notes are more than {MAX_NOTES:,}")
    if max(tune.quarters, sum(end - start for start, end in tune.spans)) > MAX_QUARTERS:
        raise ScoreError(name, f"it lasts more than {MAX_QUARTERS:,.0f} quarters")
    onsets = [note.onset for note in tune.notes]
    sounding = list(accumulate((note.duration for note in tune.notes), initial=0.0))
    played = [(bisect_left(onsets, start), bisect_left(onsets, end)) for start, end in tune.spans]
    if sum(last - first for first, last in played) > MAX_NOTES:
        raise ScoreError(name, f"with its repeats, it has more than {MAX_NOTES:,} notes")
    if max(sounding[-1], sum(sounding[last] - sounding[first] for first, last in played)) > MAX_SOUNDING:
        raise ScoreError(name, f"its notes sound for more than {MAX_SOUNDING:,.0f} quarters together")
    return tune


def _sorted(notes: Iterable[Note]) -> tuple[Note, ...]:
    return tuple(sorted(notes, key=lambda note: (note.onset, note.part, note.pitch)))


def _leading(parts: Sequence[str]) -> int:
    """Index of the part whose barlines count: the first singer, or the top of the score."""
    return next((index for index, part in enumerate(parts) if _VOICE.match(part)), 0)


def _from_musicxml(root: Element, name: str) -> Tune:
    if root.tag != "score-partwise":
        raise ScoreError(name, f"no partwise MusicXML, but <{root.tag}>")
    try:
        return _checked(_MusicXml(root).tune(), name)
    except (ValueError, TypeError, ZeroDivisionError, OverflowError) as error:
        raise ScoreError(name, f"MusicXML that makes no sense: {error}") from error


class _MusicXml:
    """One pass over a partwise score. The element names are MusicXML's; https://www.w3.org/2021/06/musicxml40/."""

    def __init__(self, root: Element) -> None:
        self.root = root
        self.parts = root.findall("part")
        if len(self.parts) > MAX_PARTS or any(len(part) > MAX_MEASURES for part in self.parts):
            raise ValueError(f"more than {MAX_PARTS:,} parts, or {MAX_MEASURES:,} measures")
        names = {part.get("id"): _clean(part.findtext("part-name")) for part in root.iter("score-part")}
        self.names = tuple(names.get(part.get("id")) or "" for part in self.parts)
        self.divisions = [Fraction(1)] * len(self.parts)
        self.transpose = [0] * len(self.parts)
        self.bar = Fraction(4)
        self.time: str | None = None
        self.key: str | None = None
        self.tempo: float | None = None

    def tune(self) -> Tune:
        columns = list(zip_longest(*(part.findall("measure") for part in self.parts)))
        raw: list[list[tuple[Note, bool, bool]]] = [[] for _ in self.parts]
        measures: list[_Measure] = []
        turns: frozenset[int] = frozenset()
        start = Fraction(0)
        leading = _leading(self.names)
        for column in columns:
            length = Fraction(0)
            for part, measure in enumerate(column):
                if measure is not None:
                    length = max(length, self._measure(measure, part, start, raw[part]))
            end = start + (length or self.bar)
            begins, times = False, 0
            closes = False
            for line in column[leading].findall("barline") if column[leading] is not None else []:
                ending, repeat = line.find("ending"), line.find("repeat")
                if ending is not None and ending.get("type") == "start":
                    turns = frozenset(int(turn) for turn in re.findall(r"\d+", ending.get("number", "")[:40]))
                closes = closes or (ending is not None and ending.get("type") in ("stop", "discontinue"))
                if repeat is not None and repeat.get("direction") == "forward":
                    begins = True
                elif repeat is not None:
                    times = int(repeat.get("times", "2"))
            measures.append(_Measure(float(start), float(end), begins, times, turns))
            turns = frozenset() if closes else turns
            start = end
        composer = next((one.text for one in self.root.iter("creator") if one.get("type") == "composer"), None)
        return Tune(
            number=None,
            title=_clean(self.root.findtext("work/work-title") or self.root.findtext("movement-title")),
            composer=_clean(composer),
            time_signature=self.time,
            key_signature=self.key,
            tempo_bpm=self.tempo,
            parts=self.names,
            notes=_sorted(note for part in raw for note in _joined(part)),
            spans=_spans(measures),
        )

    def _measure(self, measure: Element, part: int, start: Fraction, notes: list[tuple[Note, bool, bool]]) -> Fraction:
        """Add the notes of a measure; its length in quarters, as far as anything is written in it."""
        at = before = length = Fraction(0)
        for item in measure:
            duration = _number(item.findtext("duration") or "0") / self.divisions[part]
            if duration < 0 or (start + at).denominator > MAX_DENOMINATOR:
                raise ValueError("times that make no rhythm")
            if item.tag == "attributes":
                self._attributes(item, part)
            elif item.tag in ("sound", "direction"):
                sound = item if item.tag == "sound" else item.find("sound")
                if sound is not None and sound.get("tempo") and self.tempo is None:
                    self.tempo = round(float(sound.get("tempo", "")), 3)
            elif item.tag == "backup":
                at = max(Fraction(0), at - duration)
            elif item.tag == "forward":
                at += duration
            elif item.tag == "note":
                onset = before if item.find("chord") is not None else at
                before, at = onset, max(at, onset + duration)
                length = max(length, at)
                pitch = item.find("pitch")
                if pitch is not None and duration > 0 and item.find("cue") is None:
                    ties = {tie.get("type") for tie in item.findall("tie")}
                    midi = _midi_pitch(pitch, self.transpose[part])
                    note = Note(float(start + onset), float(duration), midi, None, part)
                    notes.append((note, "stop" in ties, "start" in ties))
        return length

    def _attributes(self, item: Element, part: int) -> None:
        if divisions := item.findtext("divisions"):
            self.divisions[part] = _number(divisions)
        if (transpose := item.find("transpose")) is not None:
            octaves = _number(transpose.findtext("octave-change") or "0")
            self.transpose[part] = round(_number(transpose.findtext("chromatic") or "0") + 12 * octaves)
        if (time := item.find("time")) is not None and time.findtext("beats"):
            beats, beat = (time.findtext("beats") or "4")[:40], int(_number(time.findtext("beat-type") or "4"))
            self.bar = 4 * sum(map(_number, beats.split("+"))) / Fraction(beat)
            if self.bar <= 0:
                raise ValueError(f"a time of {beats}/{beat}")
            self.time = self.time or f"{beats}/{beat}"
        if self.key is None and (fifths := item.findtext("key/fifths")):
            self.key = _key_name(int(_number(fifths)), _clean(item.findtext("key/mode")))


@lru_cache(4096)
def _number(text: str) -> Fraction:
    """A number as MusicXML writes them. Fraction itself would also take 1e999999999, and work it out."""
    if not re.fullmatch(r"\s{0,9}[+-]?[0-9]{1,9}(\.[0-9]{0,9})?\s{0,9}", text):
        raise ValueError(f"a number {text[:20]!r}")
    return Fraction(text)


def _midi_pitch(pitch: Element, transpose: int) -> int:
    step = (pitch.findtext("step") or "").strip()
    if step not in _STEPS:
        raise ValueError(f"a note named {step[:20]!r}")
    octave, alter = _number(pitch.findtext("octave") or ""), _number(pitch.findtext("alter") or "0")
    midi = round(12 * (octave + 1) + _STEPS[step] + alter) + transpose
    if not 0 <= midi <= 127:
        raise ValueError(f"a note of MIDI pitch {midi}")
    return midi


def _key_name(sharps: int, mode: str | None) -> str:
    """``F# minor``; ``3 sharps`` where no church mode is named."""
    degrees = {
        "lydian": -1,
        "major": 0,
        "ionian": 0,
        "mixolydian": 1,
        "dorian": 2,
        "minor": 3,
        "aeolian": 3,
        "phrygian": 4,
    }
    if mode not in degrees or abs(sharps) > 7:
        return f"{abs(sharps)} {'sharp' if sharps >= 0 else 'flat'}{'' if abs(sharps) == 1 else 's'}"
    place = sharps + degrees[mode]  # along the circle of fifths, C = 0
    letter, accidentals = "FCGDAEB"[(place + 1) % 7], (place + 1) // 7
    return f"{letter}{'#' * accidentals if accidentals > 0 else 'b' * -accidentals} {mode}"


def _from_music21(format: str, text: str, number: int | None, name: str) -> Tune:
    """``Humdrum`` (kern) or ``ABC`` text through music21: its complaints go nowhere, its errors become ours."""
    if _HUGE_NUMBER.search(text):
        raise ScoreError(name, "a number of more than four digits in its music")
    try:
        from music21.converter import subConverters
    except ImportError as error:
        raise Problem(f"reading {format} needs music21", "Install it with: pip install 'lyrebird[demo]'") from error
    converter: Any = getattr(subConverters, f"Converter{format}")()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            converter.parseData(text)
            tune = _music21_tune(converter.stream, number)
        except Exception as error:
            raise ScoreError(name, f"{type(error).__name__}: {error}") from error
    return _checked(tune, name)


def _music21_tune(score: Any, number: int | None) -> Tune:
    parts = list(score.parts) or [score]
    names = tuple(_clean(getattr(part, "partName", None)) or "" for part in parts)
    metadata = score.metadata
    keys = ((key.sharps, getattr(key, "mode", None)) for key in _all(score, "KeySignature"))
    tempos = (mark.getQuarterBPM() for mark in _all(score, "MetronomeMark"))
    return Tune(
        number=number,
        title=_clean(metadata.title or metadata.movementName) if metadata else None,
        composer=_clean(metadata.composer) if metadata else None,
        time_signature=next((meter.ratioString for meter in _all(score, "TimeSignature")), None),
        key_signature=next((_key_name(*key) for key in keys), None),
        tempo_bpm=next((round(float(bpm), 3) for bpm in tempos if bpm), None),
        parts=names,
        notes=_sorted(note for index, part in enumerate(parts) for note in _joined(_music21_notes(part, index))),
        spans=_spans(_music21_measures(parts[_leading(names)])),
    )


def _music21_notes(part: Any, index: int) -> Iterator[tuple[Note, bool, bool]]:
    """Notes of a part. Chord symbols, grace notes and drums without pitch are no sounding notes."""
    flat = part.flatten()
    for element in flat.notes:
        duration = float(element.duration.quarterLength)
        if "Harmony" in element.classes or not hasattr(element, "pitches") or duration <= 0:
            continue
        onset = float(element.getOffsetBySite(flat))
        for single in element.notes if element.isChord else [element]:
            tie = single.tie.type if single.tie is not None else None
            note = Note(onset, duration, single.pitch.midi, None, index)
            yield note, tie in ("stop", "continue"), tie in ("start", "continue")


def _music21_measures(part: Any) -> list[_Measure]:
    measures = list(part.getElementsByClass("Measure"))
    end = float(part.highestTime)
    starts = [float(measure.getOffsetBySite(part)) for measure in measures]
    endings: dict[int, frozenset[int]] = {}
    for bracket in _all(part, "RepeatBracket"):
        for measure in bracket.getSpannedElements():
            endings[id(measure)] = frozenset(bracket.numberRange)
    found = []
    for index, measure in enumerate(measures):
        left, right = measure.leftBarline, measure.rightBarline
        after = measures[index + 1].leftBarline if index + 1 < len(measures) else None
        stop = starts[index + 1] if index + 1 < len(measures) else max(end, starts[index])
        times = next((line.times or 2 for line in (right, after) if line and _direction(line) == "end"), 0)
        turns = endings.get(id(measure), frozenset())
        found.append(_Measure(starts[index], stop, _direction(left) == "start", times, turns))
    return found or [_Measure(0.0, end)]


def _direction(line: Any) -> str | None:
    return str(line.direction) if line is not None and "Repeat" in line.classes else None


def _all(stream: Any, kind: str) -> Iterable[Any]:
    return stream.recurse().getElementsByClass(kind)  # type: ignore[no-any-return]


def _clean(text: object) -> str | None:
    return " ".join(str(text).split()) or None if text else None
