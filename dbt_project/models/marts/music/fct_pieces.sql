-- depends_on: {{ ref('sweep_music') }}
with notes as (
    select
        piece_id,
        count(*) as notes,
        count(distinct part) as parts,
        min(pitch) as lowest_pitch,
        max(pitch) as highest_pitch
    from {{ ref('note') }}
    group by piece_id
)

select
    pieces.piece_id,
    pieces.source,
    pieces.corpus,
    pieces.number,
    works.work_id,
    works.title,
    works.composer_id,
    keys.key_signature,
    times.time_signature,
    pieces.tempo_bpm,
    pieces.quarters,
    coalesce(notes.notes, 0) as notes,
    coalesce(notes.parts, 0) as parts,
    notes.lowest_pitch,
    notes.highest_pitch,
    editions.opus,
    editions.style,
    editions.arranger,
    editions.page_url,
    pieces.fingerprint,
    pieces.licence_code,
    pieces.fetched_at
from {{ ref('piece') }} as pieces
inner join {{ ref('work') }} as works on pieces.work_id = works.work_id
left join {{ ref('key_span') }} as keys on pieces.piece_id = keys.piece_id and keys.start_quarters = 0
left join {{ ref('time_span') }} as times on pieces.piece_id = times.piece_id and times.start_quarters = 0
left join notes on pieces.piece_id = notes.piece_id
left join {{ ref('score') }} as scores on pieces.score_id = scores.score_id
left join {{ ref('edition') }} as editions on scores.edition_id = editions.edition_id
