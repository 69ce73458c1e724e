"""Which sentences are nearly the same, so that no model is trained on one and judged by the other.

Two sentences are near duplicates when their sets of words have a Jaccard index of 0.7 or more; a leakage group is all
that such pairs connect. Candidates are found by MinHash and locality-sensitive hashing (Broder 1997; Leskovec et al.,
Mining of Massive Datasets, ch. 3): 20 bands of 5 hashes find 97 % of pairs at 0.7 and all but one in 2,000 at 0.8.
Every candidate is then compared word by word.

What is kept of a sentence in ``ml.near_duplicate`` are hashes of its words; a run looks at new sentences only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from typing import Any

from psycopg2.extensions import connection
from psycopg2.extras import execute_values

from storage import warehouse
from storage.settings import Settings

NEAR = 0.7  # Jaccard index of the sets of words
FEWEST = 4  # words; of fewer, one is a large share, and short phrases recur without being copies
BANDS, ROWS = 20, 5
BATCH = 10_000

GONE = """
with gone as (
    delete from ml.near_duplicate as kept
    where not exists (select from staging.int_text_sentences as s where s.group_key = kept.group_key)
    returning cluster_key
)
-- what a sentence that left had connected is looked at anew
update ml.near_duplicate as kept set cluster_key = group_key, is_new = true
from (select distinct cluster_key from gone) as broken where kept.cluster_key = broken.cluster_key
"""
NEW = """
select group_key, normalised_text from staging.int_text_sentences as s
where not exists (select from ml.near_duplicate as kept where kept.group_key = s.group_key)
"""
PAIRS = """
with new_bands as (
    select group_key, words, cluster_key, band from ml.near_duplicate cross join unnest(bands) as band where is_new
),
candidates as (
    select distinct on (n.group_key, o.group_key)
        n.cluster_key as one, o.cluster_key as other, n.words as words, o.words as other_words
    from new_bands as n
    join (select group_key, words, cluster_key, band from ml.near_duplicate cross join unnest(bands) as band) as o
        on n.band = o.band and n.group_key <> o.group_key
)
select distinct one, other from candidates
cross join lateral (select count(*) as n from unnest(words) as w where w = any(other_words)) as common
where common.n >= %s * (cardinality(words) + cardinality(other_words) - common.n) and one <> other
"""


def cluster(settings: Settings) -> int:
    """Bring ``ml.near_duplicate`` up to date with the sentences of the warehouse. Returns how many are new."""
    with closing(warehouse.connect(settings)) as db:
        with db, db.cursor() as sql:
            sql.execute(GONE)
        count = _sign(db)
        with db, db.cursor() as sql:
            sql.execute("analyze ml.near_duplicate")
            sql.execute(PAIRS, (NEAR,))
            labels = _components(sql.fetchall())
            execute_values(
                sql,
                "update ml.near_duplicate as kept set cluster_key = now.label "
                "from (values %s) as now (cluster_key, label) "
                "where kept.cluster_key = now.cluster_key and now.label <> kept.cluster_key",
                sorted(labels.items()),
            )
            sql.execute("update ml.near_duplicate set is_new = false where is_new")
        return count


def signature(text: str) -> tuple[list[int], list[int]]:
    """Hashes of a normalised sentence's words, sorted, and of its bands; no bands for a sentence of few words."""
    return next(signatures([text]))


def signatures(texts: Iterable[str]) -> Iterator[tuple[list[int], list[int]]]:
    """:func:`signature` of many."""
    import xxhash
    from datasketch import MinHash

    sets = [sorted({xxhash.xxh3_64_intdigest(word.encode()) for word in text.split()}) for text in texts]
    made = MinHash.bulk(
        [[word.to_bytes(8, "little") for word in words] for words in sets],
        num_perm=BANDS * ROWS,
        seed=1,
        scheme="affine64",
    )
    for words, minhash in zip(sets, made, strict=True):
        values = minhash.hashvalues.reshape(BANDS, ROWS)
        bands = [_signed(xxhash.xxh3_64_intdigest(row.tobytes(), seed=number)) for number, row in enumerate(values)]
        yield [_signed(word) for word in words], bands if len(words) >= FEWEST else []


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _sign(db: connection) -> int:
    count = 0
    with db, db.cursor("new_sentences", withhold=True) as sql, db.cursor() as write:
        sql.itersize = BATCH
        sql.execute(NEW)
        while rows := sql.fetchmany(BATCH):
            count += len(rows)
            values = [
                (key, words, bands, key)
                for (key, _), (words, bands) in zip(rows, signatures(text for _, text in rows), strict=True)
            ]
            execute_values(
                write, "insert into ml.near_duplicate (group_key, words, bands, cluster_key) values %s", values
            )
    return count


def _components(pairs: Sequence[tuple[Any, Any]]) -> dict[str, str]:
    """For each cluster that pairs connect with another one: the least key of all that are connected."""
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        while parent.setdefault(key, key) != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    for one, other in pairs:
        low, high = sorted((root(one), root(other)))
        parent[high] = low
    return {key: root(key) for key in parent}
