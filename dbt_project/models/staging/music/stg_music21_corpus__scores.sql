with scores as (
    {{ current_version('music21_corpus', 'scores') }}
)

select
    path,
    corpus,
    format,
    sha256,
    bytes::bigint as bytes,
    _landing as landing_key,
    _load as load_number,
    _fetched_at as fetched_at
from scores
