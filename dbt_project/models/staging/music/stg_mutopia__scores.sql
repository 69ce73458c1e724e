with scores as (
    {{ current_version('mutopia', 'scores') }}
)

select
    path,
    piece_id,
    corpus,
    {{ tidy('title') }} as title,
    {{ tidy('composer') }} as composer,
    {{ tidy('licence') }} as licence,
    updated as updated_on,
    url as file_url,
    sha256,
    bytes::bigint as bytes,
    _landing as landing_key,
    _load as load_number,
    _fetched_at as fetched_at
from scores
