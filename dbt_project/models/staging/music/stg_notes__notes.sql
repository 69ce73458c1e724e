with notes as (
    {{ current_version('notes', 'notes') }}
)

select
    piece_id,
    note::integer as note,
    part::integer as part,
    {{ tidy('instrument') }} as instrument,
    onset_quarters::double precision as onset_quarters,
    duration_quarters::double precision as duration_quarters,
    pitch::integer as pitch,
    velocity::integer as velocity,
    _load as load_number,
    _fetched_at as fetched_at
from notes
