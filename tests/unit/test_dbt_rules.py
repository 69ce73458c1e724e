"""The rules of dbt-project-evaluator, asked of our manifest: https://dbt-labs.github.io/dbt-project-evaluator.

The package is not installed from dbt's hub, so each of its rules is a function here, under the package's name. What a
rule finds is mended, or stands in :data:`EXCEPTIONS` with the reason; an exception that finds nothing is refused too.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from storage import transform

# (rule, finding as a pattern, why it is right here)
EXCEPTIONS = [
    (
        "multiple_sources_joined",
        "stg_*",
        "raw keeps every version of every load; which of them readers may see is told by ops.load, and where a record "
        "lies by ops.landing. The macro current_version joins them, in this one place.",
    ),
    ("source_fanout", "ops.load", "every staging model asks it which loads are published (current_version)."),
    ("source_fanout", "ops.landing", "every staging model asks it where a record lies (current_version)."),
    (
        "source_fanout",
        "ml.split_group",
        "the recorded split of a leakage group: one table for the three domains, and each reads its own rows.",
    ),
    (
        "source_fanout",
        "ml.near_duplicate",
        "which sentences are nearly the same: asked when splits are given (groups) and when judged (candidates).",
    ),
    *(
        ("source_fanout", table, "read once as it stands now and once as all its versions, from which history is made.")
        for table in ("raw.aviary_recordings", "raw.xeno_canto_recordings", "raw.notes_pieces", "raw.tatoeba_sentences")
    ),
    (
        "direct_join_to_source",
        "int_*_candidates",
        "ml.split_group is written between the layers, from int_*_groups: it holds what the transform itself decided, "
        "in our own words. A staging model would rename nothing.",
    ),
    ("direct_join_to_source", "int_text_groups", "as above: ml.near_duplicate is written from int_text_sentences."),
    ("marts_or_intermediate_dependent_on_source", "int_*_candidates", "as above: ml.split_group is our own table."),
    ("marts_or_intermediate_dependent_on_source", "int_text_groups", "as above: ml.near_duplicate is our own table."),
    ("multiple_sources_joined", "int_text_candidates", "both are written by the transform itself, between the layers."),
    (
        "model_fanout",
        "sweep_*",
        "marts name the sweep of their domain to run after it; they read nothing of it.",
    ),
    ("too_many_joins", "sweep_*", "a sweep joins nothing: it runs after every core table it names."),
    (
        "too_many_joins",
        "int_birds_recordings",
        "a union: each source tells in its own way what a recording is, in a table of labels and one of files.",
    ),
    *(
        ("too_many_joins", mart, "core is in third normal form, a mart is not: it joins what a reader wants beside it.")
        for mart in ("dim_species", "fct_recordings", "fct_pieces", "mart_music_training_pieces")
    ),
    (
        "too_many_joins",
        "int_text_pairs",
        "a union: each source tells in its own way what a pair is; only seeds of languages and corpora are joined.",
    ),
    (
        "too_many_joins",
        "mart_birds_training_clips",
        "a row tells of clip, recording, recordist and species at once: training reads one table. Six relations, "
        "and the sweep that it waits for.",
    ),
    ("root_models", "dim_day", "a calendar is made of nothing."),
    ("missing_primary_key_tests", "sweep_*", "a sweep deletes rows and leaves no relation."),
    ("test_coverage", "sweep_*", "a sweep deletes rows and leaves no relation; tests of Python see what it deletes."),
    (
        "missing_primary_key_tests",
        "int_*_candidates",
        "ephemeral, a part of the marts that read it: their primary keys are held by PostgreSQL.",
    ),
    ("test_coverage", "int_*_candidates", "ephemeral: the tests of the marts that read it are its tests."),
    (
        "missing_primary_key_tests",
        "int_*_groups",
        "no key by intent: a row for each member of a group, so that all splits of a group are seen (assign_splits).",
    ),
    *(
        (rule, versions, "all versions as they came, in one page at times twice: history, made of them, has the key.")
        for rule in ("missing_primary_key_tests", "test_coverage")
        for versions in ("stg_*_versions", "int_birds_recording_versions")
    ),
    *(
        (rule, "int_birds_sound_types", "words of a recording, some of them the same: core makes keys of them.")
        for rule in ("missing_primary_key_tests", "test_coverage")
    ),
    ("test_coverage", "int_*_groups", "two columns of a tested table, as they are."),
    ("sources_without_freshness", "ops.*", "ops.load says for all sources when the last load came."),
    ("sources_without_freshness", "ml.*", "written when models are trained and used, at no set time."),
    (
        "source_directories",
        "*",
        "the sources are the platform's own three schemas, not systems of others: one page describes them.",
    ),
    (
        "model_directories",
        "stg_*",
        "staging has a folder for each domain, for a transform builds a domain; the source is in the model's name.",
    ),
]
LAYERS = ("staging", "intermediate", "core", "marts")
PREFIXES = {
    "staging": ("stg_",),
    "intermediate": ("int_",),
    "core": ("",),  # a table of core is named for what a row of it is
    "marts": ("fct_", "dim_", "agg_", "bridge_", "mart_"),
}
LEAVES = 3  # of a model, from which on they are many
PARENTS = 7
VIEWS = 5
HARD_CODED = re.compile(r"\b(?:from|join|using)\s+\"?[a-z_]+\"?\.\"?[a-z_]+", re.IGNORECASE)


@dataclass(frozen=True)
class Node:
    """A model, source or exposure, as far as the rules speak of it."""

    name: str
    kind: str = "model"
    folder: str = "models/marts/birds"
    layer: str = "marts"
    parents: tuple[str, ...] = ()
    materialized: str = "table"
    access: str = "public"
    contract: bool = True
    described: bool = True
    columns_described: bool = True
    key: bool = True  # its key is unique and not null, by tests or by PostgreSQL
    tests: tuple[str, ...] = ("models/marts/birds",)  # the folder of each
    code: str = ""
    relation: str = ""
    source_described: bool = True
    fresh: bool = True


@dataclass
class Graph:
    """All nodes, by name, with their children."""

    nodes: list[Node]
    children: dict[str, list[Node]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.by_name = {node.name: node for node in self.nodes}
        for node in self.nodes:
            for parent in node.parents:
                self.children.setdefault(parent, []).append(node)

    def of(self, kind: str, layer: str = "") -> list[Node]:
        return [node for node in self.nodes if node.kind == kind and layer in ("", node.layer)]

    def parents(self, node: Node, kind: str) -> list[Node]:
        return [self.by_name[name] for name in node.parents if self.by_name[name].kind == kind]

    def views(self, node: Node) -> int:
        """How many views stand on each other, up to this node's own parents."""
        below = [one for one in self.parents(node, "model") if one.materialized in ("view", "ephemeral")]
        return max((1 + self.views(one) for one in below), default=0)


