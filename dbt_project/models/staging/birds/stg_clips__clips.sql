with clips as (
    {{ current_version('clips', 'clips') }}
)

select
    clip_id,
    source,
    recording_key,
    audio_sha256,
    audio_key,
    start_s::double precision as start_s,
    end_s::double precision as end_s,
    sample_rate::integer as sample_rate,
    samples::integer as samples,
    clip_object,
    rms_db::double precision as rms_db,
    peak::double precision as peak,
    _load as load_number,
    _fetched_at as fetched_at
from clips
