"""Fuzzing of what reads bytes of strangers: MIDI, audio, archives, scores and JSON pages.

    cd tests && python -m faults.fuzz --minutes 10            # findings go to fuzz-findings/

An input is a good file, mutated; the same kind and number give the same input for ever, so a finding is reproduced by
``--kinds audio --start 4711 --inputs 1``. A reader may take it or refuse it with one sentence. Anything else is a
finding: another error, a crash of the process, more than SECONDS, or more than MEGABYTES. Readers run in a process of
their own.
"""

from __future__ import annotations

import argparse
import bz2
import gzip
import io
import itertools
import json
import lzma
import multiprocessing
import os
import random
import re
import resource
import struct
import tarfile
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

SECONDS = 20.0
MEGABYTES = 700
_PROCESSES = multiprocessing.get_context("spawn")
_ODD = [
    *(0, 1, -1, 0.5, -0.0, 1e308, -1e-308, 2**31, 2**63, -(2**63) - 1, 2**64, 10**30, True, False, None),
    *("", "x", "\x00", "\ud800", "..", "é" * 50, "9" * 400, "1e999", "2024-02-30", "-1", "NaN", "null", "a\nb"),
    *([], {}, [[]]),
]  # fmt: skip


# --- inputs ---


def mutated(body: bytes, dice: random.Random, others: list[bytes]) -> bytes:
    """A few changes such as a bad disk, a bad program or a bad person makes."""
    changed = bytearray(body)
    for _ in range(dice.choice((1, 1, 2, 3, 8))):
        at = dice.randrange(len(changed)) if changed else 0
        near = dice.randrange(min(len(changed), 80)) if changed else 0
        length = dice.choice((1, 2, 4, 16, 300))
        kind = dice.randrange(10)
        if kind == 0:
            del changed[at:]
        elif kind == 1:
            changed[at : at + length] = dice.randbytes(length)
        elif kind == 2:
            del changed[at : at + length]
        elif kind == 3:
            changed[at:at] = changed[at : at + length] * dice.choice((1, 2, 50))
        elif kind == 4:
            changed[near : near + 1] = bytes([dice.choice((0, 1, 0x7F, 0x80, 0xFE, 0xFF))])
        elif kind == 5:
            width = dice.choice(["<H", ">H", "<I", ">I", "<Q"])
            size = struct.calcsize(width)
            place = dice.choice((at, near))
            number = dice.choice((0, 1, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)) & (256**size - 1)
            changed[place : place + size] = struct.pack(width, number)
        elif kind == 6 and changed:
            changed[at] ^= 1 << dice.randrange(8)
        elif kind == 7:
            other = dice.choice(others)
            changed[at:] = other[dice.randrange(len(other)) :]
        elif kind == 8:
            other = dice.choice(others)
            start = dice.randrange(len(other))
            changed[at:at] = other[start : start + length]
        else:
            middle = len(changed) // 2
            changed = changed[middle:] + changed[:middle] if dice.random() < 0.1 else changed
    return bytes(changed[: 4 << 20])


def midi_input(dice: random.Random) -> bytes:
    if dice.random() < 0.5:
        return mutated(dice.choice(_midi_files()), dice, _midi_files())
    tracks = b""
    count = dice.choice((0, 1, 1, 2, 2, 17, 300))
    for _ in range(count):
        events = b"".join(_midi_event(dice) for _ in range(dice.choice((0, 3, 30, 400))))
        events += dice.choices((b"\x00\xff\x2f\x00", b""), (20, 1))[0]
        tracks += b"MTrk" + struct.pack(">I", dice.choices((len(events), 0, 0xFFFFFFFF), (50, 1, 1))[0]) + events
    division = dice.choice((96, 96, 96, 480, 480, 1, 0, 0x7FFF, 0xE728, 0x8000))
    return (
        b"MThd"
        + struct.pack(
            ">IHHH", dice.choices((6, 0, 7), (20, 1, 1))[0], dice.choice((0, 1, 1, 2, 3)), count & 0xFFFF, division
        )
        + tracks
    )


