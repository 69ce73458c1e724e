{{ config(unique_key='composer_id') }}

select distinct
    composer_id,
    composer as name
from {{ ref('int_music_pieces') }}
where composer_id is not null