Rule = Callable[[Graph], Iterator[str]]
RULES: dict[str, Rule] = {}


def rule(function: Rule) -> Rule:
    RULES[function.__name__.removeprefix("fct_")] = function
    return function


# ---------------------------------------------------------------- modeling


@rule
def fct_staging_dependent_on_staging(graph: Graph) -> Iterator[str]:
    for node in graph.of("model", "staging"):
        yield from (node.name for parent in graph.parents(node, "model") if parent.layer == "staging")


@rule
def fct_staging_dependent_on_marts_or_intermediate(graph: Graph) -> Iterator[str]:
    for node in graph.of("model", "staging"):
        yield from (node.name for parent in graph.parents(node, "model") if parent.layer != "staging")


@rule
def fct_source_fanout(graph: Graph) -> Iterator[str]:
    yield from (node.name for node in graph.of("source") if len(graph.children.get(node.name, [])) > 1)


@rule
def fct_rejoining_of_upstream_concepts(graph: Graph) -> Iterator[str]:
    for child in graph.of("model"):
        for between in graph.parents(child, "model"):
            if len(graph.children[between.name]) == 1 and {*between.parents} & {*child.parents}:
                yield child.name


@rule
def fct_model_fanout(graph: Graph) -> Iterator[str]:
    for node in graph.of("model"):
        leaves = [one for one in graph.children.get(node.name, []) if one.name not in graph.children]
        if len([one for one in leaves if one.kind == "model"]) > LEAVES:
            yield node.name


@rule
def fct_marts_or_intermediate_dependent_on_source(graph: Graph) -> Iterator[str]:
    yield from (one.name for one in graph.of("model") if one.layer != "staging" and graph.parents(one, "source"))


@rule
def fct_direct_join_to_source(graph: Graph) -> Iterator[str]:
    yield from (one.name for one in graph.of("model") if graph.parents(one, "source") and graph.parents(one, "model"))


@rule
def fct_duplicate_sources(graph: Graph) -> Iterator[str]:
    counts = Counter(one.relation for one in graph.of("source"))
    yield from (relation for relation, count in counts.items() if count > 1)


