"""What keeps core quick as it grows: when a parent goes, PostgreSQL looks its children up in an index."""

from __future__ import annotations

from transform_world import World

# Foreign keys without an index of their own: a scan for each parent that goes, of which there are few.
SCANNED = {
    "link.corpus_id": "a corpus goes with its source",
    "link.contributor_id": "somebody who withdraws goes alone",
    "link.source_contributor_id": "somebody who withdraws goes alone",
    "link.licence_code": "licences come from a seed",
    "recording.licence_code": "licences come from a seed",
    "piece.licence_code": "licences come from a seed",
    "score.licence_code": "licences come from a seed",
    "corpus.licence_code": "licences come from a seed",
    "species.account_licence_code": "licences come from a seed",
    "sentence.language": "languages come from a seed",
    "recording_sound_type.sound_type_id": "sound types come from a seed",
    "part.instrument_id": "instruments are few, and stay",
    "detection.recorder_id": "recorders are few, and stay",
    "contributor.corpus_id": "a corpus goes with its source",
    "note.piece_id,part": "found by the piece, with which the primary key begins",
    "work.composer_id": "composers are few, and stay",
    "species.genus_id": "the tree of birds is small",
    "genus.family_id": "the tree of birds is small",
    "family.bird_order_id": "the tree of birds is small",
}
KEYS = """
select child.relname || '.' || string_agg(attname, ',' order by place), exists (
    select from pg_index as i
    where i.indrelid = c.conrelid and (i.indkey::smallint[])[0:cardinality(c.conkey) - 1] = c.conkey
)
from pg_constraint as c
join pg_class as child on child.oid = c.conrelid
join pg_namespace as n on n.oid = child.relnamespace and n.nspname = 'core'
cross join unnest(c.conkey) with ordinality as k (number, place)
join pg_attribute as a on a.attrelid = c.conrelid and a.attnum = k.number
where c.contype = 'f'
group by c.oid, c.conrelid, c.conkey, child.relname
"""


def test_the_children_of_what_vanishes_are_found_by_an_index(world: World) -> None:
    found = dict(world.rows(KEYS))
    assert {name for name, has_index in found.items() if not has_index} == SCANNED.keys()


def test_a_sentence_that_goes_is_looked_up_in_its_links_and_not_searched_for(world: World) -> None:
    """Many sentences go at once, in a table of a million links."""
    world.rows("set role transformer; set enable_seqscan = off; analyze core.link")
    for column in ("source_sentence_id", "target_sentence_id"):
        plan = "\n".join(
            line
            for (line,) in world.rows(f"set enable_seqscan = off; explain select from core.link where {column} = 'x'")
        )
        assert "Index" in plan and f"{column} = 'x'" in plan, plan
