{{ config(materialized='ephemeral') }}

-- Every pair, with its split and the reason why it may not be trained on, if any.
with pairs as (
    select
        pairs.pair_id,
        pairs.corpus as publisher,
        pairs.group_key,
        coalesce(near.cluster_key, pairs.group_key) as cluster_key,
        pairs.published_split,
        groups.split as recorded_split,
        {{ resolved_split('pairs.published_split', 'groups.split') }} as split,
        coalesce(
            pairs.ineligible_because,
            case
                when {{ resolved_split('pairs.published_split', 'groups.split') }} is null then 'no_split'
            end
        ) as ineligible_because
    from {{ ref('int_text_pairs') }} as pairs
    left join {{ source('ml', 'near_duplicate') }} as near on pairs.group_key = near.group_key
    left join {{ source('ml', 'split_group') }} as groups
        on groups.domain = 'text' and pairs.group_key = groups.group_key
),

judged as (
    select
        *,
        ineligible_because is null as eligible
    from pairs
)

select
    pair_id,
    group_key,
    cluster_key,
    split,
    case when published_split is null then 'assigned' else 'published' end as split_origin,
    coalesce(ineligible_because, case when {{ bridges_splits('cluster_key') }} then 'bridges_splits' end)
        as excluded_because
from judged