@rule
def fct_hard_coded_references(graph: Graph) -> Iterator[str]:
    yield from (node.name for node in graph.of("model") if HARD_CODED.search(node.code))


@rule
def fct_multiple_sources_joined(graph: Graph) -> Iterator[str]:
    yield from (node.name for node in graph.of("model") if len(graph.parents(node, "source")) > 1)


@rule
def fct_root_models(graph: Graph) -> Iterator[str]:
    yield from (node.name for node in graph.of("model") if not node.parents)


@rule
def fct_unused_sources(graph: Graph) -> Iterator[str]:
    yield from (node.name for node in graph.of("source") if node.name not in graph.children)


@rule
def fct_too_many_joins(graph: Graph) -> Iterator[str]:
    yield from (node.name for node in graph.of("model") if len(node.parents) >= PARENTS)


# ---------------------------------------------------------------- testing


@rule
def fct_missing_primary_key_tests(graph: Graph) -> Iterator[str]:
    yield from (node.name for node in graph.of("model") if not node.key)


@rule
def fct_test_coverage(graph: Graph) -> Iterator[str]:
    yield from (node.name for node in graph.of("model") if not node.tests and not node.key)


@rule
def fct_sources_without_freshness(graph: Graph) -> Iterator[str]:
    yield from (node.name for node in graph.of("source") if not node.fresh)


# ---------------------------------------------------------------- documentation


@rule
def fct_undocumented_models(graph: Graph) -> Iterator[str]:
    yield from (node.name for node in graph.of("model") if not node.described)


@rule
def fct_documentation_coverage(graph: Graph) -> Iterator[str]:
    models = graph.of("model")
    share = sum(node.described for node in models) / len(models) if models else 1.0
    if share < 1:
        yield f"{share:.0%}"


@rule
def fct_undocumented_source_tables(graph: Graph) -> Iterator[str]:
    yield from (node.name for node in graph.of("source") if not node.described)


@rule
def fct_undocumented_sources(graph: Graph) -> Iterator[str]:
    yield from {node.name.split(".")[0] for node in graph.of("source") if not node.source_described}


# ---------------------------------------------------------------- structure


@rule
def fct_test_directories(graph: Graph) -> Iterator[str]:
    yield from (node.name for node in graph.of("model") if {*node.tests} - {node.folder})


@rule
def fct_model_naming_conventions(graph: Graph) -> Iterator[str]:
    yield from (node.name for node in graph.of("model") if not node.name.startswith(PREFIXES.get(node.layer, ("!",))))


@rule
def fct_source_directories(graph: Graph) -> Iterator[str]:
    for node in graph.of("source"):
        if not node.folder.startswith(f"models/staging/{node.name.split('.')[0]}"):
            yield node.name


@rule
def fct_model_directories(graph: Graph) -> Iterator[str]:
    """The folder nearest to a file says its type; of a staging model also the source."""
    for node in graph.of("model"):
        layers = [part for part in node.folder.split("/") if part in LAYERS]
        sources = {parent.name.split(".")[0] for parent in graph.parents(node, "source")}
        wrong = layers[-1:] != [node.layer]
        if wrong or (node.layer == "staging" and node.folder.split("/")[-1] not in sources):
            yield node.name


# ---------------------------------------------------------------- performance


@rule
def fct_chained_views_dependencies(graph: Graph) -> Iterator[str]:
    yield from (node.name for node in graph.of("model") if graph.views(node) > VIEWS)


@rule
def fct_exposure_parents_materializations(graph: Graph) -> Iterator[str]:
    for node in graph.of("exposure"):
        parents = [graph.by_name[name] for name in node.parents]
        yield from (node.name for one in parents if one.materialized not in ("table", "incremental"))


# ---------------------------------------------------------------- governance


@rule
def fct_public_models_without_contracts(graph: Graph) -> Iterator[str]:
    yield from (node.name for node in graph.of("model") if node.access == "public" and not node.contract)


@rule
def fct_exposures_dependent_on_private_models(graph: Graph) -> Iterator[str]:
    for node in graph.of("exposure"):
        yield from (node.name for parent in graph.parents(node, "model") if parent.access != "public")


@rule
def fct_undocumented_public_models(graph: Graph) -> Iterator[str]:
    for node in graph.of("model"):
        if node.access == "public" and not (node.described and node.columns_described):
            yield node.name


# ---------------------------------------------------------------- our project


