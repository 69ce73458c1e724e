"""What a command says of its result to a person; with `--json` scripts get the same as data."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ml.predict import Predicted
    from ml.registry import ModelVersion, Promotion

FEW = 5
# What a terminal obeys instead of showing it: control characters, and those that turn the direction of the writing.
# Surrogates are bytes of a file's name that is no text: no terminal shows them, and a strict one raises an error.
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str, but: str = "\n\t") -> str:
    """Text that may be of strangers, for a terminal: a sign or an escape for each control character ``but`` these."""

    def shown(found: re.Match[str]) -> str:
        character, code = found[0], ord(found[0])
        if character in but:
            return character
        return chr(0x2400 + code) if code < 0x20 else f"\\u{code:04x}"

    return CONTROL.sub(shown, text)


def document(value: Any, indent: int | None = None) -> str:
    """A result as JSON that a terminal obeys in nothing. A script that reads it finds the data as they are."""
    text = json.dumps(value, ensure_ascii=False, default=str, indent=indent)
    return CONTROL.sub(lambda found: found[0] if found[0] == "\n" else f"\\u{ord(found[0]):04x}", text)


def trained(result: dict[str, Any]) -> str:
    when = "trained now" if result["trained"] else "which was trained before"
    return f"{result['name']} version {result['version']}, {when} on dataset {result['dataset']}, is filed in MLflow"


def swept(found: dict[str, Any]) -> str:
    lines = [f"{found['name']}@{one['version']}: {one['metric']} {one['value']:.4g} on valid, {one['settings']}"
             for one in found["runs"]]  # fmt: skip
    return "\n".join([*lines, f"`lyrebird model promote {found['name']} {found['version']}` lets the best be champion"])


def imported(model: ModelVersion) -> str:
    when = "is filed in MLflow" if model.new else "was filed in MLflow before"
    return f"{model.name} version {model.version}, trained on dataset {model.dataset}, {when}"


def promoted(decision: Promotion) -> str:
    verdict = "is champion now" if decision.promoted else "is not promoted"
    return f"{decision.name} version {decision.version} {verdict}: {decision.reason}"


def predicted(made: Predicted) -> str:
    if made.model_version is None:
        return f"{made.model} has no champion yet: nothing was predicted"
    return f"{made.model} version {made.model_version}: {made.new:,} new predictions, {made.total:,} in all"


def verified(found: dict[str, Any]) -> str:
    return f"{found['version']} is intact: {found['rows']:,} rows in {found['shards']} shards"


def compared(found: dict[str, Any]) -> str:
    words = {
        "same": "are the same",
        "only_first": f"are in {found['first']} only",
        "only_second": f"are in {found['second']} only",
        "changed": "changed",
        "moved": "are in another split",
    }
    lines = []
    for kind, count in found["rows"].items():
        keys = [visible(key, but="") for key in found["keys"].get(kind, [])[:FEW]]
        some = f": {', '.join(keys)}" + (" …" if count > FEW else "") if keys else ""
        lines += [f"{count:,} rows {words[kind]}{some}"] if count else []
    for what in ("splits", "licences"):
        lines += [f"{name}: {a:,} rows, then {b:,}" for name, (a, b) in found[what].items() if a != b]
    for place in ("first", "second"):
        lines += [f"the column {name} is in {found[place]} only" for name in found["schema"][f"only_{place}"]]
    return "\n".join(lines)


def pruned(found: dict[str, Any]) -> str:
    verb = "is gone" if found["really"] else "would go"
    lines = [f"{one['name']} {one['version']} ({one['rows']:,} rows, {one['bytes']:,} bytes) {verb}"
             for one in found["removed"]]  # fmt: skip
    lines += [f"{version} stays: {why}" for version, why in found["kept"].items()]
    if found["removed"] and not found["really"]:
        lines.append("`lyrebird dataset prune --yes` removes them")
    return "\n".join(lines) or "there are no versions"


def forgotten(found: dict[str, Any]) -> str:
    verb, then = ("would go", "") if found["dry_run"] else ("are gone", f"lyrebird transform {found['domain']}")
    records = [f"  {len(keys):,} of {table}: {_listed(keys)}" for table, keys in found["records"].items()]
    lines = [f"From {found['source']} {verb} the records, in all their versions,", *(records or ["  none any more"])]
    lines.append(
        f"and with them {found['objects']:,} landed objects, {found['files']:,} derived files and "
        f"{found['predictions']:,} predictions; {found['pages']:,} pages are rewritten without them"
    )
    for one in found["versions"]:
        lines.append(f"  The dataset version {one['version']} ({one['name']}) holds {one['rows']:,} rows of them")
    for one in found["models"]:
        lines.append(f"  {one['model']} version {one['version']} was trained on {one['dataset']}")
    return "\n".join([*lines, *([f"Now run `{then}`: until then readers see the marts as they were"] if then else [])])


def birds(scores: dict[str, Any]) -> str:
    lines = [f"{scores['model']} on {scores['files']:,} files:", *map(_score, scores["metrics"])]
    if scores["unknown"]:
        lines.append(f"  It does not know {_listed(scores['unknown'])}; they count all the same")
    return "\n".join([*lines, "  With --json: the scores of each species"])


def music(scores: dict[str, Any]) -> str:
    text = (
        f"{scores['model']} version {scores['version']}: {_interval(scores | {'value': scores['nll_per_frame']})} "
        f"nats per frame over {scores['frames']:,} frames (less is better)"
    )
    if "variants" in scores:
        text += (
            f"\n  Variants of pieces it was trained on: {_listed(scores['variants'])}; "
            f"without them {scores['nll_per_frame_without_variants']:.3f}"
        )
    return text


def translation(scores: dict[str, Any]) -> str:
    return "\n".join([f"{scores['model']} on {scores['lines']:,} lines:", *map(_score, scores["metrics"])])


def _score(metric: dict[str, Any]) -> str:
    """A metric with its 95 % interval, beside its baseline where it has one; how it counts, where it says so."""
    baseline, signature = metric.get("baseline"), metric.get("signature")
    beside = f"; {baseline['name']} {_interval(baseline)}" if baseline else ""
    return f"  {metric['name']} {_interval(metric)}{beside}" + (f"  ({signature})" if signature else "")


def _interval(score: dict[str, Any]) -> str:
    return f"{score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"


def _listed(names: list[str]) -> str:
    few = ", ".join(visible(name, but="") for name in names[:FEW])
    return few + (f" and {len(names) - FEW} more" if len(names) > FEW else "")
