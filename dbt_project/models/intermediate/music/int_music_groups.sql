{{ config(materialized='view') }}

-- Leakage groups: a fingerprint that transposition does not change is the same music, whatever source it came by.
select
    'music' as domain,
    group_key,
    group_key as cluster_key,
    published_split
from {{ ref('int_music_pieces') }}