def read(manifest: dict[str, Any]) -> Graph:
    """The graph of a manifest: nodes are called as a reader calls them."""
    kinds: dict[str, list[dict[str, Any]]] = {"model": [], "seed": [], "test": []}
    for one in manifest["nodes"].values():
        kinds.setdefault(one["resource_type"], []).append(one)
    names = {one["unique_id"]: one["alias"] for one in [*kinds["model"], *kinds["seed"]]}
    names |= {key: f"{one['source_name']}.{one['name']}" for key, one in manifest["sources"].items()}
    nodes = [Node(one["alias"], "seed", "seeds", "seed") for one in kinds["seed"]]
    for one in kinds["model"]:
        nodes.append(_model(one, names, [test for test in kinds["test"] if test["attached_node"] == one["unique_id"]]))
    nodes += [_source(one) for one in manifest["sources"].values()]
    for one in manifest["exposures"].values():
        parents = tuple(names[parent] for parent in one["depends_on"]["nodes"])
        nodes.append(Node(one["name"], "exposure", "models", "exposure", parents))
    return Graph(nodes)


def _model(one: dict[str, Any], names: dict[str, str], tests: list[dict[str, Any]]) -> Node:
    kinds = [(test["test_metadata"]["name"], test["column_name"]) for test in tests if test.get("test_metadata")]
    unique = {column for kind, column in kinds if kind == "unique"}
    constraints = [*one["constraints"], *(held for column in one["columns"].values() for held in column["constraints"])]
    held = one["config"]["contract"]["enforced"] and any(each["type"] == "primary_key" for each in constraints)
    return Node(
        name=one["alias"],
        folder=str(Path(one["original_file_path"]).parent),
        layer=one["fqn"][1],
        parents=tuple(sorted({names[parent] for parent in one["depends_on"]["nodes"]})),
        materialized=one["config"]["materialized"],
        access=one["access"],
        contract=one["config"]["contract"]["enforced"],
        described=bool(one["description"]),
        columns_described=all(column["description"] for column in one["columns"].values()),
        key=held
        or any(("not_null", column) in kinds for column in unique)
        or any(kind == "unique_together" for kind, _ in kinds),
        tests=tuple(str(Path(test["original_file_path"]).parent) for test in tests),
        code=re.sub(r"--.*|\{#.*?#\}|extract\([^)]*\)", "", one["raw_code"]),  # extract(hour from t.c) reads no table
    )


