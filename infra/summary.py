"""What `make run` says at its end: scores beside baselines, where the pages are, and what to try next."""

from __future__ import annotations

import mimetypes
import re
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from storage import languages, warehouse
from storage.objects import Objects
from storage.settings import for_role, home

Say = Callable[[str], None]


def tell(say: Say, seconds: float) -> None:
    """Print the summary, from what the warehouse holds."""
    settings = for_role("admin")
    scores = _query(
        """
        select s.model, s.model_version, s.metric, s.value, s.low, s.high,
               s.baseline_name, s.baseline, s.baseline_low, s.baseline_high, s.direction, s.rows, s.split,
               d.version, coalesce((d.manifest ->> 'simulated')::boolean, false), d.rows
        from ml.score as s
        join ml.dataset as d on d.version = s.dataset_version
        where (s.model, s.model_version) in (
            select distinct on (model) model, model_version from ml.promotion where promoted order by model, id desc
        ) and s.baseline is not null and s.split in ('valid', 'test')
        order by s.model, s.split desc, s.metric
        """
    )
    say("")
    say(f"The chain ran through in {seconds / 60:.1f} minutes. What the models scored (95 % intervals):")
    for row in scores:
        model, version, metric, value, low, high, name, base, base_low, base_high, direction, rows = row[:12]
        split, dataset, simulated, _ = row[12:]
        verdict = "better" if (low > base_high if direction == "more" else high < base_low) else "not clearly better"
        say(
            f"  {model} v{version}, {split} ({rows:,} rows of {dataset}{', simulated' if simulated else ''}): {metric} "
            f"{value:.3f} [{low:.3f}, {high:.3f}], {name} {base:.3f} [{base_low:.3f}, {base_high:.3f}]: {verdict}"
        )
    if not scores:
        say("  no model is champion yet: see the reports")
    pages, airflow, mlflow = settings.pages_url, settings.airflow_url, settings.mlflow_url
    say("")
    say("Where to look (user lyrebird; `.venv/bin/lyrebird password` prints the password):")
    for what, url in (
        ("Airflow", airflow),
        ("MLflow", mlflow),
        ("Data Docs", f"{pages}/audits/index.html"),
        ("dbt docs", f"{pages}/dbt/index.html"),
        ("reports", f"{pages}/reports/"),
    ):
        say(f"  {what:<10} {url}")
    say("Query the marts as the analyst:")
    say(
        '  .venv/bin/lyrebird sql "select * from agg_species_minutes"   (psql opens without a query; the same by hand:)'
    )
    say('  eval "$(.venv/bin/lyrebird env --role analyst)" && psql -c "select * from marts.agg_species_minutes"')
    say("Try next:")
    for line in suggestions():
        say(f"  {line}")
    say("The pages stay up until: make down")


def suggestions() -> list[str]:
    """Three commands on inputs of the domain that the models were trained on."""
    champions = [name for (name,) in _query("select distinct model from ml.promotion where promoted order by 1")]
    lines = []
    birds = next((name for name in champions if name.startswith("birds-")), None)
    if birds:
        lines.append(f"lyrebird identify {_recording(birds)} --model {birds}")
    music = next((name for name in champions if name.startswith("music-")), None)
    if music:
        lines.append(f"lyrebird compose --output tune.mid --model {music}")
    text = next((name for name in champions if name.startswith("translation-")), None)
    if text:
        _, source, target = text.split("-")
        lines.append(f'lyrebird translate --from {source} --to {target} "{_sentence(text)}"')
    return [f".venv/bin/{line}" for line in lines]


def _recording(model: str) -> Path:
    """A recording of the test split, as it landed, in the folder of examples."""
    rows = _query(
        "select l.key, c.recording_key, l.content_type from marts.mart_birds_training_clips as m "
        "join raw.clips as c on c.clip_id = m.clip_id "
        "join ops.landing as l on l.key = c.audio_key "
        "where m.label_set = %s order by (m.split = 'test') desc, cardinality(m.species) desc, m.clip_id limit 1",
        (model.removeprefix("birds-"),),
    )
    if not rows:
        return Path("recording.wav")
    key, recording, content_type = rows[0]
    suffix = mimetypes.guess_extension(content_type) or ".audio"
    path = home() / "examples" / (re.sub(r"[^A-Za-z0-9.-]+", "-", str(recording)) + suffix)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        bucket, key = key.split("/", 1)
        Objects(for_role("admin")).download(bucket, key, path)
    try:
        return path.relative_to(Path.cwd())
    except ValueError:
        return path


def _sentence(model: str) -> str:
    """A short sentence from where the model's sentences come from, held out from training where there is one."""
    rows = _query(
        "select m.source_text from marts.mart_translation_training_pairs as m "
        "where m.target_language = %s and m.source_text !~ '[\"%%{}$`\\\\]' "
        "order by (m.split = 'test') desc, (m.split = 'valid') desc, "
        "length(m.source_text) between 15 and 60 desc, md5(m.pair_id) limit 1",
        (languages.long(model.split("-")[2]),),
    )
    return str(rows[0][0]) if rows else ""


def _query(statement: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    with closing(warehouse.connect(for_role("admin"))) as db, db, db.cursor() as sql:
        sql.execute(statement, values)
        return sql.fetchall()