def _midi_event(dice: random.Random) -> bytes:
    """An event as it should be, but for one in a hundred."""
    if dice.random() < 0.01:
        return dice.randbytes(dice.choice((1, 3, 9)))
    delta = dice.choices((b"\x00", b"\x60", b"\x83\x60", b"\xff\xff\xff\x7f"), (9, 9, 3, 0.05))[0]
    kind = dice.randrange(8)
    if kind < 5:
        status = dice.choice((0x90, 0x90, 0x80, 0x99, 0xB0, 0xC0, 0xE0)) + dice.choice((0, 0, 0, 5))
        data = bytes((dice.randrange(128), dice.randrange(128)))
        return delta + bytes((status,)) + (data[:1] if 0xC0 <= status < 0xE0 else data)
    body = dice.randbytes(dice.choice((0, 2, 3, 4, 5, 40)))
    meta = bytes((0xFF, dice.choice((0x03, 0x51, 0x58, 0x59, 0x54, 0x7F))))
    return delta + dice.choice((meta, meta, meta, b"\xf0")) + bytes((len(body),)) + body


@cache
def _midi_files() -> list[bytes]:
    from storage.media import midi
    from storage.media.frames import Note

    notes = [Note(n / 3, 0.5, 40 + n % 50, 1 + n % 127, n % 3) for n in range(60)]
    return [midi.write(notes, tracks=("a", "b")), midi.write(notes[:1]), midi.write([])]


def audio_input(dice: random.Random) -> bytes:
    return mutated(dice.choice(_sounds()), dice, _sounds())


