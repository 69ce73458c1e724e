{{ config(unique_key=['piece_id', 'note']) }}

select
    notes.piece_id,
    notes.note,
    notes.part,
    notes.onset_quarters,
    notes.duration_quarters,
    notes.pitch,
    notes.velocity
from {{ ref('stg_notes__notes') }} as notes
inner join {{ ref('int_music_pieces') }} as pieces on notes.piece_id = pieces.piece_id
