-- depends_on: {{ ref('sweep_music') }}
with excluded_pieces as (
    select
        piece_id as key,
        excluded_because as reason
    from {{ ref('int_music_candidates') }}
    where excluded_because is not null
),

-- what could not be read at all is in quarantine too, with the reason
scores_without_pieces as (
    select
        scores.source || '/' || scores.path as key,
        'no_piece' as reason
    from {{ ref('score') }} as scores
    left join {{ ref('piece') }} as pieces on scores.score_id = pieces.score_id
    where pieces.piece_id is null
),

excluded as (
    select * from excluded_pieces
    union all
    select * from scores_without_pieces
)

select
    'music' as domain,
    excluded.key,
    excluded.reason
from excluded
