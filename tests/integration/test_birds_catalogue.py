"""Untidy catalogues of birds: what is read out of them, and what is told of the rest."""

from __future__ import annotations

from collections import Counter
from itertools import count
from pathlib import Path
from typing import Any

from transform_world import World
from upstreams import xeno_canto

from storage import transform

# what is written under "time": time, precision, part of the day
TIMES = {
    "07:00": ("07:00:00", "minute", None), "7:30": ("07:30:00", "minute", None), "06.15": ("06:15:00", "minute", None),
    "1815": ("18:15:00", "minute", None), "6h30": ("06:30:00", "minute", None), "17:20h": ("17:20:00", "minute", None),
    "7:30pm": ("19:30:00", "minute", None), "6:20 AM": ("06:20:00", "minute", None),
    "06:00:00 PM": ("18:00:00", "minute", None), "c. 5:40": ("05:40:00", "minute", None),
    "7 a.m.": ("07:00:00", "hour", None), "15": ("15:00:00", "hour", None), "7-8 am": ("07:00:00", "hour", None),
    "05:00-05:30": ("05:00:00", "hour", None), "12 am": ("00:00:00", "hour", None),
    "am": (None, None, "morning"), "manhã": (None, None, "morning"), "late afternoon": (None, None, "afternoon"),
    "noche": (None, None, "night"),
    "?": (None, None, None), "xx:xx": (None, None, None), "25:00": (None, None, None), "10:75": (None, None, None),
    "soon": (None, None, None), "": (None, None, None),
}  # fmt: skip
# the fields sp and ssp: epithet, subspecies, whether certain
NAMES = {
    ("alba", ""): ("alba", None, True), ("alba", "guttata"): ("alba", "guttata", True),
    ("alba guttata", ""): ("alba", "guttata", True), ("alba", "guttata (?)"): ("alba", "guttata", False),
    ("alba", "guttata?"): ("alba", "guttata", False), ("alba", "guttata (ssp assumed from location)"): ("alba",
    "guttata", False),
    ("alba", "alba/guttata"): ("alba", None, True), ("novae-seelandiae", ""): ("novae-seelandiae", None, True),
    ("sp.", ""): (None, None, True), ("sp", ""): (None, None, True), ("alba x glaucops", ""): (None, None, True),
    ("", ""): (None, None, True),
}  # fmt: skip
# what is written under "type": kinds of sound, and whether all are certain
TYPES = {
    "song": ({"song"}, True), "Canto": ({"song"}, True), "Gesang, Ruf": ({"song", "call"}, True),
    "call, calls": ({"call"}, True), "alarm call": ({"alarm call"}, True), "song?": ({"song"}, False),
    "alarm and flight calls": ({"alarm call", "flight call"}, True), "song and wing rattle": ({"song",
    "mechanical sound"}, True),
    "som mecânico": ({"mechanical sound"}, True), "vocalizaÃ§Ã£o": ({"call"}, True),
    "cri de vol": ({"flight call"}, True),
    "позывка, тревога": ({"call", "alarm call"}, True), "さえずり": ({"song"}, True),
    "dawn chorus": ({"dawn song"}, True),
    "male, song": ({"song"}, True), "uncertain": (set(), None), "frogs": (set(), None), "qwerty": (set(), None),
    "": (set(), None),
}  # fmt: skip
DATES = {
    "2012-11-24": ("2012-11-24", None, None), "1998-02-00": (None, 1998, 2), "1992-00-00": (None, 1992, None),
    "0000-00-00": (None, None, None), "2019-02-31": (None, 2019, 2), "1512-01-01": (None, None, None),
}  # fmt: skip
ALTITUDES = {"1200m": 1200.0, "1,250 m": 1250.0, "350-450": 400.0, "-2": -2.0, "?": None, "high": None}


