"""The page of sources is the catalogue's own, and the source that the README shows keeps the source contract."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pytest
import yaml
from upstreams.landed_bytes import LandedBytes

from ingestion import catalogue, rows
from ingestion.contract import Bad, Context, Page, Resource, Source
from storage.errors import Problem
from storage.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TABLE = "scientific_name,english_name\nTyto alba,Barn Owl\n,Nobody\nMenura novaehollandiae,\n"


def test_the_page_of_sources_is_up_to_date() -> None:
    page = (ROOT / "docs" / "sources.md").read_text(encoding="utf-8")
    assert page == catalogue.page(), "run: .venv/bin/python -m ingestion.catalogue > docs/sources.md"


def test_the_page_of_sources_names_every_table_and_option() -> None:
    page = catalogue.page()
    for source in catalogue.sources():
        assert f"\n## {source.name}\n" in page
        assert source.licence in page
        assert [r.name for r in source.resources if f"`raw.{source.table(r)}`" not in page] == []
        assert [option for option in source.config if f"| `{option}` |" not in page] == []


@pytest.fixture
def example() -> Source:
    """The README's source, as a module."""
    code = re.search(r'```python\n(""".*?)```', README, re.DOTALL)
    assert code
    module = ModuleType("checklist")
    exec(compile(code[1], "README.md", "exec"), module.__dict__)  # noqa: S102 - the page's own lines
    found: Source = module.SOURCE
    return found


def fetch(source: Source, location: Path | str, cursor: dict[str, object] | None = None) -> list[Page]:
    resource = source.resources[0]
    context = Context({"location": str(location)}, cursor or {}, resource, None, Settings(), lambda text: None)
    return [page for page in resource.fetch(context) if isinstance(page, Page)]


def test_the_example_fetches_what_is_new(example: Source, tmp_path: Path) -> None:
    assert {option: default for option, (default, _) in example.config.items()} == {"location": ""}
    assert fetch(example, "") == []
    with pytest.raises(Problem, match=r"birds\.csv"):
        fetch(example, tmp_path)
    (tmp_path / "birds.csv").write_text(TABLE)
    (page,) = fetch(example, tmp_path)
    assert page.body == TABLE.encode()
    assert fetch(example, tmp_path, page.cursor) == []
    (tmp_path / "birds.csv").write_text(TABLE + "Corvus corax,Raven\n")
    assert len(fetch(example, tmp_path, page.cursor)) == 1


def test_the_example_parses_records_that_keep_its_contract(example: Source) -> None:
    resource: Resource = example.resources[0]
    found = list(resource.parse(LandedBytes(TABLE.encode(), "birds.csv")))
    records = [one for one in found if not isinstance(one, Bad)]
    assert [record["scientific_name"] for record in records] == ["Tyto alba", "Menura novaehollandiae"]
    assert [rows.check(resource, record) for record in records] == ["", ""]
    assert [one.reason for one in found if isinstance(one, Bad)] == ["no scientific name"]
    assert all(field.metadata[b"description"] for field in resource.schema)
    assert set(resource.key) <= set(resource.schema.names)
    assert resource.schema.field("scientific_name").nullable is False
    assert isinstance(resource.schema, pa.Schema)


def test_the_example_fits_into_the_catalogue_and_the_warehouse(
    example: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = re.search(r'```python\n    "([\w.]+)",\n```', README)
    assert line and line[1].rsplit(".", 1)[1] == example.name not in catalogue.names()
    module = ModuleType(line[1])
    module.SOURCE = example  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, line[1], module)
    monkeypatch.setattr(catalogue, "SOURCES", (*catalogue.SOURCES, line[1]))
    assert catalogue.source("checklist") is example
    assert "## checklist" in catalogue.page()
    table = example.table(example.resources[0])
    assert table not in {one.table(r) for one in catalogue.sources()[:-1] for r in one.resources}
    create, *_ = rows.ddl(example, example.resources[0], {})
    assert f'raw."{table}"' in create


def test_the_example_is_read_by_dbt_under_the_name_of_its_table(example: Source) -> None:
    entry = re.search(r"```yaml\n(.*?)```", README, re.DOTALL)
    model = re.search(r"```sql\n(.*?)```", README, re.DOTALL)
    assert entry and model
    assert [table["name"] for table in yaml.safe_load(entry[1])] == [example.table(example.resources[0])]
    asked = re.search(r"current_version\('(\w+)', '(\w+)'\)", model[1])
    assert asked and asked.groups() == (example.name, example.resources[0].name)
    columns = re.findall(r"^    (\w+),?$", model[1], re.MULTILINE)
    assert columns == example.resources[0].schema.names
