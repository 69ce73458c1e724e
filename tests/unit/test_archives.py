"""Archives of strangers: what is good comes out, what is hostile is named, and nothing runs out of memory or time."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import struct
import subprocess
import tarfile
import time
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from ingestion.archives import FLOOR, MB, Member, Refused, members
from storage.errors import Problem

FILES = {"a.mid": b"one", "folder/b.mid": b"", "folder/deep/ü ж.txt": bytes(range(256)) * 1000, "c.mid": b"two" * 5000}
TARS: dict[str, Callable[[bytes], bytes]] = {
    "tar": bytes, "tar.gz": gzip.compress, "tar.bz2": bz2.compress, "tar.xz": lzma.compress
}  # fmt: skip


def info(name: str = "x", kind: bytes = tarfile.REGTYPE, size: int = 0, **more: Any) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.size = kind, size
    for key, value in more.items():
        setattr(made, key, value)
    return made


def tar(*entries: tuple[tarfile.TarInfo, bytes], format: int = tarfile.GNU_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as archive:
        for entry, body in entries:
            archive.addfile(entry, io.BytesIO(body))
    return file.getvalue()


def tar_of(files: dict[str, bytes], format: int = tarfile.GNU_FORMAT) -> bytes:
    return tar(*((info(name, size=len(body)), body) for name, body in files.items()), format=format)


def zip_of(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr("empty folder/", b"")
        for name, body in files.items():
            entry = zipfile.ZipInfo("placeholder")
            entry.filename, entry.compress_type = name, method
            archive.writestr(entry, body)
    return file.getvalue()


def found(tmp_path: Path, body: bytes, **limits: Any) -> list[tuple[str, bytes] | Refused]:
    """Every member with its content, and every refusal."""
    path = tmp_path / "archive"
    path.write_bytes(body)
    listed: list[tuple[str, bytes] | Refused] = []
    for each in members(path, **limits):
        if isinstance(each, Member):
            with each.open() as file:
                listed.append((each.name, file.read()))
            assert len(listed[-1][1]) == each.size  # type: ignore[index,arg-type]
        else:
            listed.append(each)
    return listed


def refused(tmp_path: Path, body: bytes, **limits: Any) -> str:
    """The one sentence about an archive that is refused as a whole; it takes little memory and time."""
    (tmp_path / "archive").write_bytes(body)
    began = time.monotonic()
    tracemalloc.start()
    try:
        with pytest.raises(Problem) as caught:
            found(tmp_path, body, **limits)
        assert tracemalloc.get_traced_memory()[1] < len(body) * 2 + 2.5 * FLOOR
    finally:
        tracemalloc.stop()
    assert time.monotonic() - began < 10
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    return str(caught.value)


# --- good ones ---


@pytest.mark.parametrize("kind", ["zip", "stored", *TARS])
def test_members_come_in_order(tmp_path: Path, kind: str) -> None:
    body = TARS[kind](tar_of(FILES)) if kind in TARS else zip_of(FILES, zipfile.ZIP_STORED if kind == "stored" else 8)
    assert found(tmp_path, body) == list(FILES.items())
    assert found(tmp_path, body, pattern="**/*.mid") == [(n, b) for n, b in FILES.items() if n.endswith(".mid")]
    assert found(tmp_path, body, pattern="*.mid") == [("a.mid", b"one"), ("c.mid", b"two" * 5000)]
    assert [each.name for each in members(tmp_path / "archive")] == list(FILES)  # unread ones are passed over


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_and_all_formats_of_tar(tmp_path: Path, format: int) -> None:
    long = "/".join(["folder" * 10] * 4) + "/" + "n" * 90 if format != tarfile.USTAR_FORMAT else "d/" * 60 + "n" * 90
    files = {long: b"long", "short": b"short"} | ({"jé" * 100: b"x"} if format == tarfile.PAX_FORMAT else {})
    assert found(tmp_path, tar_of(files, format)) == list(files.items())


def test_an_archive_that_the_tar_command_made(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "file.txt").write_bytes(b"by tar")
    (folder / "link").symlink_to("sub/file.txt")
    subprocess.run(["tar", "-czf", tmp_path / "made.tar.gz", "-C", folder, "."], check=True)
    each = found(tmp_path, (tmp_path / "made.tar.gz").read_bytes())
    assert sorted(each, key=str) == [("sub/file.txt", b"by tar"), Refused("./link", "it is a link")]


def test_streams_one_after_another_and_padding(tmp_path: Path) -> None:
    body = tar_of(FILES)
    for squeeze in (gzip.compress, bz2.compress, lzma.compress):
        parts = squeeze(body[:5000]) + squeeze(body[5000:]) + bytes(1024)
        assert found(tmp_path, parts) == list(FILES.items())


def test_archives_in_archives_are_files(tmp_path: Path) -> None:
    inner = zip_of(FILES)
    assert found(tmp_path, zip_of({"inner.zip": inner}, zipfile.ZIP_STORED)) == [("inner.zip", inner)]
    assert found(tmp_path, tar_of({"inner.zip": inner})) == [("inner.zip", inner)]  # a zip at the end is no zip


def test_nothing_in_it(tmp_path: Path) -> None:
    assert found(tmp_path, zip_of({})) == []
    assert found(tmp_path, tar_of({})) == []


def test_a_member_is_read_in_its_turn_in_pieces_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "archive"
    path.write_bytes(gzip.compress(tar_of({"a": b"a" * 200_000, "b": b"b" * 200_000, "c": b"c"})))
    first, second, third = [], [], []
    each = members(path)
    first = next(each)
    assert isinstance(first, Member)
    file = first.open()
    assert file.read(10) == b"a" * 10
    second = next(each)
    assert isinstance(second, Member)
    with second.open() as file:
        assert file.read() == b"b" * 200_000
    third = next(each)
    assert isinstance(third, Member)
    for late in (first, second):
        with pytest.raises(ValueError, match="read once"):
            late.open()
    assert third.open().read() == b"c"


# --- names ---

BAD_NAMES = {
    "../evil": "leads out", "a/../../evil": "leads out", "a/..": "leads out", "..": "leads out",
    "/etc/passwd": "absolute", "//server/share": "absolute", "C:/Windows/x": "absolute", "c:x": "absolute",
    "..\\evil": "backslashes", "\\\\server\\x": "backslashes", "a\\b": "backslashes",
    "x" * 4000: "4,000 bytes", "ж" * 600: "1,200 bytes", "line\nfeed": "control", "bell\x07": "control",
    "./": "no name", "": "no name",
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_lead_elsewhere_are_refused_and_the_rest_is_taken(tmp_path: Path, name: str) -> None:
    files = {"before": b"1", name: b"evil", "after": b"2"}
    if not name.endswith("/"):  # a folder in a zip archive
        before, bad, after = found(tmp_path, zip_of(files))
        assert (before, after) == (("before", b"1"), ("after", b"2"))
        assert isinstance(bad, Refused)
        assert BAD_NAMES[name] in bad.reason
    for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        before, bad, after = found(tmp_path, gzip.compress(tar_of(files, format)), pattern="**/*")
        assert (before, after) == (("before", b"1"), ("after", b"2"))
        assert isinstance(bad, Refused)
        assert BAD_NAMES[name] in bad.reason
        assert len(bad.name) <= 200


def test_names_that_are_no_text(tmp_path: Path) -> None:
    body = tar_of({"caf\udce9.mid": b"x", "good": b"y"})
    assert found(tmp_path, body) == [Refused("caf\\udce9.mid", "its name is no valid UTF-8"), ("good", b"y")]
    packed = zip_of({"nul?evil.mid": b"x", "good": b"y"}).replace(b"nul?evil", b"nul\0evil")
    assert found(tmp_path, packed) == [
        Refused("nul\x00evil.mid", "its name has control characters in it"), ("good", b"y")
    ]  # fmt: skip
    broken = zip_of({"ü.mid": b"x"}).replace("ü".encode(), b"\xff\xff")
    assert "damaged, cut short or hostile: 'utf-8' codec can't decode" in refused(tmp_path, broken)


def test_the_second_of_two_of_one_name_is_refused(tmp_path: Path) -> None:
    twice = [(info("a", size=1), b"1"), (info("./a", size=1), b"2"), (info("b", size=1), b"3")]
    assert found(tmp_path, tar(*twice)) == [
        ("a", b"1"), Refused("./a", "there is one of that name already"), ("b", b"3")
    ]  # fmt: skip
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("a", b"1")
        archive.writestr("a", b"2")
    assert found(tmp_path, packed.getvalue()) == [("a", b"1"), Refused("a", "there is one of that name already")]


# --- kinds ---


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (tarfile.SYMTYPE, "it is a link"),
        (tarfile.LNKTYPE, "it is a link"),
        (tarfile.CHRTYPE, "it is no ordinary file"),
        (tarfile.BLKTYPE, "it is no ordinary file"),
        (tarfile.FIFOTYPE, "it is no ordinary file"),
        (b"Z", "it is no ordinary file"),
    ],
)
def test_links_and_devices_in_a_tar_archive(tmp_path: Path, kind: bytes, reason: str) -> None:
    odd = info("odd", kind, linkname="/etc/passwd", devmajor=1, devminor=5)
    body = tar((info("a", size=1), b"1"), (odd, b""), (info("b", size=1), b"2"))
    assert found(tmp_path, body) == [("a", b"1"), Refused("odd", reason), ("b", b"2")]


@pytest.mark.parametrize(
    ("mode", "reason"),
    [(0o120777, "it is a link"), (0o020666, "it is no ordinary file"), (0o010644, "it is no ordinary file")],
)
def test_links_and_devices_in_a_zip_archive(tmp_path: Path, mode: int, reason: str) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        odd = zipfile.ZipInfo("odd")
        odd.external_attr, odd.create_system = mode << 16, 3
        archive.writestr(odd, "/etc/passwd")
        archive.writestr("b", "2")
    assert found(tmp_path, file.getvalue()) == [Refused("odd", reason), ("b", b"2")]


def directory_flags(body: bytes, flags: int) -> bytes:
    """The zip archive with these flags on its first member."""
    changed = bytearray(body)
    for start, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = changed.find(start) + at
        struct.pack_into("<H", changed, place, flags)
    return bytes(changed)


def test_encrypted_members(tmp_path: Path) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("secret", "x")
        archive.writestr("open", "y")
    for flags in (0x1, 0x41, 0x2001):
        body = directory_flags(file.getvalue(), flags)
        assert found(tmp_path, body) == [Refused("secret", "it is encrypted"), ("open", b"y")]


def test_other_methods_of_compression(tmp_path: Path) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, zipfile.ZIP_DEFLATED):
            archive.writestr(str(method), bytes(100), method)
    *bad, good = found(tmp_path, file.getvalue())
    assert bad == [Refused(n, f"it is compressed by method {n}, which is not read here") for n in ("12", "14")]
    assert good == ("8", bytes(100))


@pytest.mark.parametrize("squeeze", [gzip.compress, bz2.compress, lzma.compress])
def test_streams_of_nothing_without_end(tmp_path: Path, squeeze: Callable[[bytes], bytes]) -> None:
    few = squeeze(b"") * 100 + squeeze(tar_of({"a": b"x" * 100}))
    assert found(tmp_path, few) == [("a", b"x" * 100)]
    for tiny in (b"", b"x"):
        began = time.monotonic()
        with pytest.raises(Problem, match=r"streams of next to nothing|damaged"):
            found(tmp_path, squeeze(tar_of({"a": b"x" * 100})) + squeeze(tiny) * 200_000)
        assert time.monotonic() - began < 2


def test_files_with_holes(tmp_path: Path) -> None:
    path = tmp_path / "holes"
    with path.open("wb") as file:
        file.truncate(50 * MB)
        file.seek(40 * MB)
        file.write(b"x")
        for step in range(100):  # more holes than fit into one header
            file.seek(step * 300_000)
            file.write(b"y")
    (tmp_path / "good").write_bytes(b"good")
    for format in ("gnu", "posix"):
        made = tmp_path / f"{format}.tar"
        subprocess.run(
            ["tar", f"--format={format}", "-cSf", made, "-C", tmp_path, "holes", "good"], check=True
        )  # fmt: skip
        bad, good = found(tmp_path, made.read_bytes())
        assert isinstance(bad, Refused)
        assert "holes" in bad.reason
        assert good == ("good", b"good")


# --- bombs ---


def test_what_is_too_large_for_one_is_refused_by_what_it_says_and_passed_over(tmp_path: Path) -> None:
    files = {"big": bytes(100_001), "good": b"x" * 100_000}
    reason = "it has 100,001 bytes, more than 100,000"
    for body in (zip_of(files), tar_of(files), bz2.compress(tar_of(files))):
        assert found(tmp_path, body, most_each=100_000) == [Refused("big", reason), ("good", b"x" * 100_000)]


@pytest.mark.parametrize("kind", ["zip", *TARS])
def test_what_is_too_large_in_all(tmp_path: Path, kind: str) -> None:
    files = {str(number): bytes([number]) * 300_000 for number in range(10)}
    body = TARS[kind](tar_of(files)) if kind in TARS else zip_of(files)
    assert len(found(tmp_path, body, most=4 * MB)) == 10
    assert "archive unpacks to more than 2 MB. It may be a bomb" in refused(tmp_path, body, most=2 * MB)


@pytest.mark.parametrize("squeeze", [gzip.compress, bz2.compress, lzma.compress])
def test_a_bomb_in_a_compressed_tar_archive(tmp_path: Path, squeeze: Callable[[bytes], bytes]) -> None:
    body = squeeze(tar_of({"bomb": bytes(40 * MB)}))
    assert len(body) < 200_000
    assert "unpacks to more than" in refused(tmp_path, body)
    assert "unpacks to more than" in refused(tmp_path, body, pattern="nothing")  # passing over unpacks, too
    after = squeeze(tar_of({"a": b"1"}) + bytes(40 * MB))
    assert "unpacks to more than" in refused(tmp_path, after)


def test_a_bomb_in_a_zip_archive(tmp_path: Path) -> None:
    one = zip_of({"bomb": bytes(40 * MB), "good": b"x"})
    assert found(tmp_path, one) == [Refused("bomb", "it unpacks to more than 200 times its size"), ("good", b"x")]
    many = zip_of({str(number): bytes(15 * MB) for number in range(10)})
    assert "unpacks to more than 29 MB" in refused(tmp_path, many)


def overlapping(files: int, quoted: bool) -> bytes:
    """Fifield's bombs: all members share one kernel; ``quoted``: each holds the headers of those after it."""
    kernel = bytes(MB)
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    data, plain = squeeze.compress(kernel) + squeeze.flush(), kernel
    local, entries = b"", []

    def header(name: bytes, size: int) -> bytes:
        return struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 8, 0, 0, zlib.crc32(plain), size, len(plain), 1, 0) + name

    for number in reversed(range(files)):
        name = bytes([97 + number])
        if local and quoted:
            plain = local + plain
            data = b"\0" + struct.pack("<HH", len(local), 0xFFFF ^ len(local)) + local + data
        local = header(name, len(data))
        entries.append((name, zlib.crc32(plain), len(data), len(plain)))
    body, directory = local + data, b""
    for at, (name, crc, packed, size) in enumerate(reversed(entries)):
        place = at * (len(local) + 5) if quoted else 0
        directory += (
            struct.pack(
                "<4s4B4H3L5H2L", b"PK\1\2", 20, 3, 20, 0, 0, 8, 0, 0, crc, packed, size, 1, 0, 0, 0, 0, 0, place
            )
            + name
        )
    return body + directory + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, files, files, len(directory), len(body), 0)


