with scores as (
    {{ current_version('midi_archive', 'scores') }}
)

select
    path,
    file,
    corpus,
    sha256,
    bytes::bigint as bytes,
    {{ tidy('licence') }} as licence,
    _landing as landing_key,
    _load as load_number,
    _fetched_at as fetched_at
from scores
