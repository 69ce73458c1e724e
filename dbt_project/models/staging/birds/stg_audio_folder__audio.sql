with objects as (
    {{ current_version('audio_folder', 'audio') }}
)

select
    file,
    sha256,
    bytes::bigint as bytes,
    content_type,
    _landing as landing_key,
    _load as load_number,
    _fetched_at as fetched_at
from objects
