{{ config(unique_key=['piece_id', 'grid']) }}

select
    piece_id,
    grid,
    frames,
    n_frames
from {{ ref('int_music_pieces') }}
where frames is not null
