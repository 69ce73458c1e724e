with scores as (
    {{ current_version('maestro', 'scores') }}
)

select
    path,
    corpus,
    {{ tidy('composer') }} as composer,
    {{ tidy('title') }} as title,
    {{ split_name('split') }} as published_split,
    year::integer as year,
    duration_s::double precision as duration_s,
    audio_filename,
    sha256,
    bytes::bigint as bytes,
    licence,
    _landing as landing_key,
    _load as load_number,
    _fetched_at as fetched_at
from scores