@pytest.mark.parametrize("quoted", [False, True])
def test_members_that_overlap(tmp_path: Path, quoted: bool) -> None:
    single = overlapping(1, quoted)
    assert found(tmp_path, single) == [("a", bytes(MB))]  # it is what it seems: a working bomb
    body = overlapping(20, quoted)
    (tmp_path / "bomb").write_bytes(body)
    with zipfile.ZipFile(tmp_path / "bomb") as archive, suppress(zipfile.BadZipFile):  # newer Pythons see it, too
        assert len(archive.read("a")) >= MB
    assert "its members overlap" in refused(tmp_path, body)


def test_millions_of_tiny_members(tmp_path: Path) -> None:
    one = tar_of({"x": b""})[:512]
    assert "has more than 1,000 members" in refused(tmp_path, gzip.compress(one * 100_000), most_members=1000)
    entry = struct.pack("<4s4B4H3L5H2L", b"PK\1\2", 20, 3, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    for count in (1_001, 20_000, 1_000_000):
        end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, len(entry) * count, 0, 0)
        assert "has more than 1,000 members" in refused(tmp_path, entry * count + end, most_members=1000)
    with (tmp_path / "directory").open("wb") as file:  # a gigabyte of it, that is none
        file.seek(1 << 30)
        file.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, 1 << 30, 0, 0))
        file.seek(0)
        file.write(b"PK")
    tracemalloc.start()
    with pytest.raises(Problem, match="has more than 1,000 members"):
        list(members(tmp_path / "directory", most_members=1000))
    assert tracemalloc.get_traced_memory()[1] < 10 * MB
    tracemalloc.stop()
    files = {str(number): b"" for number in range(1000)}
    for body in (zip_of(files), tar_of(files)):
        assert len(found(tmp_path, body, most_members=1001)) == 1000


