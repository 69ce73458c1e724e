"""Pages about the warehouse, made of a few tables and answers by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from defusedxml import ElementTree

from infra.reference import analyses, dictionary, drawing, plots, schema
from infra.reference.drawing import Box, Line
from infra.reference.schema import Column, Key, Table
from storage.errors import Problem

GOLDEN = Path(__file__).parent / "golden"
SPECIES = Table(
    "core", "species", "birds", "Species.",
    (Column("species_id", "text", True, "Surrogate key."), Column("name", "text", False, "Genus | epithet.")),
    (Key("p", ("species_id",), "", "PRIMARY KEY (species_id)"), Key("u", ("name",), "", "UNIQUE (name)")),
)  # fmt: skip
CLIP = Table(
    "core", "clip", "birds", "Clips.",
    (
        Column("clip_id", "text", True, "The clip."),
        Column("species_id", "text", True, "Who sings."),
        Column("length_s", "double precision", False, "Seconds."),
    ),
    (
        Key("p", ("clip_id",), "", "PRIMARY KEY (clip_id)"),
        Key("f", ("species_id",), "species", "FOREIGN KEY (species_id) REFERENCES core.species(species_id)"),
        Key("c", ("length_s",), "", "CHECK ((length_s > (0)::double precision))"),
    ),
)  # fmt: skip
MART = Table("marts", "dim_species", "birds", "For readers.", (SPECIES.columns[0],), (SPECIES.keys[0],))
MANIFEST = {
    "nodes": {
        f"model.lyrebird.{name}": {
            "resource_type": "model", "alias": name, "fqn": ["lyrebird", layer, "birds", name],
            "tags": [layer, "birds"], "config": {"group": "birds", "materialized": "table"},
            "depends_on": {"nodes": parents},
        }
        for name, layer, parents in (
            ("stg_clips", "staging", ["source.raw.clips", "source.ops.load"]),
            ("clip", "core", ["model.lyrebird.stg_clips", "model.lyrebird.species"]),
            ("species", "core", ["model.lyrebird.stg_clips"]),
            ("dim_species", "marts", ["model.lyrebird.species"]),
        )
    },
    "sources": {
        "source.raw.clips": {"resource_type": "source", "source_name": "raw", "name": "clips"},
        "source.ops.load": {"resource_type": "source", "source_name": "ops", "name": "load"},
    },
    "exposures": {
        "exposure.lyrebird.models": {
            "resource_type": "exposure", "label": "Models", "depends_on": {"nodes": ["model.lyrebird.dim_species"]}
        }
    },
}  # fmt: skip


@pytest.mark.parametrize("name", ["birds.md", "birds-keys.svg", "birds-lineage.svg"])
def test_a_small_dictionary_is_as_it_was(name: str) -> None:
    """A change that is meant: look at the new page, and keep it as the golden one."""
    pages = dictionary.pages([CLIP, SPECIES, MART], MANIFEST)
    assert pages[name] == (GOLDEN / f"dictionary-{name}").read_text(encoding="utf-8")


def test_a_dictionary_without_marts_is_refused() -> None:
    with pytest.raises(Problem, match="no mart is published"):
        dictionary.pages([CLIP, SPECIES], MANIFEST)


def test_a_table_says_what_its_columns_are_part_of() -> None:
    assert [CLIP.kinds(column.name) for column in CLIP.columns] == ["p", "f", ""]
    assert CLIP.parents() == [(("species_id",), "species")]
    assert schema.domain("core", "recording") == "birds"
    assert schema.domain("core", "somebody_elses") == ""


def test_boxes_stand_near_their_neighbours_and_never_on_each_other() -> None:
    boxes = [Box(f"{side}{n}", column) for column, side in enumerate("ab") for n in range(6)]
    crossed = [Line(f"b{n}", f"a{5 - n}") for n in range(6)]
    columns = drawing._ordered(boxes, crossed)
    assert [box.name[1] for box in columns[0]] == [str(5 - int(box.name[1])) for box in columns[1]]
    picture = drawing.draw("Boxes <and> lines", boxes, crossed, ("left", "right"))
    assert picture == drawing.draw("Boxes <and> lines", boxes, crossed, ("left", "right"))
    tree = ElementTree.fromstring(picture)
    places = [one.get("transform") for one in tree.iter("{http://www.w3.org/2000/svg}g")]
    assert len(set(places)) == len(boxes)
    assert "prefers-color-scheme: dark" in picture


def question(**changes: object) -> analyses.Question:
    given = {"name": "birds_q", "text": "How many?", "written": "-- How many?\nselect 1", "compiled": "",
             "answer": "{first[n]} to {last[n]} in {rows} rows.", "plot": None}  # fmt: skip
    return analyses.Question(**(given | changes))  # type: ignore[arg-type]


def test_an_answer_is_a_page_with_a_sentence_a_short_table_and_the_query() -> None:
    rows = [(f"a|b {n}\n" + "x" * 80, n * 5_000, None, n > 0) for n in range(25)]
    page = analyses.page(question(), analyses.Answer(["name", "n", "nothing", "is_simulated"], rows))
    assert "0 to 120000 in 25 rows. **Partly simulated**" in page
    assert "| --- | ---: | --- | --- |" in page
    assert "| a\\|b 2 xxx" in page and "| 10,000 |  | yes |" in page
    assert page.count("\n| a") == analyses.SHOWN
    assert "5 more rows." in page
    assert max(len(line) for line in page.splitlines()) < 120
    assert "```sql\n-- How many?\nselect 1\n```" in page


def test_an_answer_without_rows_says_so_and_needs_no_sentence() -> None:
    page = analyses.page(question(), analyses.Answer(["n"], []))
    assert "No rows" in page
    assert "imulated" not in page


@pytest.mark.parametrize(
    ("marks", "word"), [([True, True], "all"), ([True, False], "some"), ([False], "none"), ([None], "none")]
)
def test_simulated_rows_are_called_simulated(marks: list[bool | None], word: str) -> None:
    assert analyses.Answer(["is_simulated"], [(mark,) for mark in marks]).simulated == word
    assert analyses.Answer(["n"], [(1,)]).simulated == "none"


@pytest.mark.parametrize(
    "plot",
    [
        {"kind": "lines", "x": "n", "y": "m", "by": "name", "y_label": "metres, m"},
        {"kind": "bars", "x": "m", "label": ["name", "n"], "logarithmic": True},
        {"kind": "ranges", "low": "n", "x": "m", "high": "h", "label": ["name"]},
    ],
)
def test_a_plot_is_small_labelled_and_the_same_each_time(plot: dict[str, object], tmp_path: Path) -> None:
    rows = [{"name": f"row {n}", "n": n, "m": n + 1.5, "h": n + 2} for n in range(30)]
    for path in (tmp_path / "one.svg", tmp_path / "two.svg"):
        plots.draw(plot | {"x_label": "seconds, s"}, rows, "some", path)
    first = (tmp_path / "one.svg").read_bytes()
    assert first == (tmp_path / "two.svg").read_bytes()
    assert len(first) < 200_000
    words = "".join(ElementTree.fromstring(first).itertext())
    assert "seconds, s" in words and "partly simulated data" in words
    assert ("row 19" in words) == ("label" in plot)
    assert "row 29" not in words
