with sentences as (
    {{ current_version('tatoeba', 'sentences') }}
)

select
    sentence_id::bigint as sentence_id,
    language,
    {{ tidy('text') }} as text,
    {{ tidy('contributor') }} as contributor,
    {{ try_cast('added', 'timestamp') }} as added_at,
    {{ try_cast('modified', 'timestamp') }} as modified_at,
    licence,
    _landing as landing_key,
    _load as load_number,
    _fetched_at as fetched_at
from sentences
