-- depends_on: {{ ref('sweep_music') }}
select
    pieces.corpus,
    notes.pitch % 12 as pitch_class,
    count(*) as notes,
    sum(notes.duration_quarters::numeric)::double precision as quarters
from {{ ref('note') }} as notes
inner join {{ ref('piece') }} as pieces on notes.piece_id = pieces.piece_id
group by pieces.corpus, notes.pitch % 12
