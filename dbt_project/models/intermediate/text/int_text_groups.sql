{{ config(materialized='view') }}

-- Leakage groups: sentences that differ in case, punctuation, digits, placeholders or markup are one sentence, and
-- those that are nearly the same are one cluster.
select
    'text' as domain,
    pairs.group_key,
    coalesce(near.cluster_key, pairs.group_key) as cluster_key,
    pairs.published_split
from {{ ref('int_text_pairs') }} as pairs
left join {{ source('ml', 'near_duplicate') }} as near on pairs.group_key = near.group_key
where pairs.ineligible_because is null
