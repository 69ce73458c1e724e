{{ config(unique_key='work_id') }}

select distinct on (work_id)
    work_id,
    composer_id,
    title
from {{ ref('int_music_pieces') }}
order by work_id, piece_id