@cache
def _sounds() -> list[bytes]:
    import numpy as np
    import soundfile

    kinds = {
        "WAV": ("PCM_16", "PCM_U8", "FLOAT", "MS_ADPCM", "ULAW"), "FLAC": ("PCM_16", "PCM_24"), "RF64": ("PCM_16",),
        "MP3": ("MPEG_LAYER_III",), "AIFF": ("PCM_16",), "W64": ("PCM_16",), "CAF": ("ALAC_16",),
        "OGG": ("VORBIS", "OPUS"),
    }  # fmt: skip
    sounds = []
    for rate, channels in ((48_000, 1), (16_000, 2)):
        samples = np.random.default_rng(1).normal(0, 0.1, (rate // 3, channels))
        for format, encodings in kinds.items():
            for encoding in encodings:
                file = io.BytesIO()
                soundfile.write(file, samples, rate, format=format, subtype=encoding)
                sounds.append(file.getvalue())
    return sounds


def archive_input(dice: random.Random) -> bytes:
    squeeze: Callable[[bytes], bytes] = dice.choice((gzip.compress, bz2.compress, lzma.compress, bytes, bytes))
    archive = dice.choice(_archives())
    if archive.startswith(b"PK"):
        return mutated(archive, dice, _archives())
    inner = mutated(archive, dice, _archives()) if dice.random() < 0.7 else archive
    if dice.random() < 0.5:
        inner = _summed(inner)
    outer = squeeze(inner)
    return mutated(outer, dice, _archives()) if dice.random() < 0.3 else outer


def _summed(tar: bytes) -> bytes:
    """The archive with right checksums on all blocks that look like headers: so that what they say is believed."""
    fixed = bytearray(tar)
    for at in range(0, len(fixed) - 511, 512):
        if fixed[at + 257 : at + 262] == b"ustar":
            fixed[at + 148 : at + 156] = b" " * 8
            fixed[at + 148 : at + 156] = b"%06o\0 " % sum(fixed[at : at + 512])
    return bytes(fixed)


@cache
def _archives() -> list[bytes]:
    files = {"a.mid": b"x" * 700, "folder/b.txt": b"", "l" * 150: b"long" * 300, "ü/é": bytes(3000)}
    archives = []
    for format in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w", format=format) as tar:
            for name, body in files.items():
                info = tarfile.TarInfo(name[:90] if format == tarfile.USTAR_FORMAT else name)
                info.size = len(body)
                tar.addfile(info, io.BytesIO(body))
            for kind in (tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE):
                info = tarfile.TarInfo("odd")
                info.type, info.linkname = kind, "/etc/passwd"
                tar.addfile(info)
        archives.append(file.getvalue()[:-8192])
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", method) as archive:
            for name, body in files.items():
                archive.writestr(name, body)
            with archive.open("zip64", "w", force_zip64=True) as large:
                large.write(b"x")
            archive.comment = b"comment"
        archives.append(file.getvalue())
    return archives


def score_input(dice: random.Random) -> bytes:
    """MusicXML, plain or packed. Not ABC and kern: they come from packages, and music21 reads them in its own time."""
    plain, packed = _scores()
    if dice.random() < 0.3:
        return mutated(packed, dice, [packed])
    words = plain.decode().replace(">", "> ").replace("<", " <").split(" ")
    for _ in range(dice.choice((1, 1, 3, 10))):
        at = dice.randrange(len(words))
        odd = str(dice.choice([*_ODD, 960, 1000003, "1e9999999"]) if dice.random() < 0.3 else dice.randrange(1, 17))
        kind = dice.choices(range(4), (12, 1, 1, 1))[0]
        if kind == 0:
            words[dice.choice([n for n, word in enumerate(words) if word and "<" not in word and ">" not in word])] = (
                odd
            )
        elif kind == 1:
            words[at:at] = words[at : at + dice.choice((1, 9, 60))] * dice.choice((1, 5, 40))
        elif kind == 2:
            del words[at : at + dice.choice((1, 5))]
        else:
            words.insert(at, odd)
    text = " ".join(words)[: 1 << 20].encode("utf-8", "surrogatepass")
    return mutated(text, dice, [plain]) if dice.random() < 0.2 else text


@cache
def _scores() -> tuple[bytes, bytes]:
    note = "<note><pitch><step>{}</step><octave>4</octave></pitch><duration>{}</duration>{}</note>"
    notes = "".join(
        note.format("CDEFGAB"[n % 7], 1 + n % 4, '<tie type="start"/>' if n % 5 == 0 else "") for n in range(8)
    )
    measure = (
        "<measure><attributes><divisions>2</divisions><key><fifths>1</fifths><mode>minor</mode></key>"
        "<time><beats>3</beats><beat-type>4</beat-type></time><transpose><chromatic>-2</chromatic></transpose>"
        f"</attributes><direction><sound tempo='90'/></direction>{notes}<backup><duration>2</duration></backup>"
        "<barline><ending type='start' number='1,2'/><repeat direction='backward' times='2'/></barline></measure>"
    )
    xml = (
        "<score-partwise><work><work-title>T</work-title></work><part-list><score-part id='P1'>"
        "<part-name>Soprano</part-name></score-part></part-list>"
        f"<part id='P1'>{measure}{measure}</part></score-partwise>"
    ).encode()
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("META-INF/container.xml", "<container><rootfile full-path='a.xml'/></container>")
        archive.writestr("a.xml", xml)
    return xml, file.getvalue()


def json_input(dice: random.Random) -> bytes:
    """A page as one of the sources gets it, with odd values in odd places."""
    page = json.loads(json.dumps(dice.choice(_pages())))
    for _ in range(dice.choice((1, 1, 1, 2, 5, 20))):
        place, key = _somewhere(page, dice)
        if place is not None:
            place[key] = dice.choice([*_ODD, page if dice.random() < 0.01 else 7])
    try:
        text = json.dumps(page).encode()
    except (ValueError, RecursionError):  # a page within itself
        text = b"[" * dice.choice((900, 995, 1000, 10_000))
    if dice.random() < 0.05:
        depth = dice.choice((100, 101, 500, 900, 950, 970, 985, 990, 995, 5000))
        text = text.replace(b'"x"', b"[" * depth + b"]" * depth)
    return mutated(text, dice, [text]) if dice.random() < 0.1 else text


def _somewhere(page: Any, dice: random.Random) -> tuple[Any, Any]:
    place, key = None, None
    while isinstance(page, (dict, list)) and page and (place is None or dice.random() < 0.8):
        place = page
        key = dice.choice(list(page)) if isinstance(page, dict) else dice.randrange(len(page))
        page = page[key]
    return place, key


@cache
def _pages() -> list[Any]:
    rolls = {"train": [[[60, 64], [], [67]]] * 3, "valid": [[[1], [127]]]}
    recording = {
        "id": "1", "sp": "troglodytes", "gen": "Troglodytes", "lic": "//creativecommons.org/licenses/by/4.0/",
        "lat": "1.5", "lon": None, "length": "1:02", "uploaded": "2024-01-01", "also": ["x"], "file-name": "a.mp3",
    }  # fmt: skip
    listing = {"numRecordings": "2", "numSpecies": "1", "page": 1, "numPages": 1, "recordings": [recording] * 2}
    sound = {"key": 1, "media": [{"type": "Sound", "identifier": "https://x/y.mp3"}], "modified": "2024-01-01T00:00:00"}
    return [rolls, listing, {"offset": 0, "limit": 2, "endOfRecords": True, "count": 2, "results": [sound] * 2}]


# --- readers ---


def read_midi(body: bytes) -> None:
    from storage.media import frames, midi

    found = midi.read(body, "theirs.mid")
    for grid in frames.GRIDS:
        frames.fingerprint(frames.to_frames(found.notes, grid), grid)
    midi.read(midi.write(found.notes), "ours.mid")


def read_audio(body: bytes) -> None:
    from storage.media import audio

    audio.verify(body, name="theirs")
    for _ in audio.cut(audio.blocks(body, 16_000, name="theirs"), 80_000, 16_000):
        pass


def read_archive(body: bytes) -> None:
    from ingestion.archives import Member, members

    with tempfile.NamedTemporaryFile() as file:
        file.write(body)
        file.flush()
        for each in members(Path(file.name), name="theirs.zip", most_members=5_000):
            if isinstance(each, Member):
                with each.open() as stream:
                    size = sum(len(chunk) for chunk in iter(lambda stream=stream: stream.read(1000), b""))
                assert size == each.size
                assert ".." not in each.name.split("/")
                assert not each.name.startswith("/")
            each.name.encode()


def read_score(body: bytes) -> None:
    from storage.media import frames, scores

    for tune in scores.read(body, ".mxl" if body.startswith(b"PK") else ".xml", "theirs"):
        if isinstance(tune, scores.Tune):
            for grid in frames.GRIDS:
                frames.fingerprint(frames.to_frames(scores.played(tune), grid), grid)


def read_json(body: bytes) -> None:
    from upstreams.landed_bytes import META, LandedBytes

    from ingestion import catalogue
    from ingestion.contract import Bad, BadPage, Blob
    from ingestion.rows import check, hash_of, key_text

    refusals, kept = [], 0
    for each in (one for source in catalogue.sources() if not source.simulated for one in source.resources):
        if each.store == "objects":
            continue
        try:
            for record in each.parse(LandedBytes(body, "jsb_chorales/x-quarter.json", **META)):
                if isinstance(record, Bad):
                    assert record.reason.strip()
                elif not check(each, {k: v.suffix if isinstance(v, Blob) else v for k, v in record.items()}):
                    kept += 1
                    key_text(tuple(map(record.get, each.key)))
                    hash_of(each, {k: v.suffix if isinstance(v, Blob) else v for k, v in record.items()})
        except BadPage as refusal:
            refusals.append(str(refusal).strip())
    if refusals and not kept:
        raise BadPage(refusals[0])


KINDS: dict[str, tuple[Callable[[random.Random], bytes], Callable[[bytes], None]]] = {
    "midi": (midi_input, read_midi),
    "audio": (audio_input, read_audio),
    "archive": (archive_input, read_archive),
    "score": (score_input, read_score),
    "json": (json_input, read_json),
}


# --- the run ---


@dataclass
class Tally:
    """What became of the inputs of a kind."""

    taken: int = 0
    refused: int = 0
    findings: list[tuple[int, str]] = field(default_factory=list)  # number of the input, what happened


def made(kind: str, number: int) -> bytes:
    return KINDS[kind][0](random.Random(f"{kind} {number}"))


def read(kind: str, body: bytes) -> None:
    KINDS[kind][1](body)


def _serve(line: Connection, reads: Callable[[str, bytes], None]) -> None:
    """The process that reads: gets (kind, body), tells what came of it and the memory that it has come to."""
    from ingestion.contract import BadPage
    from storage.errors import Problem

    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # decoders chatter
    while job := line.recv():
        kind, body = job
        said = "taken"
        try:
            reads(kind, body)
        except (Problem, BadPage) as refusal:
            text = str(refusal)
            fine = text.strip() and "\n" not in text and (isinstance(refusal, BadPage) or len(text) < 1000)
            said = "refused" if fine else f"a poor sentence: {text!r:.300}"
        except BaseException:
            said = traceback.format_exc()
        line.send((said, _peak_megabytes()))


def _peak_megabytes() -> int:
    """The most memory this process has had; getrusage counts its parent's too, from before it was on its own."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) >> 10  # type: ignore[index]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


class Reader:
    """A process that reads inputs, made anew when one has killed it."""

    def __init__(self, reads: Callable[[str, bytes], None] = read) -> None:
        self._reads = reads

    def __enter__(self) -> Reader:
        self._line, theirs = _PROCESSES.Pipe()
        self._process = _PROCESSES.Process(target=_serve, args=(theirs, self._reads), daemon=True)
        self._process.start()
        theirs.close()
        self._peak = 0
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.join()
        self._line.close()

    def read(self, kind: str, body: bytes) -> str:
        """``taken``, ``refused``, or what is wrong."""
        try:
            self._line.send((kind, body))
            if not self._line.poll(SECONDS + (40 if not self._peak else 0)):  # the first one waits for imports
                self._again()
                return f"more than {SECONDS:.0f} seconds"
            said, peak = self._line.recv()
        except (EOFError, OSError):
            self._process.join()
            code = self._process.exitcode
            self._again()
            return f"the process ended with {code}"
        before, self._peak = self._peak or peak, max(peak, self._peak)
        if peak > before + MEGABYTES:
            self._again()
            return f"{peak - before} MB"
        return str(said)

    def _again(self) -> None:
        self.__exit__()
        self.__enter__()


def run(kinds: list[str], start: int, inputs: int | None = None, seconds: float | None = None) -> dict[str, Tally]:
    """So many inputs of each kind from number ``start`` on, or as many as the time allows."""
    tallies = {kind: Tally() for kind in kinds}
    end = time.monotonic() + (seconds or 1e9)
    with Reader() as reader:
        for kind in kinds:
            reader.read(kind, made(kind, 0))  # imports, and the memory they take
        for number in itertools.count(start):
            if number - start == inputs or time.monotonic() > end:
                break
            for kind, tally in tallies.items():
                said = reader.read(kind, made(kind, number))
                tally.taken += said == "taken"
                tally.refused += said == "refused"
                if said not in ("taken", "refused"):
                    tally.findings.append((number, said))
    return tallies


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--inputs", type=int, help="this many of each kind, however long it takes")
    parser.add_argument("--start", type=int, default=0, help="number of the first input")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--folder", type=Path, default=Path("fuzz-findings"))
    parser.add_argument("--report", type=Path, help="write what came of it into this Markdown file")
    given = parser.parse_args()
    began = time.monotonic()
    tallies = run(given.kinds, given.start, given.inputs, None if given.inputs else given.minutes * 60)
    for kind, tally in tallies.items():
        total = tally.taken + tally.refused + len(tally.findings)
        print(f"{kind}: {total:,} inputs, {tally.taken:,} taken, {tally.refused:,} refused,", end=" ")
        print(f"{len(tally.findings)} findings")
        for number, said in tally.findings:
            given.folder.mkdir(exist_ok=True)
            (given.folder / f"{kind}-{number}").write_bytes(made(kind, number))
            (given.folder / f"{kind}-{number}.txt").write_text(said)
            print(f"  {number}: {said.strip().splitlines()[-1][:200]}")
    if given.report:
        given.report.write_text(report(tallies, given.start, (time.monotonic() - began) / 60))


def report(tallies: dict[str, Tally], start: int, minutes: float) -> str:
    """A page of what came of a run."""
    lines = [
        "# The last long run of the fuzzer",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, {minutes:.0f} minutes, inputs from number {start}. Written by `--report` of "
        "`tests/faults/fuzz.py`; [what it is and what it has found](../fuzzing.md).",
        "",
        "| what is read | inputs | taken | refused with a sentence | findings |",
        "|---|---:|---:|---:|---:|",
    ]
    for kind, tally in tallies.items():
        total = tally.taken + tally.refused + len(tally.findings)
        lines.append(f"| {kind} | {total:,} | {tally.taken:,} | {tally.refused:,} | {len(tally.findings)} |")
    for kind, tally in tallies.items():
        lines += [
            "",
            *(f"* {kind} {number}: `{said.strip().splitlines()[-1][:200]}`" for number, said in tally.findings),
        ]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    main()
