with pieces as (
    {{ published_versions('notes', 'pieces') }}
)

select
    _key::jsonb ->> 0 as piece_id,
    source,
    {{ tidy('title') }} as title,
    {{ tidy('composer') }} as composer,
    {{ tidy('key_signature') }} as key_signature,
    {{ tidy('time_signature') }} as time_signature,
    {{ tidy('fingerprint') }} as fingerprint,
    {{ licence_code('licence') }} as licence_code,
    _load as load_number,
    _position as position,
    _deleted as is_deleted,
    _fetched_at as fetched_at
from pieces