def _source(one: dict[str, Any]) -> Node:
    return Node(
        name=f"{one['source_name']}.{one['name']}",
        kind="source",
        folder=str(Path(one["original_file_path"]).parent),
        layer="source",
        materialized="source",
        described=bool(one["description"]),
        source_described=bool(one["source_description"]),
        relation=one["relation_name"],
        fresh=bool((one["loaded_at_field"] or one["loaded_at_query"]) and one["freshness"]),
    )


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    """Our project, parsed: dbt asks no server for that."""
    target = tmp_path_factory.mktemp("dbt")
    variables = {f"LYREBIRD_POSTGRES_{name}": "nowhere" for name in ("HOST", "USER", "PASSWORD")}
    dbt = Path(sys.executable).parent / "dbt"
    subprocess.run(
        [dbt, "parse", "--target", "published", "--target-path", target, "--log-path", target, "--no-partial-parse"],
        cwd=transform.project(),
        env=os.environ | variables,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return read(json.loads((target / "manifest.json").read_text()))


@pytest.mark.parametrize("name", RULES)
def test_every_finding_of_the_rule_is_explained(name: str, ours: Graph) -> None:
    allowed = [pattern for exception, pattern, _ in EXCEPTIONS if exception == name]
    found = sorted(set(RULES[name](ours)))
    assert [one for one in found if not any(fnmatch(one, pattern) for pattern in allowed)] == []
    assert [pattern for pattern in allowed if not any(fnmatch(one, pattern) for one in found)] == []


def test_exceptions_are_of_rules_that_there_are_and_say_why() -> None:
    assert {exception for exception, _, _ in EXCEPTIONS} <= RULES.keys()
    assert all(reason.endswith(".") for _, _, reason in EXCEPTIONS)
    assert SPOILT.keys() == RULES.keys()


# ---------------------------------------------------------------- the rules themselves: a small project, spoilt

SOURCE = Node("raw.recordings", "source", "models/staging/raw", "source", materialized="source", relation="raw.r")
STAGED = Node(
    "stg_recordings", folder="models/staging/raw", layer="staging", parents=("raw.recordings",), materialized="view",
    access="protected", tests=(),
)  # fmt: skip
MART = Node("fct_recordings", parents=("stg_recordings",))
USED = Node("report", "exposure", "models", "exposure", ("fct_recordings",))
SMALL = (SOURCE, STAGED, MART, USED)
VIEW = replace(STAGED, name="int_0", layer="intermediate", folder="models/intermediate", parents=("stg_recordings",))
CHAIN = [VIEW, *(replace(VIEW, name=f"int_{n}", parents=(f"int_{n - 1}",)) for n in range(1, 5))]
SPOILT: dict[str, tuple[list[Node], str]] = {
    "staging_dependent_on_staging": ([replace(STAGED, name="stg_x", parents=("stg_recordings",))], "stg_x"),
    "staging_dependent_on_marts_or_intermediate": (
        [replace(STAGED, name="stg_x", parents=("fct_recordings",))],
        "stg_x",
    ),
    "source_fanout": ([replace(STAGED, name="stg_x")], "raw.recordings"),
    "rejoining_of_upstream_concepts": (
        [VIEW, replace(MART, name="fct_x", parents=("int_0", "stg_recordings"))],
        "fct_x",
    ),
    "model_fanout": ([replace(MART, name=f"fct_{n}") for n in range(4)], "stg_recordings"),
    "marts_or_intermediate_dependent_on_source": ([replace(MART, name="fct_x", parents=("raw.recordings",))], "fct_x"),
    "direct_join_to_source": (
        [replace(MART, name="fct_x", parents=("raw.recordings", "stg_recordings"))],
        "fct_x",
    ),
    "duplicate_sources": ([replace(SOURCE, name="raw.again")], "raw.r"),
    "hard_coded_references": ([replace(MART, name="fct_x", code="select 1 from core.recording")], "fct_x"),
    "multiple_sources_joined": (
        [replace(SOURCE, name="raw.x"), replace(STAGED, name="stg_x", parents=("raw.recordings", "raw.x"))],
        "stg_x",
    ),
    "root_models": ([replace(MART, name="fct_x", parents=())], "fct_x"),
    "unused_sources": ([replace(SOURCE, name="raw.x")], "raw.x"),
    "too_many_joins": (
        [*CHAIN, replace(MART, name="fct_x", parents=("raw.recordings", "stg_recordings", *(n.name for n in CHAIN)))],
        "fct_x",
    ),
    "missing_primary_key_tests": ([replace(MART, name="fct_x", key=False)], "fct_x"),
    "test_coverage": ([replace(MART, name="fct_x", key=False, tests=())], "fct_x"),
    "sources_without_freshness": ([replace(SOURCE, name="raw.x", fresh=False)], "raw.x"),
    "undocumented_models": ([replace(MART, name="fct_x", described=False)], "fct_x"),
    "documentation_coverage": ([replace(MART, name=f"fct_{n}", described=bool(n)) for n in range(2)], "75%"),
    "undocumented_source_tables": ([replace(SOURCE, name="raw.x", described=False)], "raw.x"),
    "undocumented_sources": ([replace(SOURCE, name="raw.x", source_described=False)], "raw"),
    "test_directories": ([replace(MART, name="fct_x", tests=("models/marts",))], "fct_x"),
    "model_naming_conventions": ([replace(MART, name="recordings")], "recordings"),
    "source_directories": ([replace(SOURCE, name="raw.x", folder="models")], "raw.x"),
    "model_directories": ([replace(MART, name="fct_x", folder="models/marts/staging/birds")], "fct_x"),
    "chained_views_dependencies": ([*CHAIN, replace(MART, name="fct_x", parents=("int_4",))], "fct_x"),
    "exposure_parents_materializations": ([replace(USED, name="x", parents=("raw.recordings",))], "x"),
    "public_models_without_contracts": ([replace(MART, name="fct_x", contract=False)], "fct_x"),
    "exposures_dependent_on_private_models": ([replace(USED, name="x", parents=("stg_recordings",))], "x"),
    "undocumented_public_models": ([replace(MART, name="fct_x", columns_described=False)], "fct_x"),
}  # fmt: skip


@pytest.mark.parametrize("name", RULES)
def test_the_rule_finds_what_breaks_it_and_nothing_else(name: str) -> None:
    assert list(RULES[name](Graph([*SMALL]))) == []
    added, finding = SPOILT[name]
    assert set(RULES[name](Graph([*SMALL, *added]))) == {finding}
