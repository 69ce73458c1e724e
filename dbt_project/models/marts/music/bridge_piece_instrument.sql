-- depends_on: {{ ref('sweep_music') }}
with played as (
    select
        parts.piece_id,
        instruments.instrument_id,
        instruments.name as instrument,
        count(*) as parts
    from {{ ref('part') }} as parts
    inner join {{ ref('instrument') }} as instruments on parts.instrument_id = instruments.instrument_id
    group by parts.piece_id, instruments.instrument_id, instruments.name
)

select
    piece_id,
    instrument_id,
    instrument,
    parts,
    -- so that a sum over instruments counts each piece once
    1.0::double precision / count(*) over (partition by piece_id) as weight
from played
