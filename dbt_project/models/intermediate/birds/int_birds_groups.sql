{{ config(materialized='view') }}

-- Leakage groups: who sings into one person's microphone is told apart by the microphone, so a recordist is a group.
select
    'birds' as domain,
    group_key,
    group_key as cluster_key,
    published_split
from {{ ref('int_birds_recordings') }}
where is_labelled
