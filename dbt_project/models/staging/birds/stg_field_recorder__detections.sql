with versions as (
    {{ current_version('field_recorder', 'detections') }}
)

-- a correction has a higher revision; which of them came last says nothing
select distinct on (detection_id)
    detection_id,
    revision,
    {{ tidy('recorder') }} as recorder,
    detected_at,
    {{ tidy('species') }} as scientific_name,
    confidence::double precision as confidence,
    start_s::double precision as start_s,
    end_s::double precision as end_s,
    clip_id,
    latitude::double precision as latitude,
    longitude::double precision as longitude,
    _landing as landing_key,
    _load as load_number,
    _fetched_at as fetched_at
from versions
order by detection_id asc, revision desc
