"""From bird files to clips on real stores: new, changed, damaged and withdrawn recordings, from folders and S3."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import soundfile

from ingestion import pipeline
from ingestion.derive import clips
from ingestion.locations import Location
from ingestion.sources import audio_folder, aviary
from storage import warehouse
from storage.errors import Problem
from storage.media import audio
from storage.objects import Objects
from storage.settings import options_file

if TYPE_CHECKING:
    from support import Stack

SOURCES = (aviary.SOURCE, audio_folder.SOURCE, clips.SOURCE)
QUIET = {"say": lambda text: None}


def song(path: Path, seed: int, seconds: float = 7.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.random.default_rng(seed).normal(0, 0.1, round(22_050 * seconds))
    soundfile.write(path, samples, 22_050, subtype="PCM_16")


def query(stack: Stack, text: str) -> list[tuple[Any, ...]]:
    with closing(warehouse.connect(stack.settings("loader"))) as db, db, db.cursor() as sql:
        sql.execute(text)
        return sql.fetchall()


def current(stack: Stack, table: str, column: str) -> dict[str, Any]:
    """Key -> a column of the current version in published loads."""
    source = "clips" if table == "clips" else table.rsplit("_", 1)[0]
    return dict(
        query(
            stack,
            f"select _key, {column} from (select distinct on (r._key) r.* from raw.{table} as r join ops.load as l "
            f"on l.source = '{source}' and l.load = r._load and l.state = 'published' "
            "order by r._key, r._load desc, r._position desc) as c where not _deleted",
        )
    )


def load(stack: Stack, *sources: Any) -> set[str]:
    """Ingest and judge; gives the states of the loads."""
    settings, states = stack.settings("loader"), set()
    for source in sources:
        pipeline.ingest(source, settings, **QUIET)
        states |= {state for state, _ in pipeline.judge(source, settings, **QUIET).values()}
    return states


@pytest.fixture(scope="module")
def configured(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A small aviary and a folder of recordings with labels: 60 files, so that one damaged one is few."""
    root = tmp_path_factory.mktemp("data") / "birds"
    for number in range(60):
        song(root / "clips" / f"{number:02d}.wav", number)
    labels = "".join(f"{number:02d}.wav,Tyto alba\n" for number in range(50)) + "missing.wav,Tyto alba\n"
    (root / "clips.csv").write_text(f"file,scientific_name\n{labels}")
    options_file().write_text(f"[sources.aviary]\nrecordings = 8\n[sources.audio_folder]\nlocation = '{root}'\n")
    yield root
    options_file().unlink()
    settings = stack.settings("admin")  # other modules of the session find the stores as they were
    with closing(warehouse.connect(settings)) as db, db, db.cursor() as sql:
        for source in SOURCES:
            for resource in source.resources:
                sql.execute(f'drop table raw."{source.table(resource)}"')
            for table in ("load", "cursor", "landing", "quarantine", "ledger"):
                sql.execute(f"delete from ops.{table} where source = %s", (source.name,))
    objects = Objects(stack.settings("loader"))
    for source in SOURCES:
        for key in list(objects.list("landing", f"{source.name}/")):
            objects.delete("landing", key)


def test_recordings_become_clips_and_a_second_time_nothing_happens(stack: Stack, configured: Path) -> None:
    assert load(stack, *SOURCES) == {"published"}
    found = current(stack, "clips", "clip_object")
    assert len(found) == 8 + 60 * 2
    assert {key for key in found if key.startswith("audio_folder:clips/07.wav:")} == {
        "audio_folder:clips/07.wav:0",
        "audio_folder:clips/07.wav:5000",
    }
    body = Objects(stack.settings("loader")).get("derived", found["aviary:SIM00001:0"])
    assert audio.probe(body).sample_rate_hz == 16_000
    labels = current(stack, "audio_folder_labels", "label_set")
    files = current(stack, "audio_folder_audio", "sha256")
    assert set(labels.values()) == {"birds"}
    assert labels.keys() - files.keys() == {"clips/missing.wav"}  # a label without a file: kept, and to be seen
    assert len(files.keys() - labels.keys()) == 10  # files without a label too
    assert load(stack, *SOURCES) == set()


def test_changed_damaged_and_withdrawn_files_take_their_clips_along(stack: Stack, configured: Path) -> None:
    load(stack, *SOURCES)
    before = current(stack, "clips", "audio_sha256")
    song(configured / "clips" / "00.wav", 100, seconds=3.0)  # shorter: its second clip must go
    (configured / "clips" / "01.wav").write_bytes(b"RIFF no audio")
    (configured / "clips" / "02.wav").unlink()
    for number in range(60, 110):
        song(configured / "clips" / f"{number}.wav", number, seconds=2.0)
    assert load(stack, audio_folder.SOURCE, clips.SOURCE) == {"published"}
    after = current(stack, "clips", "audio_sha256")
    gone = {
        f"audio_folder:clips/{name}" for name in ("00.wav:5000", "01.wav:0", "01.wav:5000", "02.wav:0", "02.wav:5000")
    }
    assert before.keys() - after.keys() == gone
    assert len(after.keys() - before.keys()) == 50
    changed = {key for key in before.keys() & after.keys() if before[key] != after[key]}
    assert changed == {"audio_folder:clips/00.wav:0"}
    reasons = query(stack, "select payload, reason from ops.quarantine where source = 'clips'")
    assert len(reasons) == 1 and "clips/01.wav" in reasons[0][1]
    assert "clips/02.wav" not in current(stack, "audio_folder_audio", "sha256")


def test_s3_is_a_location_like_any_other(stack: Stack) -> None:
    admin, settings = stack.settings("admin"), stack.settings("loader")
    objects = Objects(admin)
    objects.client.create_bucket(Bucket="shelf")
    elsewhere = {  # whose keys are not the loader's
        "endpoint": admin.s3_endpoint,
        "access_key": admin.s3_access_key,
        "secret_key": admin.s3_secret_key.get_secret_value(),
        "region": admin.s3_region,
    }
    bodies = {"clips.csv": b"file,scientific_name\n", "clips/a b.wav": b"one", "clips/deep/ü.wav": bytes(6_000_000)}
    for name, body in (bodies | {".hidden": b"x"}).items():
        objects.put("shelf", f"corpora/birds/{name}", body)
    location = Location("s3://shelf/corpora/birds/", settings, elsewhere)
    entries = location.list()
    assert {entry.name: entry.size for entry in entries} == {name: len(body) for name, body in bodies.items()}
    assert all(entry.etag for entry in entries) and location.name == "birds"
    assert [entry.name for entry in location.list("clips/*.wav")] == ["clips/a b.wav"]
    for name, body in bodies.items():
        assert location.read(name) == body == location.fetch(name).read_bytes()
    single = Location("s3://shelf/corpora/birds/clips.csv", settings, elsewhere)
    assert [entry.name for entry in single.list()] == ["clips.csv"] and single.read("clips.csv") == bodies["clips.csv"]
    with pytest.raises(Problem, match="there is no"):
        Location("s3://shelf/nothing", settings, elsewhere).list()
    with pytest.raises(Problem, match="s3://shelf/corpora"):  # the platform's own keys do not open it
        Location("s3://shelf/corpora/birds/", settings).list()
    with pytest.raises(Problem, match="S3 has no option key"):
        Location("s3://shelf/corpora/birds/", settings, {"key": "x"})
    with pytest.raises(Problem, match="there is no"):
        location.read("clips/none.wav")
    with pytest.raises(Problem, match="not a name below"):
        location.open("../birds/clips.csv")
