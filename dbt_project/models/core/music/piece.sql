{{ config(unique_key='piece_id') }}

select
    piece_id,
    work_id,
    source,
    corpus,
    path,
    number,
    tempo_bpm,
    quarters,
    fingerprint,
    group_key,
    published_split,
    licence_code,
    fetched_at
from {{ ref('int_music_pieces') }}
