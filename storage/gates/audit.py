"""Judge a profile with one Great Expectations suite, keep the result in ``ops.audit`` and in the Data Docs.

Great Expectations judges the data as data: counts, distributions, drift against what was accepted before. Records are
judged by the page contract, structure by dbt: no rule twice. Severity decides: critical stops, warning shows.

The suite has an expectation for each range that was learnt (:mod:`storage.gates.ranges`), and is run over the profile,
which is one line of numbers. So the table is read once, however much is expected of it; the rows that speak against a
range are asked for only where it does not hold.
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
from typing import Any

from psycopg2 import sql as quoted

from storage import warehouse
from storage.errors import Problem
from storage.gates import data_docs
from storage.gates.ranges import KEPT as HISTORY
from storage.gates.ranges import Bound
from storage.objects import Objects
from storage.settings import Settings, home

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
    bounds: Sequence[Bound],
    statistics: dict[str, Any],
    keys: Sequence[str] = (),
) -> Verdict:
    """Judge the profile of what ``query`` gives. ``keys`` are the columns that name a failing row.

    Raises Problem, and writes nothing down, when an expectation could not be evaluated.
    """
    folder = home() / "gx"
    with _exclusively(folder):
        started = datetime.now(UTC)
        results = validate(folder, subject, bounds)
        page = _upload(objects, folder / "site", since=started)
    failed = [
        _failure(item, bound, _failing_rows(settings, query, bound, keys))
        for item, bound in zip(results, bounds, strict=True)
        if not item.success
    ]
    worst = next(
        (one for one in ("critical", "warning", "info") if one in {item["severity"] for item in failed}), "none"
    )
    verdict = Verdict(
        accepted=worst != "critical",
        severity=worst,
        reason="; ".join(item["what"] for item in failed if item["severity"] == worst)[:1000],
        failed=failed,
        docs=f"{settings.pages_url}/{page}" if settings.pages_url and page else page,
    )
    with closing(warehouse.connect(settings)) as db, db, db.cursor() as sql:
        sql.execute(
            "insert into ops.audit (subject, kind, domain, severity, success, expectations, failed, statistics, "
            "docs_url) values (%s, %s, %s, %s, %s, %s, %s, %s, %s)",
            (
                *(subject, kind, domain, worst, verdict.accepted, len(bounds)),
                *(json.dumps(failed, default=str), json.dumps(statistics, default=str), page),
            ),
        )
    _index(settings, objects)
    return verdict


def validate(folder: Path, subject: str, bounds: Sequence[Bound]) -> list[Any]:
    """Great Expectations' result for each range, in their order; its pages are written below ``folder``.

    Raises Problem when an expectation could not be evaluated: that says nothing about the data.
    """
    os.environ["GX_ANALYTICS_ENABLED"] = "False"
    import great_expectations as gx
    import great_expectations.expectations as gxe
    import pandas as pd
    from great_expectations.checkpoint import UpdateDataDocsAction

    logging.getLogger("great_expectations").setLevel(logging.ERROR)
    context = _context(folder)
    batch = (
        context.data_sources.add_pandas("profile")
        .add_dataframe_asset(subject)
        .add_batch_definition_whole_dataframe("whole")
    )
    expectations = [
        gxe.ExpectColumnMaxToBeBetween(
            column=bound.number,
            min_value=bound.low,
            max_value=bound.high,
            severity=bound.severity,
            notes=bound.notes,
        )
        for bound in bounds
    ]
    with contextlib.suppress(gx.exceptions.DataContextError):
        context.suites.delete(subject)
    suite = context.suites.add(gx.ExpectationSuite(subject, expectations=expectations))
    definition = context.validation_definitions.add(gx.ValidationDefinition(name=subject, data=batch, suite=suite))
    checkpoint = context.checkpoints.add(
        gx.Checkpoint(
            name=subject,
            validation_definitions=[definition],
            actions=[UpdateDataDocsAction(name="docs", site_names=["lyrebird"])],
            result_format={"result_format": "SUMMARY"},
        )
    )
    line = pd.DataFrame({bound.number: [bound.value] for bound in bounds})
    [result] = checkpoint.run(batch_parameters={"dataframe": line}).run_results.values()
    errors = [error["exception_message"] for item in result.results for error in _exceptions(item.exception_info)]
    if errors:
        raise Problem(
            f"the audit of {subject} could not be done: {errors[0].strip().splitlines()[0][:300]}",
            "Run it again; if it fails the same way, report it with this sentence",
        )
    found = {item.expectation_config.kwargs["column"]: item for item in result.results}
    return [found[bound.number] for bound in bounds]


def accept(settings: Settings, subject: str) -> None:
    """Take what was judged last of the subject as accepted: what comes next is compared with it, and learnt anew."""
    with closing(warehouse.connect(settings)) as db, db, db.cursor() as sql:
        sql.execute(
            "insert into ops.audit (subject, kind, domain, severity, success, expectations, failed, statistics, "
            "docs_url) select subject, kind, domain, severity, true, expectations, failed, statistics, docs_url "
            "from ops.audit where subject = %s order by id desc limit 1",
            (subject,),
        )


def accepted(settings: Settings, subject: str) -> list[dict[str, Any]]:
    """Profiles of the subject's last accepted audits, the latest first; empty before the first.

    What a person accepted although it was critical is a new beginning: nothing before it counts. Nor does anything
    from before a withdrawal that has taken much, which leaves no rows in the statistics.
    """
    with closing(warehouse.connect(settings)) as db, db, db.cursor() as sql:
        sql.execute(
            "select statistics, severity from ops.audit where subject = %s and success order by id desc limit %s",
            (subject, HISTORY),
        )
        found: list[dict[str, Any]] = []
        for statistics, severity in sql.fetchall():
            if not statistics.get("rows"):
                break
            found.append(statistics)
            if severity == "critical":
                break
    return found


def _failing_rows(settings: Settings, query: str, bound: Bound, keys: Sequence[str]) -> list[str]:
    """Keys of rows that speak against the range, at most :data:`KEPT`."""
    if bound.rows is None or not keys:
        return []
    name = quoted.SQL(" || '|' || ").join(quoted.SQL("{}::text").format(quoted.Identifier(key)) for key in keys)
    with closing(warehouse.connect(settings)) as db, db, db.cursor() as sql:
        sql.execute(
            quoted.SQL("with audited as ({}) select {} from audited where {} limit {}").format(
                quoted.SQL(query), name, bound.rows, quoted.Literal(KEPT)
            )
        )
        return [str(key) for (key,) in sql.fetchall()]


def _failure(item: Any, bound: Bound, keys: list[str]) -> dict[str, Any]:
    """One failed expectation in plain words."""
    return {
        "expectation": item.expectation_config.type,
        "arguments": {"number": bound.number, "min_value": bound.low, "max_value": bound.high},
        "severity": bound.severity,
        "observed": bound.value,
        "what": f"{bound.notes}: saw {bound.value:.4g}",
        "keys": keys,
    }


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
