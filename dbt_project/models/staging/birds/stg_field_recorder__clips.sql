with versions as (
    {{ current_version('field_recorder', 'clips') }}
)

select distinct on (clip_id)
    clip_id,
    revision,
    {{ tidy('recorder') }} as recorder,
    recorded_at,
    duration_s::double precision as duration_s,
    content_type,
    {{ tidy('reference') }} as reference,
    audio_object,
    bytes::bigint as bytes,
    _landing as landing_key,
    _load as load_number,
    _fetched_at as fetched_at
from versions
order by clip_id asc, revision desc
