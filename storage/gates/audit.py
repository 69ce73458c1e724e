"""Run one Great Expectations suite over one query, keep the result in ``ops.audit`` and in the Data Docs.

Great Expectations judges the data as data: counts, distributions, drift against what was accepted last. Records are
judged by the page contract, structure by dbt: no rule twice. Severity decides: critical stops, warning shows.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storage import warehouse
from storage.errors import Problem
from storage.gates import data_docs
from storage.objects import Objects
from storage.settings import Settings, home

if TYPE_CHECKING:
    import great_expectations as gx

PREFIX = "audits"  # of the Data Docs in the bucket `docs`
KEPT = 100  # keys of failing rows that are kept with a result


@dataclass(frozen=True)
class Verdict:
    """What an audit found. ``accepted`` unless something critical failed."""

    accepted: bool
    severity: str
    reason: str
    failed: list[dict[str, Any]] = field(default_factory=list)
    docs: str = ""


def run(
    settings: Settings,
    objects: Objects,
    *,
    subject: str,
    kind: str,
    domain: str,
    query: str,
    expectations: Sequence[gx.expectations.Expectation],
    statistics: dict[str, Any],
    key: str | None = None,
) -> Verdict:
    """Audit what ``query`` gives. ``key`` is the column that names failing rows; the query may hold no ``%``.

    Raises Problem, and writes nothing down, when an expectation could not be evaluated.
    """
    os.environ["GX_ANALYTICS_ENABLED"] = "False"
    import great_expectations as gx
    from great_expectations.checkpoint import UpdateDataDocsAction

    logging.getLogger("great_expectations").setLevel(logging.ERROR)
    folder = home() / "gx"
    with _exclusively(folder):
        context = _context(folder)
        source = context.data_sources.add_postgres(
            "warehouse", connection_string=warehouse.url(settings).render_as_string(hide_password=False)
        )
        batch = source.add_query_asset(subject, query=query).add_batch_definition_whole_table("whole")
        with contextlib.suppress(gx.exceptions.DataContextError):
            context.suites.delete(subject)
        suite = context.suites.add(gx.ExpectationSuite(subject, expectations=list(expectations)))
        definition = context.validation_definitions.add(gx.ValidationDefinition(name=subject, data=batch, suite=suite))
        detail: dict[str, Any] = {"result_format": "COMPLETE", "partial_unexpected_count": 20}
        if key:
            detail["unexpected_index_column_names"] = [key]
        checkpoint = context.checkpoints.add(
            gx.Checkpoint(
                name=subject,
                validation_definitions=[definition],
                actions=[UpdateDataDocsAction(name="docs", site_names=["lyrebird"])],
                result_format=detail,
            )
        )
        started = datetime.now(UTC)
        result = next(iter(checkpoint.run().run_results.values()))
        page = _upload(objects, folder / "site", since=started)
    errors = [error["exception_message"] for item in result.results for error in _exceptions(item.exception_info)]
    if errors:  # no verdict: a server that went away says nothing about the data
        raise Problem(
            f"the audit of {subject} could not be done: {errors[0].strip().splitlines()[0][:300]}",
            "Run it again when `lyrebird status` shows the servers running",
        )
    failed = [_failure(item, key) for item in result.results if not item.success]
    worst = "critical" if any(item["severity"] == "critical" for item in failed) else "none"
    if worst == "none" and failed:
        worst = "warning" if any(item["severity"] == "warning" for item in failed) else "info"
    docs = f"{settings.pages_url}/{page}" if settings.pages_url and page else page
    verdict = Verdict(
        accepted=worst != "critical",
        severity=worst,
        reason="; ".join(item["what"] for item in failed if item["severity"] == worst)[:1000],
        failed=failed,
        docs=docs,
    )
    with closing(warehouse.connect(settings)) as db, db, db.cursor() as sql:
        sql.execute(
            "insert into ops.audit (subject, kind, domain, severity, success, expectations, failed, statistics, "
            "docs_url) values (%s, %s, %s, %s, %s, %s, %s, %s, %s)",
            (
                *(subject, kind, domain, worst, verdict.accepted, len(result.results)),
                *(json.dumps(failed, default=str), json.dumps(statistics, default=str), page),
            ),
        )
    _index(settings, objects)
    return verdict


def accept(settings: Settings, subject: str) -> None:
    """Take what was judged last of the subject as accepted: the next one is compared with it."""
    with closing(warehouse.connect(settings)) as db, db, db.cursor() as sql:
        sql.execute(
            "insert into ops.audit (subject, kind, domain, severity, success, expectations, failed, statistics, "
            "docs_url) select subject, kind, domain, severity, true, expectations, failed, statistics, docs_url "
            "from ops.audit where subject = %s order by id desc limit 1",
            (subject,),
        )


def last_accepted(settings: Settings, subject: str) -> dict[str, Any]:
    """Statistics of the subject's last accepted audit; empty before the first."""
    with closing(warehouse.connect(settings)) as db, db, db.cursor() as sql:
        sql.execute(
            "select statistics from ops.audit where subject = %s and success order by id desc limit 1", (subject,)
        )
        row = sql.fetchone()
    return dict(row[0]) if row else {}


