{{ config(unique_key=['piece_id', 'start_quarters']) }}

select
    piece_id,
    0::double precision as start_quarters,
    time_signature
from {{ ref('int_music_pieces') }}
where time_signature is not null
