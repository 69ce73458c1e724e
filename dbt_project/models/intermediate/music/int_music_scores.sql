-- One row per score file of every source of scores, in one shape; of an edition of Mutopia, what its page tells.
with scores as (
    select
        'music21_corpus' as source,
        path,
        corpus,
        sha256,
        bytes,
        null as licence,
        null::bigint as edition_id,
        fetched_at
    from {{ ref('stg_music21_corpus__scores') }}
    union all
    select
        'maestro' as source,
        path,
        corpus,
        sha256,
        bytes,
        licence,
        null as edition_id,
        fetched_at
    from {{ ref('stg_maestro__scores') }}
    union all
    select
        'midi_archive' as source,
        path,
        corpus,
        sha256,
        bytes,
        licence,
        null as edition_id,
        fetched_at
    from {{ ref('stg_midi_archive__scores') }}
    union all
    select
        'mutopia' as source,
        path,
        corpus,
        sha256,
        bytes,
        licence,
        piece_id as edition_id,
        fetched_at
    from {{ ref('stg_mutopia__scores') }}
)

select
    {{ surrogate_key(['scores.source', 'scores.path']) }} as score_id,
    scores.source,
    scores.path,
    scores.corpus,
    scores.sha256,
    scores.bytes,
    {{ licence_code('coalesce(scores.licence, corpora.licence)') }} as licence_code,
    editions.piece_id as edition_id,
    editions.instruments,
    editions.style,
    editions.opus,
    editions.lyricist,
    editions.arranger,
    editions.composed,
    editions.edition as typeset_from,
    editions.maintainer,
    editions.updated_on,
    editions.page_url,
    scores.fetched_at
from scores
left join {{ ref('stg_mutopia__pieces') }} as editions
    on scores.source = 'mutopia' and scores.edition_id = editions.piece_id
left join {{ ref('music_corpora') }} as corpora on scores.corpus = corpora.corpus