# --- lies ---


def raw_header(name: str = "x", size: bytes = b"00000000000\0", kind: bytes = b"0") -> bytes:
    block = bytearray(tar_of({name: b""})[:512])
    block[124:136], block[156:157], block[148:156] = size, kind, b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (raw_header(size=b"\xff" * 10 + b"\xfe\0") + bytes(2048), "a member of negative size"),
        (raw_header(size=b"\x80" + b"\xff" * 11) + bytes(2048), "ends too soon"),
        (raw_header(size=b"77777777777\0") + bytes(2048), "ends too soon"),
        (raw_header(kind=b"L", size=b"77777777777\0") + bytes(2048), "a header of 8,589,934,591 bytes"),
        (raw_header(kind=b"x", size=b"00000200001\0") + bytes(100_000), "a header of 65,537 bytes"),
        (raw_header() + raw_header() + bytes(300), "truncated header"),
        (raw_header(), "empty header"),
        (raw_header() + b"garbage" * 100, "invalid header"),
    ],
)
def test_tar_headers_that_lie(tmp_path: Path, body: bytes, said: str) -> None:
    assert said in refused(tmp_path, body)
    assert said in refused(tmp_path, gzip.compress(body))


@pytest.mark.parametrize(
    "record",
    [
        b"99 path=x\n", b"0 path=x\n", b"-5 path=x\n", b"path=x\n", b"10 path=x", b"5 a=\n" + b"7" * 3000,
        b"14 size=1e999\n", b"13 size=-512\n", b"8 size=\n", b"1" * 60_000, b"9 =aaaaa\n", b"11 hdrcharset=",
    ],
)  # fmt: skip
def test_extended_headers_that_make_no_sense(tmp_path: Path, record: bytes) -> None:
    body = raw_header(kind=b"x", size=b"%011o\0" % len(record)) + record + bytes(-len(record) % 512)
    assert "damaged, cut short or hostile: a " in refused(tmp_path, body + tar_of({"a": b"1"}))


