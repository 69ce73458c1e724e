"""Sentences that are nearly the same: found, kept in one split, and parted again when what connected them leaves."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import combinations

import networkx
import pytest
from transform_world import World, candidates, message

from storage import near_duplicates, transform

WORDS = [
    a + b for a in ("ba", "de", "ki", "lo", "mu", "na", "po", "ri", "su", "te") for b in ("rt", "ln", "sk", "mp", "nd")
]


def sentences(world: World, texts: Sequence[str], gone: Sequence[str] = ()) -> None:
    """These messages come, and those go."""
    rows = [message(0, source_text=text, target_text=f"перевод {n} {text}") for n, text in enumerate(texts)]
    world.add("gettext_catalogues_messages", rows, [(message(0)["path"], None, text, 0) for text in gone])


def splits(world: World) -> dict[str, str]:
    return dict(
        world.rows(
            "select normalised_text, split from staging.int_text_sentences"
            " join ml.split_group using (group_key) where domain = 'text'"
        )
    )


def left_out(world: World) -> set[str]:
    found = world.rows(
        "select normalised_source from staging.int_text_pairs join marts_next_text.fct_text_training_exclusions"
        " on key = pair_id where reason = 'bridges_splits'"
    )
    return {text for (text,) in found}


def test_clusters_are_what_comparing_everything_with_everything_finds(world: World) -> None:
    dice = random.Random(3)
    texts = {" ".join(dice.sample(WORDS, dice.randint(4, 12))) for _ in range(300)}
    for text in sorted(texts)[:200]:  # near ones: some words exchanged, taken away or added, in another order
        words = text.split()
        for _ in range(dice.randint(1, 2)):
            words[dice.randrange(len(words))] = dice.choice(WORDS)
        texts.add(" ".join(dice.sample(words, len(words))))
    order = sorted(texts)
    dice.shuffle(order)
    settings = world.settings("transformer")
    for part in (order[:250], order[250:]):  # in two runs: the second meets what the first has kept
        sentences(world, part)
        transform.build("text", "core", settings, say=print)
        assert near_duplicates.cluster(settings) > 0
    assert near_duplicates.cluster(settings) == 0

    graph = networkx.Graph()
    sets = {text: set(text.split()) for text in texts}
    graph.add_nodes_from(sets)
    near = [
        (one, other)
        for one, other in combinations(sets, 2)
        if min(len(sets[one]), len(sets[other])) >= near_duplicates.FEWEST
        and len(sets[one] & sets[other]) >= near_duplicates.NEAR * len(sets[one] | sets[other])
    ]
    graph.add_edges_from(near)
    expected = {text: min(group) for group in networkx.connected_components(graph) for text in group}
    found: dict[str, set[str]] = {}
    for text, cluster in world.rows(
        "select normalised_text, cluster_key from staging.int_text_sentences join ml.near_duplicate using (group_key)"
    ):
        if text in texts:
            found.setdefault(cluster, set()).add(text)
    of = {text: cluster for cluster, group in found.items() for text in group}
    assert all(len({expected[text] for text in group}) == 1 for group in found.values()), "connected without a reason"
    assert len(near) > 80
    assert sum(of[one] == of[other] for one, other in near) >= 0.97 * len(near)


def test_a_near_duplicate_takes_the_split_on_record_and_a_bridge_costs_training_rows(world: World) -> None:
    settings = world.settings("transformer")
    dice = random.Random(4)
    sentences(world, [" ".join(dice.sample(WORDS, 12)) for _ in range(120)])
    candidates("text", settings)
    before = splits(world)
    train = sorted(text for text, split in before.items() if split == "train" and len(text.split()) == 12)
    test = sorted(text for text, split in before.items() if split == "test" and len(text.split()) == 12)

    twins = [" ".join([*text.split()[:-1], "zzz"]) for text in test]
    sentences(world, twins)
    candidates("text", settings)
    now = splits(world)
    assert {now[twin] for twin in twins} == {"test"}
    assert before.items() <= now.items()
    assert left_out(world) == set()

    # seven words of one and seven of the other: near neither; chains of nearer ones lead from each to the middle
    one, other = train[0].split(), test[0].split()
    chain = [" ".join([*other[:n], *one[n:]]) for n in range(1, 12)]
    sentences(world, chain)
    candidates("text", settings)
    assert before.items() <= splits(world).items()  # nothing moves
    assert train[0] in left_out(world)
    assert left_out(world).isdisjoint(test)
    kept = world.rows("select count(distinct cluster_key) from marts_next_text.mart_translation_training_pairs"
                      " where source_text = any(%s)", ([train[0], test[0]],))  # fmt: skip
    assert kept == [(1,)]

    sentences(world, [], gone=chain)
    candidates("text", settings)
    assert train[0] not in left_out(world)


@pytest.mark.parametrize("text", ["", "one", "two words", "wörter und mehr davon"])
def test_any_sentence_has_a_signature(text: str) -> None:
    words, bands = near_duplicates.signature(text)
    assert words == sorted(words, key=lambda value: value % (1 << 64))
    assert len(words) == len(set(text.split()))
    assert len(bands) in (0, near_duplicates.BANDS)
    assert near_duplicates.signature(text) == (words, bands)