def _failure(item: Any, key: str | None) -> dict[str, Any]:
    """One failed expectation in plain words."""
    config = item.expectation_config
    about = {k: v for k, v in config.kwargs.items() if k not in ("batch_id", "severity") and v is not None}
    observed = item.result.get("observed_value", item.result.get("unexpected_percent"))
    name = config.type.removeprefix("expect_").replace("_", " ")
    keys = [row.get(key) for row in item.result.get("unexpected_index_list") or [] if key]
    return {
        "expectation": config.type,
        "arguments": about,
        "severity": str(getattr(config.severity, "value", config.severity)),
        "observed": observed,
        "what": f"{_notes(config) or name}: saw {observed}",
        "keys": keys[:KEPT],
    }


def _notes(config: Any) -> str:
    return config.notes if isinstance(config.notes, str) else " ".join(config.notes or [])


def _exceptions(info: dict[str, Any]) -> Iterator[dict[str, Any]]:
    nested = [info] if "raised_exception" in info else list(info.values())
    yield from (entry for entry in nested if isinstance(entry, dict) and entry.get("raised_exception"))


def _context(folder: Path) -> Any:
    """A context whose results stay in ``folder`` and whose data sources, which hold credentials, do not."""
    import great_expectations as gx
    from great_expectations.data_context.types.base import DataContextConfig, ProgressBarsConfig

    def files(store: str, where: str) -> dict[str, Any]:
        base = {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(folder / where)}
        return {"class_name": store, "store_backend": base}

    memory = {"store_backend": {"class_name": "InMemoryStoreBackend"}}
    return gx.get_context(
        mode="ephemeral",
        project_config=DataContextConfig(
            stores={
                "expectations_store": files("ExpectationsStore", "expectations"),
                "validation_results_store": files("ValidationResultsStore", "validations"),
                "checkpoint_store": {"class_name": "CheckpointStore"} | memory,
                "validation_definition_store": {"class_name": "ValidationDefinitionStore"} | memory,
            },
            expectations_store_name="expectations_store",
            validation_results_store_name="validation_results_store",
            checkpoint_store_name="checkpoint_store",
            data_docs_sites={
                "lyrebird": {
                    "class_name": "SiteBuilder",
                    "show_how_to_buttons": False,
                    "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
                    "store_backend": {
                        "class_name": "TupleFilesystemStoreBackend",
                        "base_directory": str(folder / "site"),
                    },
                }
            },
            progress_bars=ProgressBarsConfig(globally=False),
            analytics_enabled=False,
        ),
    )


def _upload(objects: Objects, site: Path, since: datetime) -> str:
    """Upload the pages written since then, made local. Returns the key of the result's page."""
    page = ""
    for path in sorted(site.rglob("*.html")):
        name = path.relative_to(site).as_posix()
        if path.stat().st_mtime < since.timestamp() - 1 or name == "index.html":
            continue
        objects.put("docs", f"{PREFIX}/{name}", data_docs.local(path.read_text()).encode(), "text/html; charset=utf-8")
        if name.startswith("validations/"):
            page = f"{PREFIX}/{name}"
    return page


def _index(settings: Settings, objects: Objects) -> None:
    """Write the front page of the Data Docs anew."""
    with closing(warehouse.connect(settings)) as db, db, db.cursor() as sql:
        sql.execute(
            "select at, subject, domain, severity, expectations, failed, coalesce(docs_url, '') from ops.audit "
            "order by id desc limit 500"
        )
        page = data_docs.index(sql.fetchall())
    objects.put("docs", f"{PREFIX}/index.html", page.encode(), "text/html; charset=utf-8")


@contextlib.contextmanager
def _exclusively(folder: Path) -> Iterator[None]:
    """One audit at a time writes the folder of Data Docs."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
