{{ config(unique_key=['recording_id', 'sound_type_id']) }}

select distinct
    recordings.recording_id,
    {{ surrogate_key(['trim(said.name)']) }} as sound_type_id
from {{ ref('int_birds_recordings') }} as recordings
cross join lateral unnest(string_to_array(recordings.sound_types, ',')) as said (name)
where trim(said.name) != ''
