{{ config(materialized='ephemeral') }}

-- Every piece, with its split and the reason why it may not be trained on, if any.
with pieces as (
    select
        pieces.piece_id,
        pieces.corpus as publisher,
        pieces.group_key,
        pieces.published_split,
        rolls.grid,
        groups.split as recorded_split,
        {{ resolved_split('pieces.published_split', 'groups.split') }} as split,
        case
            when rolls.n_frames is null then 'no_frames'
            when rolls.n_frames < 8 then 'too_short'
            when {{ resolved_split('pieces.published_split', 'groups.split') }} is null then 'no_split'
        end as ineligible_because
    from {{ ref('piece') }} as pieces
    left join {{ ref('piece_roll') }} as rolls on pieces.piece_id = rolls.piece_id
    left join {{ source('ml', 'split_group') }} as groups
        on groups.domain = 'music' and pieces.group_key = groups.group_key
),

judged as (
    select
        *,
        ineligible_because is null as eligible
    from pieces
)

select
    piece_id,
    grid,
    group_key,
    split,
    case when published_split is null then 'assigned' else 'published' end as split_origin,
    coalesce(ineligible_because, case when {{ bridges_splits() }} then 'bridges_splits' end) as excluded_because
from judged
