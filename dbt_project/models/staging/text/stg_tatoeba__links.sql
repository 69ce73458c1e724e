with links as (
    {{ current_version('tatoeba', 'links') }}
)

select
    sentence_id::bigint as sentence_id,
    translation_id::bigint as translation_id,
    language,
    translation_language,
    _landing as landing_key,
    _load as load_number,
    _fetched_at as fetched_at
from links
