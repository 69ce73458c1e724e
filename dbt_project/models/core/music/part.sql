{{ config(unique_key=['piece_id', 'part']) }}

-- A part's instrument is that of its first note that names one.
select distinct on (notes.piece_id, notes.part)
    notes.piece_id,
    notes.part,
    case when notes.instrument is not null then {{ surrogate_key(['notes.instrument']) }} end as instrument_id
from {{ ref('stg_notes__notes') }} as notes
inner join {{ ref('int_music_pieces') }} as pieces on notes.piece_id = pieces.piece_id
order by notes.piece_id, notes.part, (notes.instrument is null), notes.note