def test_what_people_write_by_hand_is_read_as_far_as_it_can_be(world: World) -> None:
    entries: list[dict[str, Any]] = []
    # of every eleventh entry the double leaves out the remark, by which they are told apart here
    numbers = (number for number in count(1) if number % 11)
    for field, written in (("time", TIMES), ("type", TYPES), ("date", DATES), ("alt", ALTITUDES)):
        for value in written:
            number = next(numbers)
            entries.append(
                xeno_canto.entry(number, "Tyto alba", **{"type": "song", field: value, "rmk": f"{field}={value}"})
            )
    for sp, ssp in NAMES:
        number = next(numbers)
        entries.append(xeno_canto.entry(number, "Tyto alba", sp=sp, ssp=ssp, rmk=f"name={sp}|{ssp}"))
    for rec in ("GABRIEL LEITE", "Gabriel Leite", "Nunes D´Acosta", "Nunes D'Acosta"):
        number = next(numbers)
        entries.append(xeno_canto.entry(number, "Tyto alba", rec=rec, rmk=f"rec={rec}"))
    world.add("xeno_canto_recordings", entries)
    transform.build("birds", "core", world.settings("transformer"), say=print)

    def read(field: str, columns: str) -> dict[str, tuple[object, ...]]:
        found = world.rows(
            f"select substr(recording.remarks, {len(field) + 2}), {columns} from core.recording"
            f" left join staging.stg_xeno_canto__recordings as said using (recording_key)"
            f" where recording.source = 'xeno_canto' and recording.remarks like '{field}=%'"
        )
        return {str(row[0]): row[1:] for row in found}

    assert read("time", "recording.recorded_at::text, recording.recorded_at_precision, recording.part_of_day") == TIMES
    assert read("date", "recording.recorded_on::text, recording.recorded_year, recording.recorded_month") == DATES
    assert read("alt", "said.altitude_m") == {key: (value,) for key, value in ALTITUDES.items()}
    assert read("name", "said.epithet, recording.subspecies, recording.is_name_certain") == {
        f"{sp}|{ssp}": value for (sp, ssp), value in NAMES.items()
    }
    kinds = (
        "(select coalesce(array_agg(name order by name), '{}') from core.recording_sound_type"
        " join core.sound_type using (sound_type_id) where recording_id = recording.recording_id),"
        "(select bool_and(is_certain) from core.recording_sound_type where recording_id = recording.recording_id)"
    )
    assert {key: (set(names), sure) for key, (names, sure) in read("type", kinds).items()} == TYPES
    assert read("type", "recording.sex")["male, song"][0] is not None
    people = world.rows(
        "select name, count(*) from core.recordist join core.recording using (recordist_id)"
        " where recording.remarks like 'rec=%' group by 1 order by 1"
    )
    assert people == [("Gabriel Leite", 2), ("Nunes D'Acosta", 2)]
    untidy = dict(
        world.rows(
            "select field || ': ' || value, reason from staging.int_birds_untidy_values"
            " join core.recording using (recording_id) where source = 'xeno_canto'"
        )
    )
    expected = {
        "time: am": "the part of the day is known, not the time", "time: xx:xx": "says nothing",
        "time: 25:00": "cannot be read", "time: soon": "cannot be read", "date: 0000-00-00": "says nothing",
        "date: 1998-02-00": "the month is known, not the day", "date: 2019-02-31": "no such day",
        "date: 1992-00-00": "the year is known, not the day", "altitude: high": "cannot be read",
        "species: Tyto alba x glaucops": "a hybrid", "species: Tyto sp.": "no species",
        "subspecies: Tyto alba guttata (?)": "not certain", "subspecies: Tyto alba alba/guttata": "several subspecies",
        "sound type: frogs": "another source of sound", "sound type: qwerty": "no known word",
        "sound type: uncertain": "says nothing",
    }  # fmt: skip
    assert expected.items() <= untidy.items()


def test_of_the_real_catalogue_little_cannot_be_read_and_all_of_it_is_told(world: World, data: Path) -> None:
    entries = xeno_canto.real(data / "xeno_canto" / "recordings.csv")
    world.add("xeno_canto_recordings", entries)
    transform.build("birds", "core", world.settings("transformer"), say=print)
    mine = "from core.recording where source = 'xeno_canto'"
    assert world.value(f"select count(*) {mine}") == len(entries)
    untidy = Counter(
        (field, reason)
        for field, reason in world.rows("select field, reason from staging.int_birds_untidy_values"
                                        " join core.recording using (recording_id) where source = 'xeno_canto'")
    )  # fmt: skip
    # whatever is written is in a column, or told of
    for field, column, key in (("time", "recorded_at", "time"), ("date", "recorded_on", "date")):
        written = sum(bool(entry[key].strip()) for entry in entries)
        told = sum(times for (name, _), times in untidy.items() if name == field)
        assert world.value(f"select count({column}) {mine}") + told == written, field
    silent = world.value(
        f"select count(*) {mine} and recording_id not in (select recording_id from core.recording_sound_type)"
        " and recording_id not in (select recording_id from staging.int_birds_untidy_values where field = 'sound type')"
    )
    assert silent == sum(not entry["type"].strip() for entry in entries)
    # and of what says anything, nearly all is read
    parts = sum(len(entry["type"].split(",")) for entry in entries)
    assert untidy["sound type", "no known word"] < 0.01 * parts
    assert untidy["time", "cannot be read"] == 0
    assert untidy["date", "cannot be read"] == untidy["date", "no such day"] == 0
    assert world.value(f"select count(*) {mine} and subspecies is not null") > 200
    unknown = world.rows(
        "select distinct f.name from core.family f join core.genus g using (family_id)"
        " join core.species using (genus_id)"
        " join core.recording_species using (species_id) join core.recording using (recording_id)"
        " where source = 'xeno_canto' and role = 'foreground' and f.name = 'unknown'"
    )
    assert unknown == []
    for (field, reason), times in sorted(untidy.items()):
        print(f"{field:<12}{reason:<45}{times:>6}")