def test_extensions_without_end(tmp_path: Path) -> None:
    """A chain of them makes tarfile run out of stack."""
    long = (raw_header(kind=b"L", size=b"00000000002\0") + b"y\0" + bytes(510)) * 5000
    assert found(tmp_path, long + tar_of({"a": b"1"})) == [("y", b"1")]
    assert "members" in refused(tmp_path, long + tar_of({"a": b"1"}), most_members=4000)


def test_sizes_in_a_zip_archive_that_lie(tmp_path: Path) -> None:
    good = zip_of({"a": b"x" * 1000})
    directory = good.rfind(b"PK\x01\x02")
    for size in (10, 5000, 2**32 - 2):
        body = bytearray(good)
        struct.pack_into("<L", body, directory + 24, size)
        if size < 2**31:
            assert "damaged, cut short or hostile" in refused(tmp_path, bytes(body))
        else:
            assert isinstance(found(tmp_path, bytes(body))[0], Refused)
    for field, value in ((20, 5), (20, 2**31), (42, 7), (42, 2**31), (16, 12345)):  # packed size, place, checksum
        body = bytearray(good)
        struct.pack_into("<L", body, directory + field, value)
        assert "damaged, cut short or hostile" in refused(tmp_path, bytes(body))
    other = good[:directory] + good[directory:].replace(b"a", b"b")  # the member's own header says another name
    assert "damaged, cut short or hostile: File name in directory" in refused(tmp_path, other)


