with pairs as (
    {{ current_version('manythings', 'pairs') }}
)

select
    language,
    sentence_id::bigint as sentence_id,
    translation_id::bigint as translation_id,
    {{ tidy('english') }} as english,
    {{ tidy('translation') }} as translation,
    {{ tidy('contributor') }} as contributor,
    {{ tidy('translator') }} as translator,
    licence,
    attribution,
    _landing as landing_key,
    _load as load_number,
    _fetched_at as fetched_at
from pairs
