with sentences as (
    {{ published_versions('tatoeba', 'sentences') }}
)

select
    (_key::jsonb ->> 0)::bigint as sentence_id,
    language,
    {{ tidy('text') }} as text,
    {{ tidy('contributor') }} as contributor,
    {{ licence_code('licence') }} as licence_code,
    _load as load_number,
    _position as position,
    _deleted as is_deleted,
    _fetched_at as fetched_at
from sentences