@pytest.mark.parametrize("kind", ["zip", *TARS])
def test_archives_that_were_cut_short(tmp_path: Path, kind: str) -> None:
    files = {"a": b"1", "b": zlib.compress(bytes(range(256)) * 5000)}
    body = TARS[kind](tar_of(files)) if kind in TARS else zip_of(files)
    end = len(body.rstrip(b"\0"))  # a tar archive ends with many zeros
    for length in range(1, end, max(1, end // 60)):
        said = refused(tmp_path, body[:length])
        assert "damaged, cut short" in said or "is no zip or tar archive" in said
    assert "is no zip or tar archive" in refused(tmp_path, b"")


@pytest.mark.parametrize("kind", ["tar.gz", "tar.bz2", "tar.xz", "zip"])
def test_a_changed_byte_is_found(tmp_path: Path, kind: str) -> None:
    content = zlib.compress(bytes(range(256)) * 500)
    body = TARS[kind](tar_of({"a": content})) if kind in TARS else zip_of({"a": content})
    for at in range(40, len(body), max(1, len(body) // 50)):
        spoiled = bytearray(body)
        spoiled[at] ^= 0x41
        try:
            each = found(tmp_path, bytes(spoiled))
        except Problem:
            continue
        assert ("a", content) in each or isinstance(each[0], Refused) or each[0][0] != "a"


def test_a_zip_archive_s_damage_spares_its_other_members(tmp_path: Path) -> None:
    body = bytearray(zip_of({"a": b"a" * 1000, "b": b"b" * 1000}, zipfile.ZIP_STORED))
    body[body.find(b"aaaa") + 100] = 0
    (tmp_path / "archive").write_bytes(body)
    contents = []
    for each in members(tmp_path / "archive"):
        assert isinstance(each, Member)
        try:
            contents.append(each.open().read())
        except Problem as problem:
            contents.append(str(problem).encode())
    assert b"Bad CRC-32 for file 'a'" in contents[0]
    assert contents[1] == b"b" * 1000


def test_a_dictionary_of_four_gigabytes(tmp_path: Path) -> None:
    body = bytearray(lzma.compress(tar_of({"a": b"1"})))
    header = slice(12, 12 + (body[12] + 1) * 4)
    block = bytearray(body[header])
    block[4] = 40
    block[-4:] = struct.pack("<L", zlib.crc32(block[:-4]))
    body[header] = block
    assert "Memory usage limit" in refused(tmp_path, bytes(body))


def test_a_gzip_name_without_end(tmp_path: Path) -> None:
    body = b"\x1f\x8b\x08\x08" + bytes(6) + b"x" * (20 * MB)
    assert "ends too soon" in refused(tmp_path, body)


@pytest.mark.parametrize(
    "body", [b"", b"hello", b"PK", b"PK\x03\x04", b"\x1f\x8b", b"BZh9", b"7z\xbc\xaf\x27\x1c" * 1000]
)
def test_what_is_no_archive(tmp_path: Path, body: bytes) -> None:
    said = refused(tmp_path, body)
    assert "no zip or tar archive" in said or "damaged, cut short" in said
    assert found(tmp_path, zip_of({}), name="theirs.zip") == []
    assert refused(tmp_path, body, name="theirs.zip").startswith("theirs.zip is")
    (tmp_path / "plain.gz").write_bytes(gzip.compress(b"no tar in it" * 100))
    with pytest.raises(Problem, match=r"plain\.gz is no zip or tar archive"):
        list(members(tmp_path / "plain.gz"))
