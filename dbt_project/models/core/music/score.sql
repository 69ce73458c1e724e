{{ config(unique_key='score_id', indexes=[{'columns': ['edition_id']}]) }}

select
    score_id,
    source,
    path,
    corpus,
    edition_id,
    licence_code,
    sha256,
    bytes,
    fetched_at
from {{ ref('int_music_scores') }}
