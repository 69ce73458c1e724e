{{ config(unique_key='piece_id', indexes=[{'columns': ['work_id']}, {'columns': ['score_id']}]) }}

select
    pieces.piece_id,
    pieces.work_id,
    scores.score_id,
    pieces.source,
    pieces.corpus,
    pieces.path,
    pieces.number,
    pieces.tempo_bpm,
    pieces.quarters,
    pieces.fingerprint,
    pieces.group_key,
    pieces.published_split,
    pieces.licence_code,
    pieces.fetched_at
from {{ ref('int_music_pieces') }} as pieces
left join {{ ref('int_music_scores') }} as scores on pieces.source = scores.source and pieces.path = scores.path
