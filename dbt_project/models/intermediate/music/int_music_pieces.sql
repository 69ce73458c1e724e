-- One row per piece of every music source, in one shape, with its surrogate keys and its leakage group.
with notated as (
    select
        piece_id,
        source,
        corpus,
        path,
        number,
        title,
        composer,
        time_signature,
        key_signature,
        tempo_bpm,
        quarters,
        fingerprint,
        published_split,
        licence,
        'quarter' as grid,
        frames,
        fetched_at
    from {{ ref('stg_notes__pieces') }}
),

rolls as (
    select
        piece_id,
        'piano_roll_files' as source,
        -- 'chorales/jsb-chorales-16th.train-valid.json' is of the corpus 'jsb-chorales'
        regexp_replace(file, '^.*/|(-(quarter|16th))?\.[^/]*$', '', 'g') as corpus,
        file as path,
        number,
        null as title,
        null as composer,
        null as time_signature,
        null as key_signature,
        null::double precision as tempo_bpm,
        jsonb_array_length(frames) / case grid when '16th' then 4.0::double precision else 1 end as quarters,
        fingerprint,
        published_split,
        null as licence,
        grid,
        frames,
        fetched_at
    from {{ ref('stg_piano_roll_files__pieces') }}
),

pieces as (
    select * from notated
    union all
    select * from rolls
)

select
    pieces.piece_id,
    pieces.source,
    pieces.corpus,
    coalesce(corpora.title, pieces.corpus) as corpus_title,
    pieces.path,
    pieces.number,
    pieces.title,
    pieces.composer,
    case when pieces.composer is not null then {{ surrogate_key(['pieces.composer']) }} end as composer_id,
    {{ surrogate_key(['pieces.composer', "coalesce(pieces.title, pieces.corpus || ' ' || pieces.piece_id)"]) }}
        as work_id,
    pieces.time_signature,
    pieces.key_signature,
    pieces.tempo_bpm,
    pieces.quarters,
    pieces.fingerprint,
    coalesce(pieces.fingerprint, 'piece/' || pieces.piece_id) as group_key,
    pieces.published_split,
    {{ licence_code('coalesce(pieces.licence, corpora.licence)') }} as licence_code,
    pieces.grid,
    pieces.frames,
    jsonb_array_length(pieces.frames) as n_frames,
    pieces.fetched_at
from pieces
left join {{ ref('music_corpora') }} as corpora on pieces.corpus = corpora.corpus
